//! Safetensors files, mapped into memory and read tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::Metadata;
use safetensors::SafeTensors;

use super::{Matrix, Names, Quantization, Source, Stored};
use crate::model::ModelError;

/// Bytes that are converted at a time. What has been read is given back to the system, so that memory never holds a tensor twice.
const BAND: usize = 4 << 20;

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

    fn read(&self, name: &str, rows: Option<&[u32]>, dtype: DType) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        let tensor = match dtype {
            DType::F32 => self.converted(entry, |x: f32| x)?,
            DType::F16 => self.converted(entry, f16::from_f32)?,
            DType::BF16 => self.converted(entry, bf16::from_f32)?,
            other => bail!("weights as {other:?}, expected f32, f16 or bf16"),
        };
        match rows {
            None => Ok(tensor),
            Some(rows) => {
                let index = Tensor::from_slice(rows, rows.len(), tensor.device())?;
                tensor.index_select(&index, 0)
            }
        }
    }

    /// The numbers of a tensor, each by way of f32, which holds every type that is read exactly.
    fn converted<T: WithDType>(&self, entry: &Entry, to: fn(f32) -> T) -> Result<Tensor> {
        let bytes = &self.shards[entry.shard].bytes;
        let mut values = Vec::<T>::with_capacity(entry.dims.iter().product());
        let mut at = entry.bytes.start;
        let mut wide = Vec::new();
        while at < entry.bytes.end {
            let end = (at + BAND).min(entry.bytes.end);
            widen(&bytes[at..end], entry.dtype, &mut wide).map_err(|what| {
                candle_core::Error::msg(format!("the tensor {}: {what}", self.whence(entry)))
            })?;
            values.extend(wide.iter().map(|&x| to(x)));
            // SAFETY: the mapping is read-only, so that what is dropped from memory is read from the file again if need be.
            let advised =
                unsafe { bytes.unchecked_advise_range(UncheckedAdvice::DontNeed, at, end - at) };
            if let Err(error) = advised {
                tracing::debug!("mapped pages cannot be given back: {error}");
            }
            at = end;
        }
        Tensor::from_vec(values, entry.dims.as_slice(), &Device::Cpu)
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
        self.read(name, rows, dtype)?.to_device(device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        self.quantization
            .apply(self.read(name, rows, dtype)?, device)
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let width = self.entries.get(name)?.dims.last()?;
        self.quantization.blocks(*width)
    }

    fn stored(&self) -> Vec<Stored> {
        let one = |(name, entry): (&String, &Entry)| Stored {
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

/// Little-endian numbers as f32, into `wide`.
fn widen(
    bytes: &[u8],
    dtype: safetensors::Dtype,
    wide: &mut Vec<f32>,
) -> std::result::Result<(), String> {
    wide.clear();
    match dtype {
        safetensors::Dtype::F32 => {
            wide.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)));
        }
        safetensors::Dtype::BF16 => {
            let numbers = bytes.as_chunks().0.iter();
            wide.extend(numbers.map(|&b| bf16::from_le_bytes(b).to_f32()));
        }
        safetensors::Dtype::F16 => {
            use half::slice::HalfFloatSliceExt;
            let numbers = bytes.as_chunks().0.iter();
            let numbers = numbers.map(|&b| f16::from_le_bytes(b)).collect::<Vec<_>>();
            wide.resize(numbers.len(), 0.0);
            numbers.convert_to_f32_slice(wide);
        }
        other => {
            return Err(format!(
                "element type is {other:?}, expected F32, F16 or BF16"
            ))
        }
    }
    Ok(())
}
