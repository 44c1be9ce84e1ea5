//! The tensors of GGUF files by published names, read when they are asked for.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor};

use super::header::TensorInfo;
use super::Gguf;
use crate::cache::{out_of_memory, TensorError};
use crate::model::weights::{block_name, Bands, Listed, Matrix, Quantization, Source, Stored};

/// A published tensor and what the file has of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Names in the file, and what lies there: one, but for tensors that converters cut.
    pub pieces: Vec<(String, TensorInfo)>,
    pub form: Form,
}

/// How what lies in the file becomes the published tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// It is the same.
    Whole,
    /// The rows of so many heads lie in pairs: `[heads, half, 2, ..]` in the file, `[heads, 2, half, ..]` published.
    Paired(usize),
    /// Pieces that follow one another along the first dimension.
    Rows,
    /// Pieces `[out, in, side, side]`, one for each frame of a patch: `[out, in, frames, side, side]` published.
    Frames,
    /// What a convolution of each channel for itself multiplies with: `[channels, width]`, published as `[channels, 1, width]`.
    Channels,
    /// Patches `[out, in, side, side]` of which the published matrix has the colours last: `[out, side * side * in]`.
    Patches,
}

impl Entry {
    pub fn new(stored: &str, info: &TensorInfo, form: Form) -> Self {
        Self {
            pieces: vec![(stored.to_string(), info.clone())],
            form,
        }
    }

    /// Joins pieces; the error names one that does not fit to the first.
    pub fn joined(
        pieces: Vec<(String, TensorInfo)>,
        form: Form,
    ) -> std::result::Result<Self, String> {
        let first = &pieces[0].1.dims;
        let same = |dims: &[usize]| match form {
            Form::Rows => dims[1..] == first[1..],
            _ => dims == first,
        };
        match pieces.iter().find(|(_, info)| !same(&info.dims)) {
            None => Ok(Self { pieces, form }),
            Some((name, info)) => Err(format!(
                "the tensor {name} has the shape {:?}, expected one that goes with {first:?} of {}",
                info.dims, pieces[0].0
            )),
        }
    }

    fn first(&self) -> &TensorInfo {
        &self.pieces[0].1
    }

    /// Whether the numbers are not one row after another as published.
    fn is_put_together(&self) -> bool {
        self.pieces.len() > 1 || matches!(self.form, Form::Channels | Form::Patches)
    }

    /// The published shape.
    fn dims(&self) -> Vec<usize> {
        let mut dims = self.first().dims.clone();
        match self.form {
            Form::Whole | Form::Paired(_) => {}
            Form::Rows => {
                let rows = self.pieces.iter().map(|(_, info)| info.dims[0]);
                dims[0] = rows.fold(0, usize::saturating_add);
            }
            Form::Frames => dims.insert(dims.len().min(2), self.pieces.len()),
            Form::Channels => dims.insert(dims.len().min(1), 1),
            Form::Patches => {
                let columns = dims.iter().skip(1).copied().fold(1, usize::saturating_mul);
                dims.truncate(1);
                dims.push(columns);
            }
        }
        dims
    }
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
        if entry.is_put_together() {
            bail!(
                "the tensor {} is not stored as published",
                self.describe(name)
            );
        }
        let rows = match entry.form {
            Form::Paired(heads) => {
                let order = unpaired(entry.first().dims[0], heads);
                match rows {
                    None => Some(order),
                    // A row beyond the last one stays one.
                    Some(rows) => {
                        let at = |&row: &u32| order.get(row as usize).copied().unwrap_or(row);
                        Some(rows.iter().map(at).collect())
                    }
                }
            }
            _ => rows.map(<[u32]>::to_vec),
        };
        Ok(gguf.stored(entry.first(), rows))
    }

    fn dense(&self, stored: &Stored, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        stored
            .dense(dtype)
            .and_then(|tensor| tensor.to_device(device))
            .map_err(|error| self.explain(name, error))
    }

    /// A tensor that is not stored as published.
    fn joined(
        &self,
        (gguf, entry): (&Gguf, &Entry),
        rows: Option<&[u32]>,
        dtype: DType,
    ) -> Result<Tensor> {
        let pieces = entry.pieces.iter();
        let pieces = pieces
            .map(|(_, info)| gguf.stored(info, None).dense(dtype))
            .collect::<Result<Vec<_>>>()?;
        let whole = match entry.form {
            Form::Frames => Tensor::stack(&pieces, 2)?,
            Form::Channels => pieces[0].unsqueeze(1)?,
            Form::Patches => pieces[0].permute((0, 2, 3, 1))?.flatten_from(1)?,
            _ => Tensor::cat(&pieces, 0)?,
        };
        match rows {
            None => Ok(whole),
            Some(rows) => whole.index_select(&Tensor::new(rows, &Device::Cpu)?, 0),
        }
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
        self.find(name).map(|(_, entry)| entry.dims())
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        match self.find(name).filter(|(_, entry)| entry.is_put_together()) {
            None => self.dense(&self.stored(name, rows)?, name, dtype, device),
            Some(cut) => self
                .joined(cut, rows, dtype)
                .and_then(|tensor| tensor.to_device(device))
                .map_err(|error| self.explain(name, error)),
        }
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
        let stored = self.stored(name, rows)?;
        let quantised = match blocks {
            blocks if blocks == stored.format => stored.blocks(device),
            blocks => stored.quantised(blocks, device),
        };
        let quantised = quantised.map_err(|error| self.explain(name, error))?;
        Ok(Matrix::Quantised(Arc::new(quantised)))
    }

    /// The header has been read, and with it every type.
    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let (_, entry) = self
            .find(name)
            .filter(|(_, entry)| !entry.is_put_together())?;
        let stored = entry.first().dtype;
        let is_float = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16].contains(&stored);
        match (is_float, self.quantization) {
            (false, Quantization::None) => None,
            (false, _) => Some(stored),
            (true, wanted) => wanted.blocks(*entry.first().dims.last()?),
        }
    }

    fn half(&self, name: &str) -> Option<DType> {
        let (_, entry) = self.find(name)?;
        let stored = entry.first().dtype;
        let alike = entry.pieces.iter().all(|(_, piece)| piece.dtype == stored);
        match stored {
            GgmlDType::F16 if alike => Some(DType::F16),
            GgmlDType::BF16 if alike => Some(DType::BF16),
            _ => None,
        }
    }

    fn stored_blocks(&self, name: &str) -> Option<GgmlDType> {
        let (_, entry) = self.find(name)?;
        let stored = entry.first().dtype;
        self.blocks(name).filter(|&blocks| blocks == stored)
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
            dtype: block_name(entry.first().dtype).to_string(),
            bytes: entry.pieces.iter().map(|(_, info)| info.bytes.len()).sum(),
        };
        entries.map(one).collect()
    }

    fn describe(&self, name: &str) -> String {
        if let Some((gguf, entry)) = self.find(name) {
            let (stored, info) = &entry.pieces[0];
            return format!("{stored} in {}", gguf.part(info).file.display());
        }
        let missing = self.parts.iter().find_map(|part| {
            let stored = (part.stored)(name)?;
            Some(format!("{stored} in {}", part.gguf.file().display()))
        });
        missing.unwrap_or_else(|| name.to_string())
    }
}
