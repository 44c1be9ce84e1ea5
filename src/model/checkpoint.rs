//! The files of a model directory. Safetensors and JSON only; nothing in them is ever executed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ModelError;

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

    /// The weights: `model.safetensors`, or the shards that `model.safetensors.index.json` names, as `dtype`.
    ///
    /// The CPU has no bf16 products in candle: there, bf16 weights are rounded to bf16 and come back as f32.
    pub fn weights<'a>(&self, dtype: DType, device: &Device) -> Result<VarBuilder<'a>, ModelError> {
        let files = self.weight_files()?;
        for file in &files {
            check_safetensors(file)?;
        }
        if dtype == DType::BF16 && device.is_cpu() {
            tracing::warn!("no bf16 arithmetic on the CPU: weights are rounded to bf16, products are computed in f32");
            return self.rounded_weights(&files, dtype, device);
        }
        // SAFETY: the files are mapped for reading; they must not be changed while the model runs, as with every mapped
        // checkpoint. Their headers have been checked against their lengths above.
        let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, device) };
        weights.map_err(|e| self.error(e.to_string()))
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

    /// All weights rounded to `dtype` and widened to f32.
    fn rounded_weights<'a>(
        &self,
        files: &[PathBuf],
        dtype: DType,
        device: &Device,
    ) -> Result<VarBuilder<'a>, ModelError> {
        let mut weights = HashMap::new();
        for file in files {
            for (name, tensor) in candle_core::safetensors::load(file, device)? {
                weights.insert(name, tensor.to_dtype(dtype)?.to_dtype(DType::F32)?);
            }
        }
        Ok(VarBuilder::from_tensors(weights, DType::F32, device))
    }

    fn weight_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        const SINGLE: &str = "model.safetensors";
        const INDEX: &str = "model.safetensors.index.json";
        if self.has(SINGLE) {
            return Ok(vec![self.path(SINGLE)]);
        }
        if !self.has(INDEX) {
            return Err(self.error(format!("{SINGLE} is missing (and there is no {INDEX})")));
        }
        let index: Value = self.json(INDEX)?;
        let Some(map) = index["weight_map"].as_object() else {
            return Err(ModelError::File {
                file: self.path(INDEX),
                what: "weight_map is missing".to_string(),
            });
        };
        let mut shards = map
            .values()
            .filter_map(Value::as_str)
            .map(str::to_string)
            .collect::<Vec<_>>();
        shards.sort();
        shards.dedup();
        for shard in &shards {
            if !self.has(shard) {
                return Err(self.error(format!("{shard} is missing, which {INDEX} names")));
            }
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }

    /// Says which file and tensor an error of the tensor library is about.
    pub fn weight_error(&self, error: candle_core::Error) -> ModelError {
        self.error(format!("weights do not fit config.json: {error}"))
    }
}

/// Refuses a safetensors file whose header does not fit its length.
fn check_safetensors(file: &Path) -> Result<(), ModelError> {
    let fail = |what: String| ModelError::File {
        file: file.to_path_buf(),
        what,
    };
    let length = fs::metadata(file).map_err(|e| fail(e.to_string()))?.len();
    // SAFETY: mapped for reading the header only; see `weights`.
    let bytes =
        unsafe { memmap2::Mmap::map(&fs::File::open(file).map_err(|e| fail(e.to_string()))?) }
            .map_err(|e| fail(e.to_string()))?;
    safetensors::SafeTensors::deserialize(&bytes).map_err(|e| {
        fail(format!(
            "not a whole safetensors file ({length} bytes): {e}"
        ))
    })?;
    Ok(())
}
