//! The tensors of GGUF files by published names, read when they are asked for.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor};

use super::header::TensorInfo;
use super::Gguf;
use crate::cache::{out_of_memory, TensorError};
use crate::model::weights::{block_name, Bands, Listed, Matrix, Quantization, Source, Stored};

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name in the file.
    pub stored: String,
    pub info: TensorInfo,
    /// Heads whose rows lie in pairs: `[heads, half, 2, ..]` in the file, `[heads, 2, half, ..]` in a published checkpoint.
    pub paired: Option<usize>,
}

/// The name in a file of a published name, if it has one.
pub type StoredName = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A file and those of its tensors that are used, by published name.
pub struct Part {
    pub gguf: Arc<Gguf>,
    pub entries: HashMap<String, Entry>,
    /// What errors call a published name that is not there.
    pub stored: StoredName,
}

/// The tensors of one file or of several.
pub struct GgufTensors {
    pub parts: Vec<Part>,
    pub quantization: Quantization,
}

impl Gguf {
    /// What lies at `info`, with the rows in this order if one is given.
    pub(super) fn stored<'a>(&'a self, info: &'a TensorInfo, rows: Option<Vec<u32>>) -> Stored<'a> {
        Stored {
            map: &self.part(info).bytes,
            bytes: info.bytes.clone(),
            format: info.dtype,
            dims: &info.dims,
            rows,
        }
    }
}

impl GgufTensors {
    fn find(&self, name: &str) -> Option<(&Gguf, &Entry)> {
        let find = |part: &'_ Part| part.entries.contains_key(name);
        let part = self.parts.iter().find(|part| find(part))?;
        Some((&part.gguf, part.entries.get(name)?))
    }

    fn stored(&self, name: &str, rows: Option<&[u32]>) -> Result<Stored<'_>> {
        let Some((gguf, entry)) = self.find(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        let rows = match entry.paired {
            None => rows.map(<[u32]>::to_vec),
            Some(heads) => {
                let order = unpaired(entry.info.dims[0], heads);
                match rows {
                    None => Some(order),
                    // A row beyond the last one stays one.
                    Some(rows) => {
                        let at = |&row: &u32| order.get(row as usize).copied().unwrap_or(row);
                        Some(rows.iter().map(at).collect())
                    }
                }
            }
        };
        Ok(gguf.stored(&entry.info, rows))
    }

    fn dense(&self, stored: &Stored, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        stored
            .dense(dtype)
            .and_then(|tensor| tensor.to_device(device))
            .map_err(|error| self.explain(name, error))
    }

    /// Says which tensor an error is about; that the GPU is full is about all of them.
    fn explain(&self, name: &str, error: candle_core::Error) -> candle_core::Error {
        if out_of_memory(&error) {
            return error;
        }
        let error = TensorError::describe(&error);
        candle_core::Error::msg(format!("the tensor {}: {error}", self.describe(name)))
    }
}

/// Of each row of a published checkpoint, the row of the file. Pairs are two rows of `rows / heads`, an even number.
fn unpaired(rows: usize, heads: usize) -> Vec<u32> {
    let head_dim = rows / heads.max(1);
    let half = (head_dim / 2).max(1);
    let stored = |row: usize| {
        let (head, place) = (row / head_dim.max(1), row % head_dim.max(1));
        (head * head_dim + place % half * 2 + place / half) as u32
    };
    (0..rows).map(stored).collect()
}

impl Source for GgufTensors {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.find(name).map(|(_, entry)| entry.info.dims.clone())
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.dense(&self.stored(name, rows)?, name, dtype, device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        let stored = self.stored(name, rows)?;
        let quantised = match self.blocks(name) {
            None => return Ok(Matrix::Dense(self.dense(&stored, name, dtype, device)?)),
            Some(blocks) if blocks == stored.format => stored.blocks(device),
            Some(blocks) => stored.quantised(blocks, device),
        };
        let quantised = quantised.map_err(|error| self.explain(name, error))?;
        Ok(Matrix::Quantised(Arc::new(quantised)))
    }

    /// The header has been read, and with it every type.
    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let (_, entry) = self.find(name)?;
        let stored = entry.info.dtype;
        let is_float = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16].contains(&stored);
        match (is_float, self.quantization) {
            (false, Quantization::None) => None,
            (false, _) => Some(stored),
            (true, wanted) => wanted.blocks(*entry.info.dims.last()?),
        }
    }

    fn same(&self, one: &str, other: &str) -> bool {
        match (self.stored(one, None), self.stored(other, None)) {
            (Ok(one), Ok(other)) => one.same(&other),
            _ => false,
        }
    }

    fn list(&self) -> Vec<Listed> {
        let entries = self.parts.iter().flat_map(|part| &part.entries);
        let one = |(name, entry): (&String, &Entry)| Listed {
            name: name.clone(),
            dtype: block_name(entry.info.dtype).to_string(),
            bytes: entry.info.bytes.len(),
        };
        entries.map(one).collect()
    }

    fn describe(&self, name: &str) -> String {
        if let Some((gguf, entry)) = self.find(name) {
            let file = &gguf.part(&entry.info).file;
            return format!("{} in {}", entry.stored, file.display());
        }
        let missing = self.parts.iter().find_map(|part| {
            let stored = (part.stored)(name)?;
            Some(format!("{stored} in {}", part.gguf.file().display()))
        });
        missing.unwrap_or_else(|| name.to_string())
    }
}
