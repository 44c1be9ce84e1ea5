//! Rows of buffers: moved into the gaps that an eviction left, in place; taken out and put back.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{bail, CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Result, Tensor};

use super::slots::Move;

/// Moves rows of the KV heads `heads` of `buffer` (`[kv_heads, budget, row]`).
///
/// On the CPU nothing is allocated; elsewhere the moved rows pass through a temporary of their own size.
pub fn move_rows(buffer: &Tensor, heads: Range<usize>, moves: &[Move]) -> Result<()> {
    if moves.is_empty() {
        return Ok(());
    }
    if matches!(buffer.device(), Device::Cpu) {
        return buffer.inplace_op1(&MoveRows { heads, moves });
    }
    let (from, to) = (
        moves.iter().map(|m| m.0).collect::<Vec<_>>(),
        moves.iter().map(|m| m.1).collect::<Vec<_>>(),
    );
    let moved = take_rows(buffer, heads.clone(), &from)?;
    put_rows(buffer, heads, &to, &moved)
}

/// A copy of the rows in `slots` of the heads `heads` of `buffer` (`[heads, budget, row]`), `[heads, slots, row]`.
fn take_rows(buffer: &Tensor, heads: Range<usize>, slots: &[u32]) -> Result<Tensor> {
    let index = Tensor::from_slice(slots, slots.len(), buffer.device())?;
    buffer
        .narrow(0, heads.start, heads.len())?
        .index_select(&index, 1)
}

/// Writes `rows`, as [`take_rows`] gives them, into `slots`.
///
/// On the CPU nothing is allocated, so that it does not fail for want of memory.
fn put_rows(buffer: &Tensor, heads: Range<usize>, slots: &[u32], rows: &Tensor) -> Result<()> {
    if matches!(buffer.device(), Device::Cpu) {
        return buffer.inplace_op2(rows, &PutRows { heads, slots });
    }
    let (_, count, width) = rows.dims3()?;
    let index = Tensor::from_slice(slots, (count, 1), buffer.device())?;
    let index = index.broadcast_as((count, width))?.contiguous()?;
    for (i, head) in heads.enumerate() {
        buffer.get(head)?.scatter_set(&index, &rows.get(i)?, 0)?;
    }
    Ok(())
}

/// Rows of buffers as they were before they were overwritten.
#[derive(Debug)]
pub struct SavedRows {
    heads: Range<usize>,
    slots: Vec<u32>,
    /// Of each buffer, `[heads, slots, row]`.
    rows: Vec<Tensor>,
}

impl SavedRows {
    /// Copies the rows in `slots` of the heads `heads` of `buffers` (`[heads, slots, row]` each).
    pub fn take(buffers: &[&Tensor], heads: Range<usize>, slots: &[u32]) -> Result<Self> {
        let rows = buffers
            .iter()
            .map(|buffer| take_rows(buffer, heads.clone(), slots))
            .collect::<Result<_>>()?;
        Ok(Self {
            heads,
            slots: slots.to_vec(),
            rows,
        })
    }

    /// Rows that have been copied, of each buffer `[heads, slots, head_dim]`.
    pub fn of(heads: Range<usize>, slots: Vec<u32>, rows: Vec<Tensor>) -> Self {
        Self { heads, slots, rows }
    }

    /// Writes them back to where they were taken from.
    pub fn put_back(&self, buffers: &[&Tensor]) -> Result<()> {
        let mut rows = buffers.iter().zip(&self.rows);
        rows.try_for_each(|(buffer, rows)| {
            put_rows(buffer, self.heads.clone(), &self.slots, &rows.contiguous()?)
        })
    }
}

struct MoveRows<'a> {
    heads: Range<usize>,
    moves: &'a [Move],
}

impl MoveRows<'_> {
    fn run<T: Copy>(&self, data: &mut [T], layout: &Layout) -> Result<()> {
        let (_, budget, width) = layout.shape().dims3()?;
        let start = start_of(layout)?;
        for head in self.heads.clone() {
            let base = start + head * budget * width;
            for &(from, to) in self.moves {
                let source = base + from as usize * width;
                data.copy_within(source..source + width, base + to as usize * width);
            }
        }
        Ok(())
    }
}

impl InplaceOp1 for MoveRows<'_> {
    fn name(&self) -> &'static str {
        "move-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(data) => self.run(data, layout),
            CpuStorage::F16(data) => self.run(data, layout),
            CpuStorage::BF16(data) => self.run(data, layout),
            CpuStorage::U8(data) => self.run(data, layout),
            other => bail!(
                "move_rows: a buffer of {:?}, expected f32, f16, bf16 or u8",
                other.dtype()
            ),
        }
    }
}

struct PutRows<'a> {
    heads: Range<usize>,
    slots: &'a [u32],
}

impl PutRows<'_> {
    fn run<T: Copy>(
        &self,
        (data, layout): (&mut [T], &Layout),
        (rows, rows_layout): (&[T], &Layout),
    ) -> Result<()> {
        let (_, budget, width) = layout.shape().dims3()?;
        let rows = &rows[start_of(rows_layout)?..];
        let start = start_of(layout)?;
        let to = self.heads.clone().flat_map(|head| {
            let slots = self.slots.iter();
            slots.map(move |&slot| start + (head * budget + slot as usize) * width)
        });
        for (to, row) in to.zip(rows.chunks_exact(width)) {
            data[to..to + width].copy_from_slice(row);
        }
        Ok(())
    }
}

impl InplaceOp2 for PutRows<'_> {
    fn name(&self) -> &'static str {
        "put-rows"
    }

    fn cpu_fwd(
        &self,
        buffer: &mut CpuStorage,
        layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        match (buffer, rows) {
            (CpuStorage::F32(data), CpuStorage::F32(rows)) => {
                self.run((data, layout), (rows, rows_layout))
            }
            (CpuStorage::F16(data), CpuStorage::F16(rows)) => {
                self.run((data, layout), (rows, rows_layout))
            }
            (CpuStorage::BF16(data), CpuStorage::BF16(rows)) => {
                self.run((data, layout), (rows, rows_layout))
            }
            (CpuStorage::U8(data), CpuStorage::U8(rows)) => {
                self.run((data, layout), (rows, rows_layout))
            }
            (buffer, rows) => bail!(
                "put_rows: rows of {:?} into a buffer of {:?}, expected one of f32, f16, bf16, u8 for both",
                rows.dtype(),
                buffer.dtype()
            ),
        }
    }
}

/// Where a contiguous tensor begins in its memory.
fn start_of(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("rows are moved in a tensor that is not contiguous"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn rows_move_in_the_given_heads_only() {
        let values = (0..2 * 4 * 2).map(|i| i as f32).collect::<Vec<_>>();
        let buffer = Tensor::from_vec(values, (2, 4, 2), &Device::Cpu).unwrap();
        move_rows(&buffer, 1..2, &[(3, 0), (2, 1)]).unwrap();
        let got = buffer.to_vec3::<f32>().unwrap();
        assert_eq!(got[0], [[0., 1.], [2., 3.], [4., 5.], [6., 7.]]);
        assert_eq!(got[1][..2], [[14., 15.], [12., 13.]]);
    }

    #[test]
    fn rows_come_back_to_the_slots_and_heads_that_they_were_taken_from() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::U8] {
            let values = (0..3 * 4 * 2).map(|i| i as f32).collect::<Vec<_>>();
            let buffer = Tensor::from_vec(values, (3, 4, 2), &Device::Cpu).unwrap();
            let buffer = buffer.to_dtype(dtype).unwrap();
            let all = |buffer: &Tensor| {
                let buffer = buffer.to_dtype(DType::F32).unwrap();
                buffer.to_vec3::<f32>().unwrap()
            };
            let before = all(&buffer);
            let taken = take_rows(&buffer, 1..3, &[3, 0]).unwrap();
            assert_eq!(all(&taken)[1], [[22., 23.], [16., 17.]]);
            move_rows(&buffer, 0..3, &[(1, 3), (2, 0)]).unwrap();
            put_rows(&buffer, 1..3, &[3, 0], &taken).unwrap();
            let after = all(&buffer);
            assert_eq!(after[1..], before[1..]);
            assert_eq!(after[0], [[4., 5.], [2., 3.], [4., 5.], [2., 3.]]);
        }
    }
}
