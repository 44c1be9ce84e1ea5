//! The GGUF files of a model as the files of a published directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::decoder::Paths;
use super::projector::{self, Projector, IMAGE};
use super::template::with_images;
use super::tensors::{GgufTensors, Part};
use super::vocabulary::added_token;
use super::Gguf;
use crate::model::decoder::llama;
use crate::model::weights::Quantization;
use crate::model::ModelError;

/// A decoder, and a vision tower with its connector if there is one.
#[derive(Debug, Clone)]
pub struct GgufFiles {
    decoder: Arc<Gguf>,
    text_config: Json,
    config: llama::Config,
    projector: Option<Projector>,
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

impl GgufFiles {
    /// A decoder alone.
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        Self::new(Arc::new(Gguf::open(file)?), None)
    }

    /// The decoder and the projector of a directory, of which there must be one and at most one; nothing if no file is GGUF.
    pub fn find(dir: &Path) -> Result<Option<Self>, ModelError> {
        let fail = |what: String| ModelError::Directory {
            dir: dir.to_path_buf(),
            what,
        };
        let (mut decoders, mut projectors) = (Vec::new(), Vec::new());
        for file in gguf_files(dir).map_err(|e| fail(e.to_string()))? {
            let gguf = Gguf::open(&file)?;
            match gguf.architecture.as_str() {
                projector::ARCHITECTURE => projectors.push(Arc::new(gguf)),
                _ => decoders.push(Arc::new(gguf)),
            }
        }
        if decoders.is_empty() && projectors.is_empty() {
            return Ok(None);
        }
        match (decoders.as_slice(), projectors.as_slice()) {
            ([decoder], []) => Ok(Some(Self::new(decoder.clone(), None)?)),
            ([decoder], [projector]) => {
                let projector = Projector::new(projector.clone())?;
                Ok(Some(Self::new(decoder.clone(), Some(projector))?))
            }
            _ => Err(fail(format!(
                "it has no {CONFIG}, and its .gguf files hold {} decoders and {} projectors, expected one decoder and at most one projector",
                decoders.len(),
                projectors.len()
            ))),
        }
    }

    fn new(decoder: Arc<Gguf>, projector: Option<Projector>) -> Result<Self, ModelError> {
        let (text_config, config) = decoder.decoder_config()?;
        Ok(Self {
            decoder,
            text_config,
            config,
            projector,
        })
    }

    pub fn has_projector(&self) -> bool {
        self.projector.is_some()
    }

    /// Whether the published directory would have the file `name`.
    pub fn has(&self, name: &str) -> bool {
        match name {
            PREPROCESSOR => self.projector.is_some(),
            _ => [CONFIG, TOKENIZER, TOKENIZER_CONFIG, GENERATION].contains(&name),
        }
    }

    /// The file whose keys are those of the published file `name`.
    pub fn path(&self, name: &str) -> &Path {
        match &self.projector {
            Some(projector) if [CONFIG, PREPROCESSOR].contains(&name) => &projector.gguf.file,
            _ => &self.decoder.file,
        }
    }

    /// The published file `name`, if there would be one.
    pub fn json(&self, name: &str) -> Result<Option<Json>, ModelError> {
        let json = match (name, &self.projector) {
            (CONFIG, None) => self.text_config.clone(),
            (CONFIG, Some(projector)) => projector.config(&self.decoder, &self.text_config)?,
            (TOKENIZER, _) => self.tokenizer_json()?,
            (TOKENIZER_CONFIG, _) => self.tokenizer_config()?,
            (GENERATION, _) => self.decoder.generation_config()?,
            (PREPROCESSOR, Some(projector)) => projector.processor()?,
            _ => return Ok(None),
        };
        Ok(Some(json))
    }

    /// A projector that goes with decoders which know no images.
    fn plain_decoder(&self) -> bool {
        let takes_plain = Projector::takes_plain_decoders;
        self.projector.as_ref().is_some_and(takes_plain)
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
        let paths = match &self.projector {
            None => Paths::ALONE,
            Some(projector) => projector.paths(),
        };
        let decoder = Part {
            gguf: self.decoder.clone(),
            entries: self
                .decoder
                .decoder_entries(&self.config, paths)?
                .into_iter()
                .collect(),
            stored: Box::new(move |name| paths.stored(name)),
        };
        let mut parts = vec![decoder];
        if let Some(projector) = self.projector.clone() {
            parts.push(Part {
                gguf: projector.gguf.clone(),
                entries: projector.entries()?.into_iter().collect(),
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
        let projector = self.projector.as_ref().map(|projector| &projector.gguf);
        let files = [Some(&self.decoder), projector];
        files
            .into_iter()
            .flatten()
            .map(|gguf| gguf.bytes.len() as u64)
            .sum()
    }
}

/// The files of `dir` that end in `.gguf`, in the order of their names.
fn gguf_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "gguf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
