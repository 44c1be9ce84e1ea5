//! The files of a model: a directory as a model hub publishes it, or GGUF files, which are read as if they were one.
//! Safetensors, GGUF and JSON only; nothing in them is ever executed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

use super::decoder::Unsupported;
use super::gguf::GgufFiles;
use super::weights::{Names, Quantization, SafetensorsFiles, Source, Weights};
use super::ModelError;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS_ENDING: &str = ".safetensors";
const INDEX_ENDING: &str = ".safetensors.index.json";
/// The field of `config.json` that names another file of weights, or another index, than the usual ones.
const NAMED: &str = "transformers_weights";

/// A checkpoint as a model hub publishes it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    form: Form,
}

/// What the files are.
#[derive(Debug, Clone)]
enum Form {
    /// JSON and safetensors files.
    Published,
    Gguf(Box<GgufFiles>),
}

impl Checkpoint {
    /// Opens a directory with a `config.json`, or with the `.gguf` files of one decoder and at most one vision tower (`mmproj`), or
    /// the `.gguf` file of a decoder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let published = Self {
            dir: path.to_path_buf(),
            form: Form::Published,
        };
        let form = if path.is_file() {
            Form::Gguf(Box::new(GgufFiles::open(path)?))
        } else if !path.is_dir() {
            return Err(published.error("is not a directory"));
        } else if path.join(CONFIG).is_file() {
            Form::Published
        } else {
            match GgufFiles::find(path)? {
                Some(files) => Form::Gguf(Box::new(files)),
                None => {
                    let what = format!("{CONFIG} is missing, and no file ends in .gguf");
                    return Err(published.error(what));
                }
            }
        };
        Ok(Self { form, ..published })
    }

    /// Fails if it is the GGUF file of a decoder alone.
    pub fn check_vision(&self) -> Result<(), ModelError> {
        match &self.form {
            Form::Gguf(files) if !files.has_projector() => Err(ModelError::File {
                file: self.path(CONFIG),
                what: "a decoder alone: the mmproj file of its vision tower is missing in its directory"
                    .to_string(),
            }),
            _ => Ok(()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the file `name` is: of GGUF files, that which holds its contents.
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.form {
            Form::Published => self.dir.join(name),
            Form::Gguf(files) => files.path(name).to_path_buf(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.form {
            Form::Published => self.path(name).is_file(),
            Form::Gguf(files) => files.has(name),
        }
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
        let read = match &self.form {
            Form::Published => serde_json::from_str(&self.text(name)?),
            Form::Gguf(files) => {
                let json = files.json(name)?;
                serde_json::from_value(
                    json.ok_or_else(|| self.error(format!("{name} is missing")))?,
                )
            }
        };
        read.map_err(|e| ModelError::File {
            file: self.path(name),
            what: e.to_string(),
        })
    }

    /// The tensors under the hub's names: those of GGUF files, or of `model.safetensors`, or of the shards that
    /// `model.safetensors.index.json` names, or of the file or index that `config.json` names instead.
    pub fn tensors(
        &self,
        names: Names,
        quantization: Quantization,
    ) -> Result<Arc<dyn Source>, ModelError> {
        match &self.form {
            Form::Published => Ok(Arc::new(self.safetensors(names, quantization)?)),
            Form::Gguf(files) => Ok(Arc::new(files.tensors(quantization)?)),
        }
    }

    fn safetensors(
        &self,
        names: Names,
        quantization: Quantization,
    ) -> Result<SafetensorsFiles, ModelError> {
        let files = self.weight_files()?;
        let tensors = SafetensorsFiles::open(&files, names, quantization)?;
        let named = self.weights_name()?;
        if named.ends_with(INDEX_ENDING) {
            let stored = tensors.stored_names().collect::<HashSet<_>>();
            let index = self.index(&named)?;
            if let Some((name, shard)) = index
                .iter()
                .find(|(name, _)| !stored.contains(name.as_str()))
            {
                return Err(ModelError::File {
                    file: self.path(&named),
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
        Ok(Weights::new(tensors, dtype, device))
    }

    /// Size of the weights' files, bytes.
    pub fn weight_bytes(&self) -> Result<u64, ModelError> {
        if let Form::Gguf(files) = &self.form {
            return Ok(files.bytes());
        }
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
        let named = self.weights_name()?;
        if !named.ends_with(INDEX_ENDING) {
            return Ok(vec![self.path(&named)]);
        }
        let mut shards = self.index(&named)?.into_values().collect::<Vec<_>>();
        shards.sort();
        shards.dedup();
        for shard in &shards {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(self.error(format!(
                    "{named} names the shard {shard}, expected a file's name"
                )));
            }
            if !self.has(shard) {
                return Err(self.error(format!("{shard} is missing, which {named} names")));
            }
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }

    /// The file of weights, or the index of those that they are in: what `config.json` names, or the one with the usual name.
    fn weights_name(&self) -> Result<String, ModelError> {
        let config: Value = self.json(CONFIG)?;
        let named = match &config[NAMED] {
            Value::Null => {
                let there = [SINGLE, INDEX].into_iter().find(|name| self.has(name));
                let missing = || format!("{SINGLE} is missing (and there is no {INDEX})");
                return match there {
                    Some(name) => Ok(name.to_string()),
                    None => Err(self.error(missing())),
                };
            }
            named => named,
        };
        let expected = "the name of a safetensors file, or of the index of several";
        let name = named.as_str().filter(|name| {
            let known = [WEIGHTS_ENDING, INDEX_ENDING].iter();
            Path::new(name).file_name() == Some(name.as_ref())
                && known.clone().any(|ending| name.ends_with(ending))
        });
        match name {
            Some(name) if self.has(name) => Ok(name.to_string()),
            Some(name) => Err(self.error(format!(
                "{name} is missing, which {CONFIG} names as {NAMED}"
            ))),
            None => Err(Unsupported::new(NAMED, named, expected).of(self.path(CONFIG))),
        }
    }

    /// The shard of each tensor, as the index `name` has it.
    fn index(&self, name: &str) -> Result<BTreeMap<String, String>, ModelError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        Ok(self.json::<Index>(name)?.weight_map)
    }

    /// Says which file and tensor an error of the tensor library is about.
    pub fn weight_error(&self, error: candle_core::Error) -> ModelError {
        let keys = match &self.form {
            Form::Published => CONFIG,
            Form::Gguf(_) => "the keys of the file",
        };
        self.error(format!("weights do not fit {keys}: {error}"))
    }
}
