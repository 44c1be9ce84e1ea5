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

use super::{Listed, Matrix, Names, Quantization, Source, Stored};
use crate::cache::{out_of_memory, TensorError};
use crate::files;
use crate::model::checkpoint::{foreign, INSTEAD};
use crate::model::ModelError;

struct Shard {
    file: PathBuf,
    bytes: Mmap,
}

/// A tensor in a shard.
struct Entry {
    shard: usize,
    stored: String,
    dtype: safetensors::Dtype,
    dims: Vec<usize>,
    bytes: Range<usize>,
}

/// The tensors of one checkpoint, in one file or several.
pub struct SafetensorsFiles {
    shards: Vec<Shard>,
    /// By the hub's name.
    entries: HashMap<String, Entry>,
    quantization: Quantization,
}

impl SafetensorsFiles {
    /// Maps `files` and checks their headers against their lengths. Of a name that two files hold, the error names both.
    pub fn open(
        files: &[PathBuf],
        names: Names,
        quantization: Quantization,
    ) -> std::result::Result<Self, ModelError> {
        let mut found = Self {
            shards: Vec::new(),
            entries: HashMap::new(),
            quantization,
        };
        for file in files {
            found.add(file, names)?;
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
        self.entries.values().map(|entry| entry.stored.as_str())
    }

    fn stored(&self, name: &str, rows: Option<&[u32]>) -> Result<Stored<'_>> {
        let Some(entry) = self.entries.get(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        let format = match entry.dtype {
            safetensors::Dtype::F32 => GgmlDType::F32,
            safetensors::Dtype::F16 => GgmlDType::F16,
            safetensors::Dtype::BF16 => GgmlDType::BF16,
            other => bail!(
                "the tensor {}: element type is {other}{}, expected F32, F16 or BF16; {INSTEAD}",
                self.whence(entry),
                called(other)
            ),
        };
        Ok(Stored {
            map: &self.shards[entry.shard].bytes,
            bytes: entry.bytes.clone(),
            format,
            dims: &entry.dims,
            rows: rows.map(<[u32]>::to_vec),
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
        self.entries.get(name).map(|entry| entry.dims.clone())
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let dense = self.stored(name, rows)?.dense(dtype);
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
        let stored = self.stored(name, rows)?;
        let width = stored.dims.last().copied().unwrap_or(0);
        let matrix = match self.quantization.blocks(width) {
            Some(blocks) => stored
                .quantised(blocks, device)
                .map(|blocks| Matrix::Quantised(Arc::new(blocks))),
            None => stored
                .dense(dtype)
                .and_then(|tensor| Ok(Matrix::Dense(tensor.to_device(device)?))),
        };
        matrix.map_err(|error| self.explain(name, error))
    }

    fn check(&self, name: &str) -> Result<()> {
        self.stored(name, None).map(|_| ())
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let width = self.entries.get(name)?.dims.last()?;
        self.quantization.blocks(*width)
    }

    fn same(&self, one: &str, other: &str) -> bool {
        match (self.stored(one, None), self.stored(other, None)) {
            (Ok(one), Ok(other)) => one.same(&other),
            _ => false,
        }
    }

    fn list(&self) -> Vec<Listed> {
        let one = |(name, entry): (&String, &Entry)| Listed {
            name: name.clone(),
            dtype: entry.dtype.to_string(),
            bytes: entry.bytes.len(),
        };
        self.entries.iter().map(one).collect()
    }

    fn describe(&self, name: &str) -> String {
        match (self.entries.get(name), self.shards.as_slice()) {
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
