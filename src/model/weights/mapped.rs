//! Safetensors files, mapped into memory and read tensor by tensor.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};

use super::packed::{self, Packed, Scheme};
use super::{Bands, Listed, Matrix, Names, Quantization, Source, Stored};
use crate::cache::{out_of_memory, TensorError};
use crate::files;
use crate::model::checkpoint::{foreign, INSTEAD};
use crate::model::ModelError;

pub(super) struct Shard {
    file: PathBuf,
    pub bytes: Mmap,
}

/// A tensor in a shard.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub shard: usize,
    /// Its name in the file.
    pub stored: String,
    pub dtype: safetensors::Dtype,
    pub dims: Vec<usize>,
    pub bytes: Range<usize>,
}

impl Entry {
    /// Its numbers, if they are floats that are read as they are.
    pub fn floats<'a>(&'a self, shards: &'a [Shard]) -> Option<Stored<'a>> {
        let format = match self.dtype {
            safetensors::Dtype::F32 => GgmlDType::F32,
            safetensors::Dtype::F16 => GgmlDType::F16,
            safetensors::Dtype::BF16 => GgmlDType::BF16,
            _ => return None,
        };
        Some(Stored {
            map: &shards[self.shard].bytes,
            bytes: self.bytes.clone(),
            format,
            dims: &self.dims,
            rows: None,
        })
    }
}

/// The tensors of one checkpoint, in one file or several.
pub struct SafetensorsFiles {
    shards: Vec<Shard>,
    /// By the hub's name.
    entries: HashMap<String, Entry>,
    /// Matrices for which several tensors stand, by the hub's name of their `weight`.
    packed: HashMap<String, Packed>,
    quantization: Quantization,
}

impl SafetensorsFiles {
    /// Maps `files` and checks their headers against their lengths. Of a name that two files hold, the error names both. Matrices
    /// may be stored as `scheme` says.
    pub fn open(
        files: &[PathBuf],
        names: Names,
        quantization: Quantization,
        scheme: Option<&Scheme>,
    ) -> std::result::Result<Self, ModelError> {
        let mut found = Self {
            shards: Vec::new(),
            entries: HashMap::new(),
            packed: HashMap::new(),
            quantization,
        };
        for file in files {
            found.add(file, names)?;
        }
        if let Some(scheme) = scheme {
            let packed = packed::take(&mut found.entries, scheme, &found.shards);
            found.packed = packed.map_err(|(entry, what)| ModelError::File {
                file: found.shards[entry.shard].file.clone(),
                what: format!("the tensor {}: {what}", entry.stored),
            })?;
        }
        Ok(found)
    }

    fn add(&mut self, file: &Path, names: Names) -> std::result::Result<(), ModelError> {
        let fail = |what: String| ModelError::File {
            file: file.to_path_buf(),
            what,
        };
        let bytes = files::map(file).map_err(|e| fail(e.to_string()))?;
        let (start, header) = header(&bytes).map_err(fail)?;
        for (stored, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                dims: info.shape.clone(),
                bytes: start + from..start + to,
                stored,
            };
            let name = names.hub(&entry.stored);
            if let Some(other) = self.entries.get(&name) {
                return Err(fail(format!(
                    "the tensor {} is there twice, the other time as {} in {}",
                    entry.stored,
                    other.stored,
                    self.shards
                        .get(other.shard)
                        .map_or(file, |shard| &shard.file)
                        .display()
                )));
            }
            self.entries.insert(name, entry);
        }
        self.shards.push(Shard {
            file: file.to_path_buf(),
            bytes,
        });
        Ok(())
    }

    /// Names as the files spell them.
    pub fn stored_names(&self) -> impl Iterator<Item = &str> {
        let packed = self.packed.values().flat_map(Packed::entries);
        let all = self.entries.values().chain(packed);
        all.map(|entry| entry.stored.as_str())
    }

    fn stored(&self, name: &str, rows: Option<&[u32]>) -> Result<Stored<'_>> {
        let Some(entry) = self.entries.get(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        let Some(stored) = entry.floats(&self.shards) else {
            bail!(
                "the tensor {}: element type is {}{}, expected F32, F16 or BF16; {INSTEAD}",
                self.whence(entry),
                entry.dtype,
                called(entry.dtype)
            );
        };
        Ok(Stored {
            rows: rows.map(<[u32]>::to_vec),
            ..stored
        })
    }

    /// Says which tensor an error is about; that the GPU is full is about all of them.
    fn explain(&self, name: &str, error: candle_core::Error) -> candle_core::Error {
        if out_of_memory(&error) {
            return error;
        }
        let error = TensorError::describe(&error);
        candle_core::Error::msg(format!("the tensor {}: {error}", self.describe(name)))
    }

    fn whence(&self, entry: &Entry) -> String {
        let file = &self.shards[entry.shard].file;
        format!("{} in {}", entry.stored, file.display())
    }
}

impl Source for SafetensorsFiles {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.packed.get(name) {
            Some(packed) => Some(packed.dims().to_vec()),
            None => self.entries.get(name).map(|entry| entry.dims.clone()),
        }
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let dense = match self.packed.get(name) {
            Some(packed) => packed
                .open(&self.shards, rows)
                .and_then(|opened| opened.dense(dtype)),
            None => self.stored(name, rows)?.dense(dtype),
        };
        dense
            .map_err(|error| self.explain(name, error))?
            .to_device(device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        let Some(blocks) = self.blocks(name) else {
            return Ok(Matrix::Dense(self.tensor(name, rows, dtype, device)?));
        };
        let quantised = match self.packed.get(name) {
            Some(packed) => packed.open(&self.shards, rows).and_then(|opened| {
                match packed.blocks() == Some(blocks) {
                    true => opened.repacked(device),
                    false => opened.quantised(blocks, device),
                }
            }),
            None => self.stored(name, rows)?.quantised(blocks, device),
        };
        let quantised = quantised.map_err(|error| self.explain(name, error))?;
        Ok(Matrix::Quantised(Arc::new(quantised)))
    }

    fn check(&self, name: &str) -> Result<()> {
        match self.packed.contains_key(name) {
            true => Ok(()),
            false => self.stored(name, None).map(|_| ()),
        }
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let width = *self.shape(name)?.last()?;
        let same = self.packed.get(name).and_then(Packed::blocks);
        match self.quantization {
            Quantization::None => None,
            wanted => same.or_else(|| wanted.blocks(width)),
        }
    }

    fn half(&self, name: &str) -> Option<DType> {
        match self.entries.get(name)?.dtype {
            safetensors::Dtype::F16 => Some(DType::F16),
            safetensors::Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    fn same(&self, one: &str, other: &str) -> bool {
        match (self.stored(one, None), self.stored(other, None)) {
            (Ok(one), Ok(other)) => one.same(&other),
            _ => false,
        }
    }

    fn list(&self) -> Vec<Listed> {
        let one = |name: &String, entry: &Entry| Listed {
            name: name.clone(),
            dtype: entry.dtype.to_string(),
            bytes: entry.bytes.len(),
        };
        let plain = self.entries.iter().map(|(name, entry)| one(name, entry));
        let packed = self
            .packed
            .iter()
            .flat_map(|(name, packed)| packed.entries().map(move |entry| one(name, entry)));
        plain.chain(packed).collect()
    }

    fn describe(&self, name: &str) -> String {
        let packed = self.packed.get(name).map(Packed::main);
        match (self.entries.get(name).or(packed), self.shards.as_slice()) {
            (Some(entry), _) => self.whence(entry),
            (None, [only]) => format!("{name} in {}", only.file.display()),
            (None, several) => format!("{name} in any of {} files", several.len()),
        }
    }
}

/// What people call an element type, in brackets, where its name does not say it.
fn called(dtype: safetensors::Dtype) -> &'static str {
    use safetensors::Dtype;
    match dtype {
        Dtype::F8_E4M3
        | Dtype::F8_E5M2
        | Dtype::F8_E8M0
        | Dtype::F8_E4M3FNUZ
        | Dtype::F8_E5M2FNUZ => " (FP8)",
        Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 => " (a float of fewer than 8 bits)",
        Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 => {
            " (an integer, as quantised weights have it)"
        }
        _ => "",
    }
}

/// Where the numbers begin, and what the header says. An error says why it is no whole file.
fn header(bytes: &[u8]) -> std::result::Result<(usize, Metadata), String> {
    if let Some(what) = foreign(bytes) {
        return Err(format!("{what}; expected a safetensors file"));
    }
    const PREFIX: usize = size_of::<u64>();
    let total = bytes.len();
    let cut = |what: String| format!("not a whole safetensors file ({total} bytes): {what}");
    let Some((length, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(cut(format!(
            "expected at least {PREFIX}, its header's length"
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        return Err(cut(format!(
            "its header is {length} bytes long, but {} follow",
            rest.len()
        )));
    }
    let length = length as usize;
    match SafeTensors::read_metadata(bytes) {
        Ok((length, metadata)) => Ok((PREFIX + length, metadata)),
        Err(SafeTensorError::MetadataIncompleteBuffer) => Err(cut(format!(
            "its tensors take {} bytes, but {} follow the header",
            data_bytes(&rest[..length]),
            rest.len() - length
        ))),
        Err(error) => Err(cut(error.to_string())),
    }
}

/// The bytes that the tensors of a header take, which has been read once.
fn data_bytes(header: &[u8]) -> u64 {
    let header = serde_json::from_slice::<serde_json::Value>(header).unwrap_or_default();
    let entries = header.as_object().into_iter().flatten();
    let ends = entries.filter_map(|(_, entry)| entry["data_offsets"][1].as_u64());
    ends.max().unwrap_or(0)
}

/// What the header of a safetensors file names as the library that wrote it (`pt`, `mlx`).
pub fn safetensors_format(file: &Path) -> Option<String> {
    let bytes = files::map(file).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
    metadata.metadata().as_ref()?.get("format").cloned()
}
