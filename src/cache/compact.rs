//! Moving rows of a buffer into the gaps that an eviction left, in place.

use candle_core::backend::BackendStorage;
use candle_core::{bail, CpuStorage, Device, InplaceOp1, Layout, Result, Tensor};

use super::slots::Move;

/// Moves rows of the KV heads `heads` of `buffer` (`[kv_heads, budget, head_dim]`).
///
/// On the CPU nothing is allocated; elsewhere the moved rows pass through a temporary of their own size.
pub fn move_rows(buffer: &Tensor, heads: std::ops::Range<usize>, moves: &[Move]) -> Result<()> {
    if moves.is_empty() {
        return Ok(());
    }
    if matches!(buffer.device(), Device::Cpu) {
        return buffer.inplace_op1(&MoveRows { heads, moves });
    }
    let list = |pick: fn(&Move) -> u32| {
        Tensor::from_vec(
            moves.iter().map(pick).collect::<Vec<_>>(),
            moves.len(),
            buffer.device(),
        )
    };
    let (from, to) = (list(|m| m.0)?, list(|m| m.1)?);
    for head in heads {
        let rows = buffer.get(head)?;
        let moved = rows.index_select(&from, 0)?;
        let index = to.unsqueeze(1)?.broadcast_as(moved.shape())?.contiguous()?;
        rows.scatter_set(&index, &moved, 0)?;
    }
    Ok(())
}

struct MoveRows<'a> {
    heads: std::ops::Range<usize>,
    moves: &'a [Move],
}

impl MoveRows<'_> {
    fn run<T: Copy>(&self, data: &mut [T], layout: &Layout) -> Result<()> {
        let (_, budget, width) = layout.shape().dims3()?;
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("move_rows: the buffer is not contiguous")
        };
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
            other => bail!(
                "move_rows: a buffer of {:?}, expected f32, f16 or bf16",
                other.dtype()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
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
}
