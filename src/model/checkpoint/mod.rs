//! The files of a model: a directory as a model hub publishes it, or GGUF files, which are read as if they were one.
//! Safetensors, GGUF and JSON only; nothing in them is ever executed.
//!
//! - this file: a checkpoint's files by name
//! - `place`: from what the user gives to the folder or file that is meant
//! - `folder`: what lies in a folder that is no whole checkpoint
//! - `content`: what a file is that is not what its name says
//! - `quantised`: ways of quantising, and which of them are not read

mod content;
mod folder;
mod place;
mod quantised;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

use super::decoder::Unsupported;
use super::gguf::{GgufFiles, ENDING};
use super::json;
use super::weights::{
    safetensors_format, Names, Quantization, SafetensorsFiles, Scheme, Source, Weights,
};
use super::{device_name, ModelError};
use crate::cache::{out_of_memory, told_bytes, DeviceMemory, TensorError};
use crate::files;
use content::foreign_text;
use folder::Folder;

pub use content::{foreign, obstacle};
pub use place::expand_home;
pub use quantised::INSTEAD;

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
    /// Opens a directory with a `config.json` and safetensors, or with the `.gguf` files of one decoder and at most one vision tower
    /// (`mmproj`), or the `.gguf` file of a decoder, beside which its tower may lie. `~/` in front is the user's home, and the root
    /// of a model in a hub's cache is its snapshot.
    ///
    /// An error says what lies there instead.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let dir = place::resolve(path)?;
        if !dir.is_dir() {
            return Self::open_file(dir);
        }
        let published = Self {
            dir,
            form: Form::Published,
        };
        let fail = |what: String| published.error(what);
        let folder = Folder::look(&published.dir).map_err(|e| fail(e.to_string()))?;
        if let Some(refusal) = folder.refusal() {
            return Err(fail(refusal));
        }
        let whole = folder.has(CONFIG) && folder.has_safetensors();
        let found = if whole {
            None
        } else {
            GgufFiles::find(&published.dir)?
        };
        if let Some(files) = found {
            let form = Form::Gguf(Box::new(files));
            return Ok(Self { form, ..published });
        }
        if let Some(Err(unsupported)) = folder.config.as_ref().map(quantised::scheme) {
            return Err(unsupported.of(published.path(CONFIG)));
        }
        if folder.has(CONFIG) {
            // Weights that are not there are missed when they are asked for.
            return Ok(published);
        }
        Err(fail(match obstacle(&published.path(CONFIG)) {
            Some(what) => format!("{CONFIG} is {what}"),
            None => format!(
                "{CONFIG} is missing, and no file ends in .{ENDING}; {}",
                folder.says()
            ),
        }))
    }

    fn open_file(file: PathBuf) -> Result<Self, ModelError> {
        let ending = file.extension().unwrap_or_default();
        if let ("safetensors" | "json" | "jinja", Some(dir)) =
            (ending.to_string_lossy().as_ref(), file.parent())
        {
            let dir = dir.display();
            return Err(ModelError::File {
                what: format!(
                    "one file of a checkpoint, expected the folder that it lies in: {dir}"
                ),
                file,
            });
        }
        let form = Form::Gguf(Box::new(GgufFiles::open(&file)?));
        Ok(Self { dir: file, form })
    }

    /// Fails if it is the GGUF file of a decoder alone, or if it cannot be told which vision tower beside it is meant.
    pub fn check_vision(&self) -> Result<(), ModelError> {
        match &self.form {
            Form::Gguf(files) => files.check_projector(),
            Form::Published => Ok(()),
        }
    }

    /// Model files that lie there and are not used.
    pub fn left_alone(&self) -> Vec<PathBuf> {
        match &self.form {
            Form::Gguf(_) => Vec::new(),
            Form::Published => super::gguf::files_of(&self.dir).unwrap_or_default(),
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
            return Err(self.missing(name));
        }
        let fail = |what: String| ModelError::File {
            file: self.path(name),
            what,
        };
        let text = files::text(&self.path(name)).map_err(|e| fail(e.to_string()))?;
        match foreign_text(&text) {
            Some(what) => Err(fail(what.to_string())),
            None => Ok(text),
        }
    }

    /// That the file `name`, which is needed, is not there.
    fn missing(&self, name: &str) -> ModelError {
        match obstacle(&self.path(name)) {
            Some(what) => self.error(format!("{name} is {what}")),
            None => self.error(format!("{name} is missing")),
        }
    }

    /// A JSON file that must be there.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        let read = match &self.form {
            Form::Published => {
                let text = self.text(name)?;
                json::of_text(&text).map_err(|what| foreign(text.as_bytes()).unwrap_or(what))
            }
            Form::Gguf(files) => {
                let json = files.json(name)?.ok_or_else(|| self.missing(name))?;
                json::of_value(&json).map_err(|unsupported| unsupported.to_string())
            }
        };
        read.map_err(|what| ModelError::File {
            file: self.path(name),
            what,
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

    /// How the weights are quantised, where `config.json` says that they are.
    pub fn scheme(&self) -> Result<Option<Scheme>, ModelError> {
        match &self.form {
            Form::Gguf(_) => Ok(None),
            Form::Published => quantised::scheme(&self.json(CONFIG)?)
                .map_err(|unsupported| unsupported.of(self.path(CONFIG))),
        }
    }

    fn safetensors(
        &self,
        names: Names,
        quantization: Quantization,
    ) -> Result<SafetensorsFiles, ModelError> {
        let files = self.weight_files()?;
        let scheme = self.scheme()?;
        let tensors = SafetensorsFiles::open(&files, names, quantization, scheme.as_ref())?;
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
                return Err(match obstacle(&self.path(shard)) {
                    Some(what) => self.error(format!("{shard}, which {named} names, is {what}")),
                    None => self.error(format!("{shard} is missing, which {named} names")),
                });
            }
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }

    /// That there are no weights, and what lies there instead.
    fn no_weights(&self) -> ModelError {
        for name in [SINGLE, INDEX] {
            if let Some(what) = obstacle(&self.path(name)) {
                return self.error(format!("{name} is {what}"));
            }
        }
        let missing = format!("{SINGLE} is missing (and there is no {INDEX})");
        match Folder::look(&self.dir) {
            Ok(folder) => self.error(format!("{missing}; {}", folder.says())),
            Err(_) => self.error(missing),
        }
    }

    /// The file of weights, or the index of those that they are in: what `config.json` names, or the one with the usual name.
    fn weights_name(&self) -> Result<String, ModelError> {
        let config: Value = self.json(CONFIG)?;
        let named = match &config[NAMED] {
            Value::Null => {
                let there = [SINGLE, INDEX].into_iter().find(|name| self.has(name));
                return there.map(str::to_string).ok_or_else(|| self.no_weights());
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
            Some(name) => Err(match obstacle(&self.path(name)) {
                Some(what) => self.error(format!(
                    "{name}, which {CONFIG} names as {NAMED}, is {what}"
                )),
                None => self.error(format!(
                    "{name} is missing, which {CONFIG} names as {NAMED}"
                )),
            }),
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

    /// Says which file and tensor an error of the tensor library is about, that comes of loading weights onto `device`.
    pub fn weight_error(&self, error: candle_core::Error, device: &Device) -> ModelError {
        if out_of_memory(&error) {
            return self.too_large(device);
        }
        let error = TensorError::describe(&error);
        let (keys, mlx) = match &self.form {
            Form::Published => (CONFIG, self.is_of_mlx()),
            Form::Gguf(_) => ("the keys of the file", false),
        };
        let why = match mlx {
            true => " (they were written by MLX, which turns matrices and packs them: take the model that it was made from)",
            false => "",
        };
        self.error(format!("weights do not fit {keys}: {error}{why}"))
    }

    /// The weights do not fit into the memory of the GPU `device`.
    fn too_large(&self, device: &Device) -> ModelError {
        let size = told_bytes(self.weight_bytes().unwrap_or_default());
        let found = DeviceMemory::of(device).map_or(String::new(), |memory| {
            format!(", of which {} after a part of them", memory.told())
        });
        self.error(format!(
            "the weights ({size} in the files) do not fit into the memory of {}{found}; expected a smaller model, or blocks instead \
             of floats (quantization)",
            device_name(device)
        ))
    }

    /// Whether the first file of weights says that MLX wrote it.
    fn is_of_mlx(&self) -> bool {
        let files = self.weight_files().unwrap_or_default();
        let format = files.first().and_then(|file| safetensors_format(file));
        format.as_deref() == Some("mlx")
    }
}
