//! GGUF files, as llama.cpp writes them: a decoder, alone or with the vision tower of its `mmproj` file beside it.
//!
//! They are read as the published checkpoint that they were made from: keys become its JSON files, tensors get its names.
//!
//! - this file: a mapped file and its keys
//! - `split`: a model in several files
//! - `header`, `value`: what lies where in the file
//! - `files`: the files of a model as those of a published directory
//! - `decoder`: the decoder's configuration and the names of its tensors; `lfm2`: the same of LFM2's
//! - `rope`: scaled rotary frequencies, which are told by a tensor
//! - `vocabulary`, `sentencepiece`: the tokenizer
//! - `template`: the chat template of decoders that know no images
//! - `projector`: configuration and names of vision towers and connectors
//! - `spelling`: names in the file and names in published checkpoints
//! - `tensors`: the numbers

mod decoder;
mod files;
mod header;
mod lfm2;
mod projector;
mod rope;
mod sentencepiece;
mod spelling;
mod split;
mod template;
mod tensors;
mod value;
mod vocabulary;

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::checkpoint::obstacle;
use super::decoder::Unsupported;
use super::ModelError;
use header::{Header, TensorInfo};
use value::Value;

pub use files::{files_of, GgufFiles, ENDING};

/// A GGUF file, mapped into memory, with its header checked; or several that are the parts of one, with the keys of the first.
#[derive(Debug)]
pub struct Gguf {
    mapped: Mapped,
    /// The parts behind the first.
    others: Vec<Mapped>,
    /// With the tensors of all parts.
    header: Header,
    architecture: String,
}

#[derive(Debug)]
struct Mapped {
    file: PathBuf,
    bytes: Mmap,
}

impl Gguf {
    /// Maps `file` and checks its header against its length. Of the parts of a model any can be given: all are read.
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        let part = Self::map(file)?;
        let mut gguf = match part.split()? {
            None => part,
            Some(split) => part.joined(split)?,
        };
        gguf.architecture = gguf.text("general.architecture")?.to_string();
        Ok(gguf)
    }

    /// The file alone.
    fn map(file: &Path) -> Result<Self, ModelError> {
        let fail = |what: String| ModelError::File {
            file: file.to_path_buf(),
            what,
        };
        let bytes = crate::files::map(file)
            .map_err(|e| fail(obstacle(file).unwrap_or_else(|| e.to_string())))?;
        let header = Header::parse(&bytes).map_err(fail)?;
        let file = file.to_path_buf();
        Ok(Self {
            mapped: Mapped { file, bytes },
            others: Vec::new(),
            header,
            architecture: String::new(),
        })
    }

    /// The first file.
    fn file(&self) -> &Path {
        &self.mapped.file
    }

    /// The file that a tensor is in.
    fn part(&self, info: &TensorInfo) -> &Mapped {
        let others = info.part.checked_sub(1);
        let other = others.and_then(|number| self.others.get(number));
        other.unwrap_or(&self.mapped)
    }

    /// Size of its files, bytes.
    fn size_in_bytes(&self) -> u64 {
        let parts = std::iter::once(&self.mapped).chain(&self.others);
        parts.map(|part| part.bytes.len() as u64).sum()
    }

    /// Whether it holds a vision tower with its connector and no decoder.
    fn is_projector(&self) -> bool {
        self.architecture == projector::ARCHITECTURE
    }

    fn value<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.header.get(&self.mapped.bytes, key) else {
            return Ok(None);
        };
        let described = value.clone();
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.unsupported(key, described.describe(), expected)),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.value(key, "a whole number", |value| {
            value.whole().and_then(|size| usize::try_from(size).ok())
        })
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.value(key, "a positive float", |value| {
            value.float().filter(|&x| x.is_finite() && x > 0.0)
        })
    }

    fn float(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_float(key)?.ok_or_else(|| self.missing(key))
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.value(key, "a truth value", Value::truth)
    }

    fn id(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.value(key, "a token's id", |value| {
            value.whole().and_then(|id| u32::try_from(id).ok())
        })
    }

    fn optional_text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.value(key, "a string", Value::text)
    }

    fn text(&self, key: &str) -> Result<&str, ModelError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    fn list(&self, key: &str) -> Result<impl ExactSizeIterator<Item = Value<'_>>, ModelError> {
        self.value(key, "an array", Value::list)?
            .ok_or_else(|| self.missing(key))
    }

    /// The elements of an array that must be there, each read by `read`, which gives what is `expected`.
    fn elements<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Vec<T>, ModelError> {
        self.optional_elements(key, expected, read)?
            .ok_or_else(|| self.missing(key))
    }

    fn optional_elements<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(list) = self.value(key, "an array", Value::list)? else {
            return Ok(None);
        };
        let element = |(i, value): (usize, Value<'a>)| {
            let described = value.clone();
            read(value).ok_or_else(|| {
                self.unsupported(&format!("{key}[{i}]"), described.describe(), expected)
            })
        };
        list.enumerate()
            .map(element)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The tensor of this name in the file, which must be there.
    fn tensor(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        let tensor = self.header.tensors.get(name);
        tensor.ok_or_else(|| self.missing(name))
    }

    fn fail(&self, what: String) -> ModelError {
        ModelError::File {
            file: self.file().to_path_buf(),
            what,
        }
    }

    fn missing(&self, name: &str) -> ModelError {
        self.fail(format!("{name} is missing"))
    }

    fn unsupported(
        &self,
        field: &str,
        value: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> ModelError {
        Unsupported::new(field, value, expected).of(self.file().to_path_buf())
    }
}
