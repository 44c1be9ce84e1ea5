//! The GGUF files of a model as the files of a published directory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::decoder::Paths;
use super::projector::{Projector, IMAGE};
use super::split::{file_name, PartName};
use super::template::with_images;
use super::tensors::{GgufTensors, Part};
use super::vocabulary::added_token;
use super::Gguf;
use crate::cache::told_bytes;
use crate::model::checkpoint::{list, MODEL_FILE, PROJECTOR_FILE};
use crate::model::decoder;
use crate::model::weights::{block_name, Quantization};
use crate::model::ModelError;

/// A decoder, and what lies beside it.
#[derive(Debug, Clone)]
pub struct GgufFiles {
    decoder: Arc<Gguf>,
    text_config: Json,
    config: decoder::Config,
    beside: Beside,
}

/// The vision tower beside a decoder.
#[derive(Debug, Clone)]
enum Beside {
    Nothing,
    Projector(Projector),
    /// Which one is meant, or whether one is, cannot be told: why. The decoder alone can be used.
    Unclear(String),
}

/// What the names of GGUF files end in, in small letters or large.
pub const ENDING: &str = "gguf";

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const VIDEO_PREPROCESSOR: &str = "video_preprocessor_config.json";

impl GgufFiles {
    /// The decoder `file`, and the projector that goes with it: `projector`, or one in its folder, or one in the folder `place`, within
    /// which the decoder lies.
    pub fn open(file: &Path, place: &Path, projector: Option<PathBuf>) -> Result<Self, ModelError> {
        let decoder = Gguf::open(file)?;
        if decoder.is_projector() {
            let what =
                "a vision tower (mmproj), expected the file of the decoder that it lies beside";
            return Err(decoder.fail(what.to_string()));
        }
        let mut files = Self::new(Arc::new(decoder), Beside::Nothing)?;
        files.beside = match projector {
            Some(chosen) => files.projector_of(&chosen)?,
            None => {
                let folder = file.parent().filter(|it| !it.as_os_str().is_empty());
                let folder = folder.unwrap_or(place);
                match files.look_beside(file, folder) {
                    Beside::Nothing if folder != place => files.look_beside(file, place),
                    found => found,
                }
            }
        };
        Ok(files)
    }

    /// The decoder and the projector of a directory, of which there must be one and at most one, unless `projector` is the one;
    /// nothing if no file is GGUF.
    pub fn find(dir: &Path, projector: Option<PathBuf>) -> Result<Option<Self>, ModelError> {
        let fail = |what: String| ModelError::Directory {
            dir: dir.to_path_buf(),
            what,
        };
        let models = models_of(dir).map_err(|e| fail(e.to_string()))?;
        let opened = models.into_iter().map(Opened::new);
        let (projectors, mut decoders) = opened.partition::<Vec<_>, _>(Opened::is_projector);
        if let [_, _, ..] = decoders.as_slice() {
            return Err(fail(format!(
                "it holds the GGUF files of several decoders, expected one, or the name of the one that is meant as {MODEL_FILE}: {}",
                told(&decoders)
            )));
        }
        let Some(decoder) = decoders.pop() else {
            return match projectors.is_empty() {
                true => Ok(None),
                false => Err(fail(format!(
                    "it holds vision towers alone, the GGUF file of the decoder is missing: {}",
                    told(&projectors)
                ))),
            };
        };
        let mut files = Self::new(decoder.gguf?, Beside::Nothing)?;
        files.beside = match (projector, <[_; 1]>::try_from(projectors)) {
            (Some(chosen), _) => files.projector_of(&chosen)?,
            (None, Ok([only])) => Beside::Projector(Projector::new(only.gguf?)?),
            (None, Err(several)) => {
                files.choose(several.into_iter().map(|it| Projector::new(it.gguf?)))
            }
        };
        Ok(Some(files))
    }

    /// The projector that was chosen.
    fn projector_of(&self, file: &Path) -> Result<Beside, ModelError> {
        let gguf = Gguf::open(file)?;
        if !gguf.is_projector() {
            let what = "a decoder, expected the file of a vision tower (mmproj)";
            return Err(gguf.fail(what.to_string()));
        }
        let projector = Projector::new(Arc::new(gguf))?;
        self.check_fit(&projector)?;
        Ok(Beside::Projector(projector))
    }

    fn new(decoder: Arc<Gguf>, beside: Beside) -> Result<Self, ModelError> {
        let (text_config, config) = decoder.decoder_config()?;
        Ok(Self {
            decoder,
            text_config,
            config,
            beside,
        })
    }

    /// The projector in `folder` that goes with the decoder of `file`. Other models' files may lie there, whole or not.
    fn look_beside(&self, file: &Path, folder: &Path) -> Beside {
        let others = models_of(folder).unwrap_or_default();
        let others = others.iter().filter(|other| !same_file(other, file));
        let projectors = others.filter_map(|other| match Gguf::open(other) {
            Ok(gguf) if gguf.is_projector() => Some(Projector::new(Arc::new(gguf))),
            Ok(_) => None,
            Err(error) if is_called_projector(other) => Some(Err(error)),
            Err(_) => None,
        });
        self.choose(projectors)
    }

    /// Of several projectors, the one that goes with the decoder.
    fn choose(&self, projectors: impl Iterator<Item = Result<Projector, ModelError>>) -> Beside {
        let (mut fitting, mut why_not) = (Vec::new(), Vec::new());
        for projector in projectors {
            match projector.and_then(|it| self.check_fit(&it).map(|()| it)) {
                Ok(projector) => fitting.push(projector),
                Err(error) => why_not.push(error.to_string()),
            }
        }
        // A decoder with a token for images was made for a projector that needs one.
        if fitting.iter().any(|it| !it.takes_plain_decoders()) {
            fitting.retain(|it| !it.takes_plain_decoders());
        }
        match (fitting.as_slice(), why_not.as_slice()) {
            ([], []) => Beside::Nothing,
            ([], why_not) => Beside::Unclear(format!(
                "no vision tower beside it goes with it: {}",
                why_not.join("; ")
            )),
            ([only], _) => Beside::Projector(only.clone()),
            (several, _) => Beside::Unclear(format!(
                "several vision towers beside it go with it, expected one, or the name of the one that is meant as {PROJECTOR_FILE}: {}",
                list(&several.iter().map(|it| it.gguf.told()).collect::<Vec<_>>())
            )),
        }
    }

    /// Fails for a projector of another decoder.
    fn check_fit(&self, projector: &Projector) -> Result<(), ModelError> {
        projector.check_width(self.config.hidden_size())?;
        projector.config(&self.decoder, &self.text_config)?;
        Ok(())
    }

    fn projector(&self) -> Option<&Projector> {
        match &self.beside {
            Beside::Projector(projector) => Some(projector),
            Beside::Nothing | Beside::Unclear(_) => None,
        }
    }

    /// Fails if there is no projector, or if it is not clear which one is meant.
    pub fn check_projector(&self) -> Result<(), ModelError> {
        match &self.beside {
            Beside::Projector(_) => Ok(()),
            Beside::Nothing => Err(self.decoder.fail(
                "a decoder alone: the mmproj file of its vision tower is missing in its directory"
                    .to_string(),
            )),
            Beside::Unclear(why) => Err(self.decoder.fail(why.clone())),
        }
    }

    /// Whether the published directory would have the file `name`.
    pub fn has(&self, name: &str) -> bool {
        match name {
            PREPROCESSOR => self.projector().is_some(),
            VIDEO_PREPROCESSOR => self.projector().is_some_and(Projector::has_video_processor),
            _ => [CONFIG, TOKENIZER, TOKENIZER_CONFIG, GENERATION].contains(&name),
        }
    }

    /// The file whose keys are those of the published file `name`.
    pub fn path(&self, name: &str) -> &Path {
        match self.projector() {
            Some(projector) if [CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR].contains(&name) => {
                projector.gguf.file()
            }
            _ => self.decoder.file(),
        }
    }

    /// The published file `name`, if there would be one.
    pub fn json(&self, name: &str) -> Result<Option<Json>, ModelError> {
        let json = match (name, self.projector()) {
            (CONFIG, None) => self.text_config.clone(),
            (CONFIG, Some(projector)) => projector.config(&self.decoder, &self.text_config)?,
            (TOKENIZER, _) => self.tokenizer_json()?,
            (TOKENIZER_CONFIG, _) => self.tokenizer_config()?,
            (GENERATION, _) => self.decoder.generation_config()?,
            (PREPROCESSOR, Some(projector)) => projector.processor()?,
            (VIDEO_PREPROCESSOR, Some(projector)) => return projector.video_processor(),
            _ => return Ok(None),
        };
        Ok(Some(json))
    }

    /// A projector that goes with decoders which know no images.
    fn plain_decoder(&self) -> bool {
        let takes_plain = Projector::takes_plain_decoders;
        self.projector().is_some_and(takes_plain)
    }

    fn tokenizer_json(&self) -> Result<Json, ModelError> {
        let mut json = self.decoder.tokenizer_json()?;
        if self.plain_decoder() && self.decoder.token_id(IMAGE)?.is_none() {
            let id = self.decoder.vocabulary_size()?;
            if let Some(added) = json["added_tokens"].as_array_mut() {
                added.push(added_token(id, IMAGE, true));
            }
        }
        Ok(json)
    }

    fn tokenizer_config(&self) -> Result<Json, ModelError> {
        let mut json = self.decoder.tokenizer_config()?;
        if self.plain_decoder() {
            json["chat_template"] = with_images(json["chat_template"].as_str()).into();
        }
        Ok(json)
    }

    /// The tensors under published names.
    pub fn tensors(&self, quantization: Quantization) -> Result<GgufTensors, ModelError> {
        let paths = match self.projector() {
            None => Paths::ALONE,
            Some(projector) => projector.paths(),
        };
        let names = self.decoder.decoder_names();
        let decoder = Part {
            gguf: self.decoder.clone(),
            entries: self
                .decoder
                .decoder_entries(&self.config, paths)?
                .into_iter()
                .collect(),
            stored: Box::new(move |name| paths.stored(names, name)),
        };
        let mut parts = vec![decoder];
        if let Some(projector) = self.projector().cloned() {
            parts.push(Part {
                gguf: projector.gguf.clone(),
                entries: projector.entries()?,
                stored: Box::new(move |name| projector.stored(name)),
            });
        }
        Ok(GgufTensors {
            parts,
            quantization,
        })
    }

    /// Size of the files, bytes.
    pub fn bytes(&self) -> u64 {
        let projector = self.projector().map(|projector| &projector.gguf);
        let files = [Some(&self.decoder), projector];
        files
            .into_iter()
            .flatten()
            .map(|gguf| gguf.size_in_bytes())
            .sum()
    }
}

/// The files of `dir` that end in `.gguf`, in the order of their names. Links to nothing are among them, so that they are told.
pub fn files_of(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let ending = path.extension().unwrap_or_default();
        if ending.eq_ignore_ascii_case(ENDING) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The models of `dir`: a file of each, of one that is split the first of its parts that is there.
fn models_of(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut files, mut split) = (files_of(dir)?, HashSet::new());
    files.retain(|file| PartName::of(file).is_none_or(|name| split.insert(name.first())));
    Ok(files)
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Whether a file that cannot be read has the name of a projector, as llama.cpp's converter gives it.
fn is_called_projector(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.to_ascii_lowercase().contains("mmproj")
}

/// A file of a folder, with what it holds or why that cannot be told.
struct Opened {
    file: PathBuf,
    gguf: Result<Arc<Gguf>, ModelError>,
}

impl Opened {
    fn new(file: PathBuf) -> Self {
        let gguf = Gguf::open(&file).map(Arc::new);
        Self { file, gguf }
    }

    /// What cannot be read is what its name says.
    fn is_projector(&self) -> bool {
        match &self.gguf {
            Ok(gguf) => gguf.is_projector(),
            Err(_) => is_called_projector(&self.file),
        }
    }
}

fn told(files: &[Opened]) -> String {
    let one = |opened: &Opened| match &opened.gguf {
        Ok(gguf) => gguf.told(),
        Err(ModelError::File { what, .. }) => format!("{} ({what})", file_name(&opened.file)),
        Err(error) => format!("{} ({error})", file_name(&opened.file)),
    };
    list(&files.iter().map(one).collect::<Vec<_>>())
}

impl Gguf {
    /// Name, architecture, size and types of the elements, the most bytes first.
    fn told(&self) -> String {
        let mut types = BTreeMap::new();
        for info in self.header.tensors.values() {
            *types.entry(block_name(info.dtype)).or_insert(0) += info.bytes.len();
        }
        let mut types = types.into_iter().collect::<Vec<_>>();
        types.sort_by_key(|&(_, bytes)| Reverse(bytes));
        let types = types.into_iter().map(|(name, _)| name);
        let parts = match self.others.len() {
            0 => String::new(),
            more => format!("{} parts, ", more + 1),
        };
        format!(
            "{} ({parts}{}, {}, {})",
            file_name(self.file()),
            self.architecture,
            told_bytes(self.size_in_bytes()),
            types.collect::<Vec<_>>().join(" ")
        )
    }
}
