//! Blocks as the GPU's kernels read them: the same numbers in aligned planes (`kernels/planes.cuh`), in the same number of bytes.
//!
//! - this file: a matrix in planes, and products with it
//! - `repack`: blocks taken apart

mod repack;

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{bail, DType, Result, Tensor};

use crate::gpu::{Element, Gpu, Launch};

pub use repack::{integers, scale_and_minimum};

/// Weights of a group, and of a super-group.
const GROUP: usize = 32;
const SUPER_GROUP: usize = 256;

/// How groups are scaled: `Scales` in `kernels/planes.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    One = 0,
    Pair = 1,
    Super = 2,
    Halves = 3,
}

impl Scales {
    /// Bytes of the scales of a group.
    const fn bytes(self) -> usize {
        match self {
            Self::One | Self::Halves => 2,
            Self::Pair => 4,
            Self::Super => 1,
        }
    }

    /// Bytes that a super-group has beside.
    const fn super_bytes(self) -> usize {
        match self {
            Self::One | Self::Pair => 0,
            Self::Super => 8,
            Self::Halves => 2,
        }
    }
}

/// What the planes of a kind of blocks hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneFormat {
    blocks: GgmlDType,
    bits: usize,
    scales: Scales,
}

impl PlaneFormat {
    /// None where there are no kernels.
    pub fn of(blocks: GgmlDType) -> Option<Self> {
        let (bits, scales) = match blocks {
            GgmlDType::Q4_0 => (4, Scales::One),
            GgmlDType::Q4_1 => (4, Scales::Pair),
            GgmlDType::Q5_0 => (5, Scales::One),
            GgmlDType::Q5_1 => (5, Scales::Pair),
            GgmlDType::Q8_0 => (8, Scales::One),
            GgmlDType::Q4K => (4, Scales::Super),
            GgmlDType::Q5K => (5, Scales::Super),
            GgmlDType::Q6K => (6, Scales::Halves),
            _ => return None,
        };
        Some(Self {
            blocks,
            bits,
            scales,
        })
    }

    /// As kernels are told.
    fn code(self) -> usize {
        self.bits + 16 * self.scales as usize
    }

    /// Bytes of a row in each of the planes: quants, more, scales, supers.
    fn row_bytes(self, width: usize) -> [usize; 4] {
        let groups = width / GROUP;
        [
            16 * groups,
            4 * (self.bits - 4) * groups,
            self.scales.bytes() * groups,
            self.scales.super_bytes() * width / SUPER_GROUP,
        ]
    }

    /// Where each plane of a matrix lies; each begins at a multiple of 16 bytes.
    fn planes(self, rows: usize, width: usize) -> [Range<usize>; 4] {
        let mut end = 0;
        self.row_bytes(width).map(|bytes| {
            let start = usize::next_multiple_of(end, 16);
            end = start + rows * bytes;
            start..end
        })
    }
}

/// Threads of a block of the kernels here, and rows that a warp of a product takes at a time.
const BLOCK: u32 = 256;
const ROWS: usize = 2;

/// Most rows of an input for which its products read the planes, each row anew; for more they are widened first.
const FEW: usize = 4;

/// Weights that are widened at a time: so much scratch memory do products with many rows take.
const WIDENED: usize = 1 << 25;

/// A matrix `[rows, width]` in planes, in the memory of a device that has kernels.
#[derive(Debug, Clone)]
pub struct Planes {
    format: PlaneFormat,
    rows: usize,
    width: usize,
    /// All planes, u8, padded to 16 bytes.
    bytes: Tensor,
    gpu: Arc<dyn Gpu>,
}

impl Planes {
    /// Takes blocks apart, in the memory of the host. None where there are no kernels for such blocks.
    pub fn of(blocks: &QTensor, gpu: &Arc<dyn Gpu>) -> Result<Option<Self>> {
        let Some(format) = PlaneFormat::of(blocks.dtype()) else {
            return Ok(None);
        };
        let (rows, width) = blocks.shape().dims2()?;
        let planes = repack::repack(format, &blocks.data()?, (rows, width))?;
        let count = planes.len();
        Ok(Some(Self {
            format,
            rows,
            width,
            bytes: Tensor::from_vec(planes, count, &blocks.device())?,
            gpu: gpu.clone(),
        }))
    }

    /// `[rows, width]`
    pub fn dims2(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// The blocks that they hold the numbers of.
    pub fn blocks(&self) -> GgmlDType {
        self.format.blocks
    }

    /// Memory, bytes.
    pub fn size(&self) -> usize {
        self.bytes.elem_count()
    }

    /// The arguments of a kernel that takes them: where they begin, and what they hold.
    pub fn argue(&self, launch: Launch) -> Result<Launch> {
        Ok(launch.tensor(&self.bytes)?.int(self.format.code()))
    }

    /// Shared memory that a product with one row takes, bytes: see `RoundedInput` in `kernels/planes.cuh`.
    pub fn shared_bytes(width: usize) -> usize {
        width / 2 * 3
    }

    /// `[tokens, rows]` for `x` of `[tokens, width]`, of its type.
    ///
    /// Of a few tokens each is rounded to 8 bits as a step of the decoder does it; for more the weights are widened to the type of `x`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        if width != self.width {
            bail!(
                "rows of {width} numbers times a matrix of {:?}, expected {}",
                self.dims2(),
                self.width
            );
        }
        if tokens <= FEW {
            return self.few(x);
        }
        let mut parts = Vec::new();
        let most = (WIDENED / self.width).max(1);
        for first in (0..self.rows).step_by(most) {
            let rows = most.min(self.rows - first);
            let part = self.widened(None, (first, rows), x.dtype())?;
            parts.push(x.matmul(&part.t()?)?);
        }
        match parts.as_slice() {
            [one] => Ok(one.clone()),
            _ => Tensor::cat(&parts, 1),
        }
    }

    /// The rows `ids` as floats, `[ids, width]`.
    pub fn select(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            bail!("row {id} of {}", self.rows);
        }
        let index = Tensor::from_slice(ids, ids.len(), self.bytes.device())?;
        self.widened(Some(&index), (0, ids.len()), dtype)
    }

    fn few(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let input = x.to_dtype(DType::F32)?.contiguous()?;
        let out = Tensor::zeros((tokens, self.rows), DType::F32, x.device())?;
        let blocks = self.rows.div_ceil(ROWS * BLOCK as usize / 32).max(1);
        for token in 0..tokens {
            let launch = Launch::new("matvec_add_planes", [blocks as u32, 1, 1], BLOCK)
                .shared(Self::shared_bytes(self.width))
                .pointer(0)
                .tensor(&input.narrow(0, token, 1)?)?;
            let launch = self
                .argue(launch)?
                .pointer(0)
                .int(self.rows)
                .int(self.width)
                .tensor(&out.narrow(0, token, 1)?)?;
            // Safety: as the comment in front of the kernel says, without a step and a bias.
            unsafe { self.gpu.launch(launch)? };
        }
        out.to_dtype(x.dtype())
    }

    /// `count` rows from `first` on, or those that `ids` names, as floats `[count, width]`.
    fn widened(
        &self,
        ids: Option<&Tensor>,
        (first, count): (usize, usize),
        dtype: DType,
    ) -> Result<Tensor> {
        let out = Tensor::zeros((count, self.width), dtype, self.bytes.device())?;
        let blocks = (count * self.width).div_ceil(8 * BLOCK as usize);
        let grid = [blocks.clamp(1, 1 << 20) as u32, 1, 1];
        let launch = self.argue(Launch::new("widen_planes", grid, BLOCK))?;
        let launch = launch
            .int(self.rows)
            .int(self.width)
            .optional(ids)?
            .int(first)
            .int(count)
            .int(Element::of(dtype)?.code)
            .tensor(&out)?;
        // Safety: as the comment in front of the kernel says; the rows are there.
        unsafe { self.gpu.launch(launch)? };
        Ok(out)
    }
}
