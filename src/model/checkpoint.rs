//! The files of a model directory. Safetensors and JSON only; nothing in them is ever executed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::Deserialize;

use super::weights::{Names, Quantization, SafetensorsFiles, Weights};
use super::ModelError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A directory with a checkpoint as a model hub publishes it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
}

impl Checkpoint {
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let checkpoint = Self {
            dir: dir.to_path_buf(),
        };
        if !dir.is_dir() {
            return Err(checkpoint.error("is not a directory"));
        }
        if !dir.join("config.json").is_file() {
            return Err(checkpoint.error("config.json is missing"));
        }
        Ok(checkpoint)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    fn error(&self, what: impl Into<String>) -> ModelError {
        ModelError::Directory {
            dir: self.dir.clone(),
            what: what.into(),
        }
    }

    /// The text of a file that must be there.
    pub fn text(&self, name: &str) -> Result<String, ModelError> {
        if !self.has(name) {
            return Err(self.error(format!("{name} is missing")));
        }
        fs::read_to_string(self.path(name)).map_err(|e| ModelError::File {
            file: self.path(name),
            what: e.to_string(),
        })
    }

    /// A JSON file that must be there.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        serde_json::from_str(&self.text(name)?).map_err(|e| ModelError::File {
            file: self.path(name),
            what: e.to_string(),
        })
    }

    /// The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names, under the hub's names.
    pub fn tensors(
        &self,
        names: Names,
        quantization: Quantization,
    ) -> Result<SafetensorsFiles, ModelError> {
        let files = self.weight_files()?;
        let tensors = SafetensorsFiles::open(&files, names, quantization)?;
        if !self.has(SINGLE) {
            let stored = tensors.stored_names().collect::<HashSet<_>>();
            let index = self.index()?;
            if let Some((name, shard)) = index
                .iter()
                .find(|(name, _)| !stored.contains(name.as_str()))
            {
                return Err(ModelError::File {
                    file: self.path(INDEX),
                    what: format!("it names the tensor {name} in {shard}, which does not hold it"),
                });
            }
        }
        Ok(tensors)
    }

    /// The weights for arithmetic in `dtype` on `device`.
    pub fn weights(
        &self,
        names: Names,
        quantization: Quantization,
        dtype: DType,
        device: &Device,
    ) -> Result<Weights, ModelError> {
        let tensors = self.tensors(names, quantization)?;
        Ok(Weights::new(Arc::new(tensors), dtype, device))
    }

    /// Size of the weights' files, bytes.
    pub fn weight_bytes(&self) -> Result<u64, ModelError> {
        self.weight_files()?
            .into_iter()
            .map(|file| match fs::metadata(&file) {
                Ok(found) => Ok(found.len()),
                Err(e) => Err(ModelError::File {
                    what: e.to_string(),
                    file,
                }),
            })
            .sum()
    }

    fn weight_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        if self.has(SINGLE) {
            return Ok(vec![self.path(SINGLE)]);
        }
        if !self.has(INDEX) {
            return Err(self.error(format!("{SINGLE} is missing (and there is no {INDEX})")));
        }
        let mut shards = self.index()?.into_values().collect::<Vec<_>>();
        shards.sort();
        shards.dedup();
        for shard in &shards {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(self.error(format!(
                    "{INDEX} names the shard {shard}, expected a file's name"
                )));
            }
            if !self.has(shard) {
                return Err(self.error(format!("{shard} is missing, which {INDEX} names")));
            }
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }

    /// The shard of each tensor, as the index has it.
    fn index(&self) -> Result<BTreeMap<String, String>, ModelError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        Ok(self.json::<Index>(INDEX)?.weight_map)
    }

    /// Says which file and tensor an error of the tensor library is about.
    pub fn weight_error(&self, error: candle_core::Error) -> ModelError {
        self.error(format!("weights do not fit config.json: {error}"))
    }
}
