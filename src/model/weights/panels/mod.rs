//! Blocks as the CPU multiplies with them: 16 rows side by side, in the place of the blocks as they were stored.
//!
//! An input is rounded to 8-bit integers in groups of 32, each with a scale, once for all matrices that it is multiplied with, as ggml
//! does it. Sums of a group are whole numbers; groups are added one after the other, so that neither the number of threads nor that of
//! the rows nor the processor's instructions change a bit of a result.
//!
//! - this file: a matrix in panels, and products with it
//! - `record`: 16 blocks of each kind, packed and unpacked
//! - `pack`: their integers
//! - `input`: the input, rounded
//! - `lanes`: what a product needs of vector instructions, and the same without any
//! - `x86`, `neon`: those of x86 and of aarch64
//! - `strip`: a part of a product

mod input;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod record;
mod strip;
#[cfg(target_arch = "x86_64")]
mod x86;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{bail, Result};
use rayon::prelude::*;

pub use input::Rounded;
pub use strip::Instructions;

use lanes::ROWS;
use record::{Record, Q4K, Q4_0, Q4_1, Q5K, Q5_0, Q5_1, Q6K, Q8_0};
use strip::Strip;

/// Weights that are read faster than a second thread takes them over, bytes.
const SMALL_BYTES: usize = 32 << 10;

/// Parts per thread, so that a thread which starts late or is held up leaves some of its share to the others.
const PARTS: usize = 2;

/// Rows of an input that are multiplied with a part of the weights before the next: rounded, they stay in a core's own cache.
const BAND: usize = 64;

/// The records of a matrix, panel by panel.
#[derive(Debug, Clone)]
enum Records {
    Q4_0(Vec<Q4_0>),
    Q4_1(Vec<Q4_1>),
    Q5_0(Vec<Q5_0>),
    Q5_1(Vec<Q5_1>),
    Q8_0(Vec<Q8_0>),
    Q4K(Vec<Q4K>),
    Q5K(Vec<Q5K>),
    Q6K(Vec<Q6K>),
}

/// `$run` with the records of any kind.
macro_rules! with_records {
    ($records:expr, $these:ident => $run:expr) => {
        match $records {
            Records::Q4_0($these) => $run,
            Records::Q4_1($these) => $run,
            Records::Q5_0($these) => $run,
            Records::Q5_1($these) => $run,
            Records::Q8_0($these) => $run,
            Records::Q4K($these) => $run,
            Records::Q5K($these) => $run,
            Records::Q6K($these) => $run,
        }
    };
}

/// A matrix `[rows, width]` in panels, in the memory of the host.
#[derive(Debug, Clone)]
pub struct Panels {
    kind: GgmlDType,
    rows: usize,
    width: usize,
    records: Records,
}

impl Panels {
    /// Memory of a matrix `[rows, width]` of blocks in panels, bytes; none where blocks of this kind stay as they are.
    pub fn bytes_of(kind: GgmlDType, (rows, width): (usize, usize)) -> Option<usize> {
        let record = match kind {
            GgmlDType::Q4_0 => size_of::<Q4_0>(),
            GgmlDType::Q4_1 => size_of::<Q4_1>(),
            GgmlDType::Q5_0 => size_of::<Q5_0>(),
            GgmlDType::Q5_1 => size_of::<Q5_1>(),
            GgmlDType::Q8_0 => size_of::<Q8_0>(),
            GgmlDType::Q4K => size_of::<Q4K>(),
            GgmlDType::Q5K => size_of::<Q5K>(),
            GgmlDType::Q6K => size_of::<Q6K>(),
            _ => return None,
        };
        Some(rows.div_ceil(ROWS) * (width / kind.block_size()) * record)
    }

    /// Lays blocks in the memory of the host out in panels. None where blocks of this kind stay as they are.
    pub fn of(blocks: &QTensor) -> Result<Option<Self>> {
        let kind = blocks.dtype();
        let (rows, width) = blocks.shape().dims2()?;
        if Self::bytes_of(kind, (rows, width)).is_none() {
            return Ok(None);
        }
        if rows == 0 || width == 0 || !width.is_multiple_of(kind.block_size()) {
            bail!(
                "rows of [{rows}, {width}] in blocks of {}",
                kind.block_size()
            );
        }
        let bytes = blocks.data()?;
        let row = width / kind.block_size() * kind.type_size();
        if bytes.len() != rows * row {
            bail!(
                "{} bytes of blocks for [{rows}, {width}], expected {}",
                bytes.len(),
                rows * row
            );
        }
        let records = match kind {
            GgmlDType::Q4_0 => Records::Q4_0(packed(kind, &bytes, row)),
            GgmlDType::Q4_1 => Records::Q4_1(packed(kind, &bytes, row)),
            GgmlDType::Q5_0 => Records::Q5_0(packed(kind, &bytes, row)),
            GgmlDType::Q5_1 => Records::Q5_1(packed(kind, &bytes, row)),
            GgmlDType::Q8_0 => Records::Q8_0(packed(kind, &bytes, row)),
            GgmlDType::Q4K => Records::Q4K(packed(kind, &bytes, row)),
            GgmlDType::Q5K => Records::Q5K(packed(kind, &bytes, row)),
            _ => Records::Q6K(packed(kind, &bytes, row)),
        };
        Ok(Some(Self {
            kind,
            rows,
            width,
            records,
        }))
    }

    /// `[rows, width]`
    pub fn dims2(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// The blocks that they hold the numbers of.
    pub fn blocks(&self) -> GgmlDType {
        self.kind
    }

    /// Memory, bytes.
    pub fn size(&self) -> usize {
        with_records!(&self.records, records => size_of_val(records.as_slice()))
    }

    /// The rows `ids` as floats, `[ids, width]`.
    pub fn select(&self, ids: &[u32]) -> Result<Vec<f32>> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            bail!("row {id} of {}", self.rows);
        }
        let block = self.kind.block_size();
        let panel = self.width / block;
        let mut out = vec![0.0; ids.len() * self.width];
        let rows = out.par_chunks_mut(self.width).zip(ids);
        with_records!(&self.records, records => rows.for_each(|(out, &id)| {
            let (first, row) = (id as usize / ROWS * panel, id as usize % ROWS);
            for (record, out) in records[first..][..panel].iter().zip(out.chunks_exact_mut(block)) {
                record.widen(row, out);
            }
        }));
        Ok(out)
    }

    /// The parts of the product with `x` into `out` (`[rows of x, rows]`): each of at most `share` bytes of weights.
    fn parts<'a>(&'a self, x: &'a Rounded, share: usize, out: &'a mut [f32]) -> Vec<Part<'a>> {
        let panel = self.width / self.kind.block_size();
        let mut parts: Vec<Part> = Vec::new();
        for (band, out) in out.chunks_mut(BAND * self.rows).enumerate() {
            with_records!(&self.records, records => {
                let panels = (share / size_of_val(&records[..panel])).max(1);
                let rows = out.chunks_mut(self.rows);
                let mut strips = rows.map(|row| row.chunks_mut(panels * ROWS)).collect::<Vec<_>>();
                for records in records.chunks(panels * panel) {
                    let outs = strips.iter_mut().filter_map(Iterator::next).collect();
                    let strip = Strip { x, first: band * BAND, records, panel, outs };
                    parts.push(Box::new(move |instructions| strip.run(instructions)));
                }
            });
        }
        parts
    }
}

/// Blocks, rows of `row` bytes one after the other, as records.
fn packed<R: Record>(kind: GgmlDType, bytes: &[u8], row: usize) -> Vec<R> {
    let size = kind.type_size();
    let panel = row / size;
    let count = bytes.len().div_ceil(ROWS * row) * panel;
    let records = (0..count).into_par_iter().map(|i| {
        let rows = bytes[i / panel * ROWS * row..].chunks_exact(row).take(ROWS);
        let at = i % panel * size;
        let blocks = rows.map(|row| &row[at..at + size]);
        R::pack(kind, &blocks.collect::<Vec<_>>())
    });
    records.collect()
}

/// A part of a product.
type Part<'a> = Box<dyn FnOnce(Instructions) + Send + 'a>;

/// The products of `x` with the transpose of each of `weights`, `[rows of x, rows]`, in the threads of the pool that it is called in.
/// Widths have been compared.
pub fn products(x: &Rounded, weights: &[&Panels], instructions: Instructions) -> Vec<Vec<f32>> {
    let mut outs = weights
        .iter()
        .map(|weight| vec![0.0; x.rows() * weight.rows])
        .collect::<Vec<_>>();
    let bytes = weights.iter().map(|weight| weight.size()).sum::<usize>();
    let threads = rayon::current_num_threads();
    let count = match threads {
        1 => 1,
        _ if bytes * x.rows() < SMALL_BYTES => 1,
        threads => threads * PARTS,
    };
    let share = bytes.div_ceil(count);
    let parts = weights.iter().zip(&mut outs);
    let parts = parts.flat_map(|(weight, out)| weight.parts(x, share, out));
    if count == 1 {
        parts.for_each(|part| part(instructions));
    } else {
        let parts = parts.collect::<Vec<_>>();
        parts
            .into_par_iter()
            .with_max_len(1)
            .for_each(|part| part(instructions));
    }
    outs
}
