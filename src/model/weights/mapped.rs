//! Safetensors files, mapped into memory and read tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::SafeTensors;

use super::{Listed, Matrix, Names, Quantization, Source, Stored};
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
        let opened = File::open(file).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the file must not be changed while it is mapped, as for the weights of any checkpoint.
        let bytes = unsafe { Mmap::map(&opened) }.map_err(|e| fail(e.to_string()))?;
        let (start, header) = header(&bytes).map_err(|e| {
            let length = bytes.len();
            fail(format!(
                "not a whole safetensors file ({length} bytes): {e}"
            ))
        })?;
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
                "the tensor {}: element type is {other:?}, expected F32, F16 or BF16",
                self.whence(entry)
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

    /// Says which tensor an error is about.
    fn explain(&self, name: &str, error: candle_core::Error) -> candle_core::Error {
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
            dtype: format!("{:?}", entry.dtype),
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

/// Where the numbers begin, and what the header says; the crate checks it against the file's length.
fn header(bytes: &[u8]) -> std::result::Result<(usize, Metadata), safetensors::SafeTensorError> {
    SafeTensors::deserialize(bytes)?;
    let (length, metadata) = SafeTensors::read_metadata(bytes)?;
    Ok((length + size_of::<u64>(), metadata))
}
