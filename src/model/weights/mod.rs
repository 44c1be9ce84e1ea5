//! The tensors of a checkpoint by name, whatever file format they come from.
//!
//! - this file: [`Weights`], which model code walks as it walks candle's `VarBuilder`
//! - `mapped`: safetensors files, mapped into memory
//! - `bands`: numbers as floats or blocks, band by band
//! - `stored`: floats and blocks in a mapped file
//! - `blocks`: blocks as they are stored
//! - `packed`: matrices as integers or 8-bit floats with scales, for which several tensors stand
//! - `finite`: numbers that are none
//! - `memory`: tensors that are in memory already
//! - `names`: the spellings of published tensor names
//! - `hollow`: shapes without numbers, to check a checkpoint without reading it
//! - `quantization`: weights as blocks of small integers
//! - `panels`: blocks as the CPU multiplies with them
//! - `planes`: blocks as the GPU's kernels read them
//! - `repacked`: what blocks take beside themselves once they are multiplied with

mod bands;
mod blocks;
mod finite;
mod hollow;
mod mapped;
mod memory;
mod names;
mod packed;
mod panels;
mod planes;
mod quantization;
mod repacked;
mod stored;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::quantized::GgmlDType;
use candle_core::{bail, CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use half::bf16;
use rayon::prelude::*;

pub use bands::Bands;
pub use hollow::{Hollow, Kept};
pub use mapped::{safetensors_format, SafetensorsFiles};
pub use memory::TensorMap;
pub use names::Names;
pub use packed::Scheme;
pub use panels::{products, Instructions, Panels, Rounded};
pub use planes::Planes;
pub use quantization::{block_name, Matrix, Quantization};
pub use repacked::repacked_bytes;
pub use stored::Stored;

/// Where tensors come from.
pub trait Source: Send + Sync {
    /// A tensor's shape, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// A tensor as `dtype` on `device`, in memory of its own; its first dimension in the order of `rows`, if they are given.
    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor>;

    /// A matrix `[out, in]` to multiply with: quantised where the file or the user has it so.
    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix>;

    /// Fails where a tensor's numbers cannot be read, whatever becomes of them: its element type is none of floats and blocks.
    fn check(&self, name: &str) -> Result<()>;

    /// The blocks that [`Self::matrix`] gives; none: floats.
    fn blocks(&self, name: &str) -> Option<GgmlDType>;

    /// The 16-bit type that a tensor's numbers are stored in, if they are.
    fn half(&self, _name: &str) -> Option<DType> {
        None
    }

    /// The blocks that a matrix is stored as, if [`Self::matrix`] gives them as they are.
    fn stored_blocks(&self, _name: &str) -> Option<GgmlDType> {
        None
    }

    /// Whether two tensors are known to hold the same numbers.
    fn same(&self, one: &str, other: &str) -> bool;

    /// What errors call a tensor: its name in the file, and the file.
    fn describe(&self, name: &str) -> String;

    /// Every tensor as it is stored; of several that stand for a matrix each, under its name.
    fn list(&self) -> Vec<Listed>;
}

/// A tensor as it is stored.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In the hub's spelling.
    pub name: String,
    /// As the file format names it.
    pub dtype: String,
    pub bytes: usize,
}

/// The type that weights of `dtype` are kept and computed in on `device`: the CPU has no bf16 products in candle.
pub fn arithmetic(dtype: DType, device: &Device) -> DType {
    match dtype {
        DType::BF16 if device.is_cpu() => DType::F32,
        other => other,
    }
}

/// A place in the tree of a checkpoint's tensors.
#[derive(Clone)]
pub struct Weights {
    source: Arc<dyn Source>,
    prefix: String,
    /// Type of the arithmetic.
    dtype: DType,
    /// Numbers are rounded to bf16 though the arithmetic is wider.
    rounded: bool,
    device: Device,
    /// Memory of all that has been taken, bytes.
    taken: Arc<AtomicUsize>,
}

impl Weights {
    /// All of `source`, for arithmetic in `dtype` on `device`.
    ///
    /// Where [`arithmetic`] is wider than `dtype`, weights are rounded to `dtype` all the same.
    pub fn new(source: Arc<dyn Source>, dtype: DType, device: &Device) -> Self {
        let computed = arithmetic(dtype, device);
        let rounded = computed != dtype;
        if rounded {
            tracing::warn!("no bf16 arithmetic on the CPU: weights are rounded to bf16, products are computed in f32");
        }
        Self {
            source,
            prefix: String::new(),
            dtype: computed,
            rounded,
            device: device.clone(),
            taken: Arc::default(),
        }
    }

    /// Memory of all tensors that have been taken from anywhere in this tree, bytes.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// The branch `name`.
    pub fn pp(&self, name: impl ToString) -> Self {
        Self {
            prefix: self.path(&name.to_string()),
            ..self.clone()
        }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn contains(&self, name: &str) -> bool {
        self.source.shape(&self.path(name)).is_some()
    }

    /// Whether the tensor `name` here and there is known to hold the same numbers.
    pub fn same(&self, other: &Self, name: &str) -> bool {
        self.source.same(&self.path(name), &other.path(name))
    }

    /// A tensor of exactly this shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let name = self.checked(name, &shape.into())?;
        self.taking(self.source.tensor(&name, None, self.dtype, &self.device)?)
    }

    /// As [`Self::get`], but on the CPU numbers of 16 bits stay so: for products that widen them on the way.
    pub fn narrow(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let full = self.checked(name, &shape.into())?;
        let half = self.source.half(&full);
        let dtype = match half.filter(|_| self.device.is_cpu() && self.dtype == DType::F32) {
            Some(_) if self.rounded => DType::BF16,
            Some(half) => half,
            None => return self.get(self.source.shape(&full).unwrap_or_default(), name),
        };
        let tensor = self.source.tensor(&full, None, dtype, &self.device)?;
        let bytes = tensor.elem_count() * dtype.size_in_bytes();
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(tensor)
    }

    /// As [`Self::narrow`], of a matrix `[outputs, inputs]`: blocks Q8_0 stay blocks, too.
    pub fn narrow_matrix(&self, shape: (usize, usize), name: &str) -> Result<Matrix> {
        let wide_on_cpu = self.device.is_cpu() && self.dtype == DType::F32 && !self.rounded;
        match self.source.stored_blocks(&self.path(name)) {
            Some(GgmlDType::Q8_0) if wide_on_cpu => self.matrix(shape, name, None),
            _ => Ok(Matrix::Dense(self.narrow(shape, name)?)),
        }
    }

    /// As [`Self::get`], with the first dimension in the order of `rows`.
    pub fn get_rows(&self, shape: impl Into<Shape>, name: &str, rows: &[u32]) -> Result<Tensor> {
        let name = self.checked(name, &shape.into())?;
        let tensor = self
            .source
            .tensor(&name, Some(rows), self.dtype, &self.device)?;
        self.taking(tensor)
    }

    /// The tensor `name`, `[outputs, inputs]`, to multiply with; its rows in the order of `rows`, if they are given.
    pub fn matrix(
        &self,
        (outputs, inputs): (usize, usize),
        name: &str,
        rows: Option<&[u32]>,
    ) -> Result<Matrix> {
        let name = self.checked(name, &Shape::from((outputs, inputs)))?;
        match self.source.matrix(&name, rows, self.dtype, &self.device)? {
            Matrix::Dense(tensor) => Ok(Matrix::Dense(self.taking(tensor)?)),
            quantised => {
                self.taken.fetch_add(quantised.bytes(), Ordering::Relaxed);
                Ok(quantised)
            }
        }
    }

    /// The same place, for model code that sums in the type of its inputs: on the CPU candle's sums of f16 stop growing, so that there
    /// the tensors come as f32.
    pub fn wide_on_cpu(&self) -> Self {
        Self {
            dtype: match self.device.is_cpu() {
                true => DType::F32,
                false => self.dtype,
            },
            ..self.clone()
        }
    }

    /// The same place for model code of candle.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let root = Self {
            prefix: String::new(),
            ..self.clone()
        };
        let builder = VarBuilder::from_backend(Box::new(root), self.dtype, self.device.clone());
        match self.prefix.is_empty() {
            true => builder,
            false => builder.pp(&self.prefix),
        }
    }

    fn path(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        }
    }

    /// The whole name of a tensor that is there and has this shape.
    fn checked(&self, name: &str, expected: &Shape) -> Result<String> {
        let name = self.path(name);
        match self.source.shape(&name) {
            None => bail!("the tensor {} is missing", self.source.describe(&name)),
            Some(dims) if dims != expected.dims() => bail!(
                "the tensor {} has the shape {dims:?}, expected {:?}",
                self.source.describe(&name),
                expected.dims()
            ),
            Some(_) => Ok(name),
        }
    }

    fn taking(&self, tensor: Tensor) -> Result<Tensor> {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        if self.rounded {
            tensor.inplace_op1(&RoundToBf16)?;
        }
        Ok(tensor)
    }
}

/// Rounds every f32 of a tensor's memory, where a copy would take as much again.
struct RoundToBf16;

impl InplaceOp1 for RoundToBf16 {
    fn name(&self) -> &'static str {
        "round_to_bf16"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else {
            bail!("numbers of type {:?} rounded to bf16", storage.dtype());
        };
        values
            .par_iter_mut()
            .with_min_len(1 << 16)
            .for_each(|x| *x = bf16::from_f32(*x).to_f32());
        Ok(())
    }
}

impl candle_nn::var_builder::SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor> {
        Self::get(self, shape, name)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.source.shape(&self.path(name)) {
            Some(dims) => Self::get(self, dims, name),
            None => bail!("the tensor {} is missing", self.source.describe(name)),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}
