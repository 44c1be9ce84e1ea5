//! What keys and values are stored as, and the buffers that hold them.

use candle_core::{
    bail, CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, WithDType,
};
use half::{bf16, f16};

use super::quantised::{pack_row, row_bytes, unpack_row};
use crate::gpu::{self, Element, Launch};

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Numbers of a type: f32, f16 or bf16.
    Numbers(DType),
    /// Rows of [`super::quantised`].
    Q8,
}

impl Storage {
    /// Bytes of a row of `head_dim` numbers.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        let (dtype, count) = self.row(head_dim);
        count * dtype.size_in_bytes()
    }

    /// What an instance of a kernel for it is named with.
    ///
    /// Fails where no kernel takes it.
    pub fn suffix(self) -> Result<&'static str> {
        match self {
            Self::Numbers(dtype) => Ok(Element::of(dtype)?.suffix),
            Self::Q8 => Ok("q8"),
        }
    }

    /// The elements of a row in memory: their type and number.
    fn row(self, head_dim: usize) -> (DType, usize) {
        match self {
            Self::Numbers(dtype) => (dtype, head_dim),
            Self::Q8 => (DType::U8, row_bytes(head_dim)),
        }
    }

    /// Rows as they are stored, `[.., row]`, of `numbers` (`[.., head_dim]`).
    fn rows(self, numbers: &Tensor) -> Result<Tensor> {
        match self {
            Self::Numbers(dtype) => numbers.to_dtype(dtype),
            Self::Q8 => pack(&numbers.contiguous()?),
        }
    }

    /// The way back, `[.., head_dim]`: as the type that is stored, of [`Self::Q8`] as f32.
    fn numbers(self, rows: &Tensor, head_dim: usize) -> Result<Tensor> {
        match self {
            Self::Numbers(_) => Ok(rows.clone()),
            Self::Q8 => unpack(&rows.contiguous()?, head_dim),
        }
    }
}

/// The keys, or the values, of a layer.
#[derive(Debug)]
pub struct KvBuffer {
    /// `[kv_heads, budget, row]`, elements of a row as they are stored.
    rows: Tensor,
    storage: Storage,
    head_dim: usize,
}

impl KvBuffer {
    /// Zeros for `[kv_heads, budget, head_dim]` numbers.
    pub fn new(
        storage: Storage,
        (kv_heads, budget, head_dim): (usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let (dtype, row) = storage.row(head_dim);
        Ok(Self {
            rows: Tensor::zeros((kv_heads, budget, row), dtype, device)?,
            storage,
            head_dim,
        })
    }

    /// As it lies in memory, `[kv_heads, budget, row]`: for what moves rows, and for kernels.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// kv_heads, budget, head_dim
    pub fn dims(&self) -> Result<(usize, usize, usize)> {
        let (kv_heads, budget, _) = self.rows.dims3()?;
        Ok((kv_heads, budget, self.head_dim))
    }

    pub fn device(&self) -> &Device {
        self.rows.device()
    }

    /// Its memory, bytes.
    pub fn bytes(&self) -> usize {
        self.rows.elem_count() * self.rows.dtype().size_in_bytes()
    }

    /// Stores `numbers` (`[kv_heads, tokens, head_dim]`) in the slots from `start` on.
    pub fn write(&self, numbers: &Tensor, start: usize) -> Result<()> {
        self.rows.slice_set(&self.storage.rows(numbers)?, 1, start)
    }

    /// What the first `len` slots hold, `[kv_heads, len, head_dim]`, of a type as [`Self::numbers`] says.
    pub fn first(&self, len: usize) -> Result<Tensor> {
        self.numbers(&self.rows.narrow(1, 0, len)?)
    }

    /// What `rows` of it hold (`[.., row]`), `[.., head_dim]`: as the type that is stored, of quantised rows as f32.
    pub fn numbers(&self, rows: &Tensor) -> Result<Tensor> {
        self.storage.numbers(rows, self.head_dim)
    }
}

/// Threads of a block, a warp to a row.
const BLOCK: u32 = 256;

/// Quantised rows of contiguous numbers. Where a device has no kernels for it, the host does it.
fn pack(numbers: &Tensor) -> Result<Tensor> {
    let (shape, head_dim) = with_last(numbers, row_bytes)?;
    if numbers.device().is_cpu() {
        return numbers.apply_op1_no_bwd(&Pack);
    }
    let Some(gpu) = gpu::of(numbers.device()) else {
        return pack(&numbers.to_device(&Device::Cpu)?)?.to_device(numbers.device());
    };
    let rows = Tensor::zeros(shape, DType::U8, numbers.device())?;
    let count = numbers.elem_count() / head_dim;
    let launch = Launch::new("pack_rows", grid(count), BLOCK)
        .tensor(numbers)?
        .int(Element::of(numbers.dtype())?.code)
        .int(count)
        .int(head_dim)
        .tensor(&rows)?;
    // Safety: the arguments are those of `pack_rows` in kernels/pack.cu.
    unsafe { gpu.launch(launch)? };
    Ok(rows)
}

/// The numbers of contiguous quantised rows, f32.
fn unpack(rows: &Tensor, head_dim: usize) -> Result<Tensor> {
    let (shape, _) = with_last(rows, |_| head_dim)?;
    if rows.device().is_cpu() {
        return rows.apply_op1_no_bwd(&Unpack { head_dim });
    }
    let Some(gpu) = gpu::of(rows.device()) else {
        return unpack(&rows.to_device(&Device::Cpu)?, head_dim)?.to_device(rows.device());
    };
    let numbers = Tensor::zeros(shape, DType::F32, rows.device())?;
    let count = numbers.elem_count() / head_dim;
    let launch = Launch::new("unpack_rows", grid(count), BLOCK)
        .tensor(rows)?
        .int(count)
        .int(head_dim)
        .tensor(&numbers)?;
    // Safety: the arguments are those of `unpack_rows` in kernels/pack.cu.
    unsafe { gpu.launch(launch)? };
    Ok(numbers)
}

fn grid(rows: usize) -> [u32; 3] {
    [(rows as u32).div_ceil(BLOCK / 32).max(1), 1, 1]
}

/// The shape of `x` with another last dimension, which is made of that of `x`; the latter beside it.
fn with_last(x: &Tensor, last: impl Fn(usize) -> usize) -> Result<(Shape, usize)> {
    let mut dims = x.dims().to_vec();
    let Some(width) = dims.last_mut() else {
        bail!("rows of a tensor without dimensions");
    };
    let old = *width;
    *width = last(old);
    Ok((dims.into(), old))
}

/// Input: `[.., head_dim]`, contiguous, f32, f16 or bf16.
struct Pack;

impl Pack {
    fn run<T: WithDType>(
        data: &[T],
        layout: &Layout,
        wide: impl Fn(T) -> f32,
    ) -> Result<(CpuStorage, Shape)> {
        let data = whole(data, layout)?;
        let mut dims = layout.dims().to_vec();
        let head_dim = dims.pop().unwrap_or(0);
        let row = row_bytes(head_dim);
        dims.push(row);
        let mut rows = vec![0; data.len() / head_dim.max(1) * row];
        let mut numbers = vec![0.0; head_dim];
        for (stored, row) in data
            .chunks_exact(head_dim.max(1))
            .zip(rows.chunks_exact_mut(row))
        {
            let stored = stored.iter().map(|&x| wide(x));
            numbers.iter_mut().zip(stored).for_each(|(to, x)| *to = x);
            pack_row(&numbers, row);
        }
        Ok((CpuStorage::U8(rows), dims.into()))
    }
}

impl CustomOp1 for Pack {
    fn name(&self) -> &'static str {
        "pack-rows"
    }

    fn cpu_fwd(&self, numbers: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match numbers {
            CpuStorage::F32(numbers) => Self::run(numbers, layout, |x| x),
            CpuStorage::F16(numbers) => Self::run(numbers, layout, f16::to_f32),
            CpuStorage::BF16(numbers) => Self::run(numbers, layout, bf16::to_f32),
            _ => bail!("rows of a type that is not quantised, expected f32, f16 or bf16"),
        }
    }
}

/// Input: quantised rows, `[.., row]`, contiguous.
struct Unpack {
    head_dim: usize,
}

impl CustomOp1 for Unpack {
    fn name(&self) -> &'static str {
        "unpack-rows"
    }

    fn cpu_fwd(&self, rows: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = whole(rows.as_slice::<u8>()?, layout)?;
        let head_dim = self.head_dim;
        let mut dims = layout.dims().to_vec();
        dims.pop();
        dims.push(head_dim);
        let row = row_bytes(head_dim);
        let mut numbers = vec![0.0; rows.len() / row * head_dim];
        for (row, numbers) in rows
            .chunks_exact(row)
            .zip(numbers.chunks_exact_mut(head_dim.max(1)))
        {
            unpack_row(row, numbers);
        }
        Ok((CpuStorage::F32(numbers), dims.into()))
    }
}

fn whole<'a, T>(data: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("rows of a tensor that is not contiguous"),
    }
}
