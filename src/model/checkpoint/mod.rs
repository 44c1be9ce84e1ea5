//! The files of a model: a directory as a model hub publishes it, or GGUF files, which are read as if they were one.
//! Safetensors, GGUF and JSON only; nothing in them is ever executed.
//!
//! - this file: a checkpoint's files by name
//! - `place`: from what the user gives to the folder or file that is meant
//! - `chosen`: which files are meant, where there are several
//! - `hub`: a model's name on a hub, in the cache on this machine
//! - `folder`: what lies in a folder that is no whole checkpoint
//! - `weight_files`: which files the weights are in
//! - `content`: what a file is that is not what its name says
//! - `quantised`: ways of quantising, and which of them are not read

mod chosen;
mod content;
mod folder;
mod hub;
mod place;
mod quantised;
mod weight_files;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;

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
use weight_files::is_published;

pub use chosen::{ChosenFiles, MODEL_FILE, PROJECTOR_FILE};
pub use content::{foreign, obstacle};
pub use folder::list;
pub use hub::HubModel;
pub use quantised::INSTEAD;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS_ENDING: &str = ".safetensors";
const TOKENIZER: &str = "tokenizer.json";
const INDEX_ENDING: &str = ".safetensors.index.json";
/// Where pipelines of diffusers keep the tokenizer and the chat template of their language model, where these do not lie beside `config.json`.
const TOKENIZER_FOLDER: &str = "text_tokenizer";
/// The field of `config.json` that names another file of weights, or another index, than the usual ones.
const NAMED: &str = "transformers_weights";

/// A checkpoint as a model hub publishes it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    form: Form,
    /// The file of weights, or the index of several, that was chosen of safetensors.
    weights: Option<String>,
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
    /// (`mmproj`), or the `.gguf` file of a decoder, beside which its tower may lie. `~/` in front is the user's home, the root of a
    /// model in a hub's cache is its snapshot, and so is the model's name on the hub (`ORG/NAME`) where nothing else is called so.
    ///
    /// An error says what lies there instead.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_chosen(path, &ChosenFiles::default())
    }

    /// The same where several files could be meant, by the names of those that are.
    pub fn open_chosen(path: &Path, chosen: &ChosenFiles) -> Result<Self, ModelError> {
        let dir = place::resolve(path)?;
        if !dir.is_dir() {
            chosen.check_file(&dir)?;
            return Self::open_file(dir, chosen);
        }
        let weights = match chosen.model_in(&dir)? {
            Some(file) if is_published(&file.to_string_lossy()) => {
                Some(chosen.shallow(&file, &dir)?)
            }
            Some(file) => {
                let projector = chosen.projector_in(&dir)?;
                return Self::of_gguf(file.clone(), GgufFiles::open(&file, &dir, projector));
            }
            None => None,
        };
        let published = Self {
            dir,
            form: Form::Published,
            weights,
        };
        let fail = |what: String| published.error(what);
        let folder = Folder::look(&published.dir).map_err(|e| fail(e.to_string()))?;
        if let Some(refusal) = folder.refusal() {
            return Err(fail(refusal));
        }
        let whole = folder.has(CONFIG) && folder.has_safetensors();
        if !whole && published.weights.is_none() {
            let projector = chosen.projector_in(&published.dir)?;
            if let Some(found) = GgufFiles::find(&published.dir, projector).transpose() {
                return Self::of_gguf(published.dir, found);
            }
        }
        if let Some(Err(unsupported)) = folder.config.as_ref().map(quantised::scheme) {
            return Err(unsupported.of(published.path(CONFIG)));
        }
        published.check_download(&folder)?;
        if folder.has(CONFIG) {
            chosen.check_published(&published.dir)?;
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

    /// Of the GGUF files that were found at `place`, in a hub's cache with what to do where they are not whole.
    fn of_gguf(place: PathBuf, found: Result<GgufFiles, ModelError>) -> Result<Self, ModelError> {
        match found {
            Ok(files) => Ok(Self {
                dir: place,
                form: Form::Gguf(Box::new(files)),
                weights: None,
            }),
            Err(ModelError::File { file, what }) => {
                let folder = file.parent().unwrap_or(Path::new(""));
                let model = HubModel::of_snapshot(folder);
                let advice = model.and_then(|model| model.unfinished(folder));
                let what = [what].into_iter().chain(advice);
                let what = what.collect::<Vec<_>>().join("; ");
                Err(ModelError::File { file, what })
            }
            Err(other) => Err(other),
        }
    }

    fn open_file(file: PathBuf, chosen: &ChosenFiles) -> Result<Self, ModelError> {
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
        let place = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let projector = chosen.projector_in(place)?;
        let found = GgufFiles::open(&file, place, projector);
        Self::of_gguf(file, found)
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
            Form::Published => self.published_path(name),
            Form::Gguf(files) => files.path(name).to_path_buf(),
        }
    }

    fn published_path(&self, name: &str) -> PathBuf {
        let beside = self.dir.join(name);
        let inner = self.dir.join(TOKENIZER_FOLDER).join(name);
        let is_inner = !beside.is_file() && !self.dir.join(TOKENIZER).is_file() && inner.is_file();
        match is_inner {
            true => inner,
            false => beside,
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
        let what = obstacle(&self.path(name)).unwrap_or_else(|| "missing".to_string());
        self.error(match HubModel::of_snapshot(&self.dir) {
            Some(model) => format!("{name} is {what}; {}", model.to_complete()),
            None => format!("{name} is {what}"),
        })
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
