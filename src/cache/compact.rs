//! Moving the kept rows to the front of a buffer, in place and in order.

use candle_core::backend::BackendStorage;
use candle_core::{bail, CpuStorage, Device, InplaceOp1, Layout, Result, Tensor};

/// Kept slots, ascending: one list for all KV heads, or one list per KV head, all of one length.
pub type KeptRows = Vec<Vec<u32>>;

/// Moves the rows `kept` of `buffer` (`[kv_heads, budget, head_dim]`) to its first slots.
///
/// On the CPU nothing is allocated; elsewhere the kept rows pass through a temporary of their own size.
pub fn gather_to_front(buffer: &Tensor, kept: &KeptRows) -> Result<()> {
    if matches!(buffer.device(), Device::Cpu) {
        return buffer.inplace_op1(&GatherRows { kept });
    }
    let heads = buffer.dim(0)?;
    let rows = (0..heads)
        .map(|head| {
            let list = &kept[if kept.len() == 1 { 0 } else { head }];
            let index = Tensor::from_slice(list, list.len(), buffer.device())?;
            buffer.get(head)?.index_select(&index, 0)
        })
        .collect::<Result<Vec<_>>>()?;
    buffer.slice_set(&Tensor::stack(&rows, 0)?, 1, 0)
}

struct GatherRows<'a> {
    kept: &'a KeptRows,
}

impl GatherRows<'_> {
    fn run<T: Copy>(&self, data: &mut [T], layout: &Layout) -> Result<()> {
        let (heads, budget, width) = layout.shape().dims3()?;
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("gather_to_front: the buffer is not contiguous")
        };
        for head in 0..heads {
            let base = start + head * budget * width;
            let list = &self.kept[if self.kept.len() == 1 { 0 } else { head }];
            for (to, &from) in list.iter().enumerate() {
                let from = from as usize;
                // Ascending lists only ever move a row towards the front, over rows already moved.
                if from != to {
                    let source = base + from * width;
                    data.copy_within(source..source + width, base + to * width);
                }
            }
        }
        Ok(())
    }
}

impl InplaceOp1 for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(data) => self.run(data, layout),
            CpuStorage::F16(data) => self.run(data, layout),
            CpuStorage::BF16(data) => self.run(data, layout),
            other => bail!(
                "gather_to_front: a buffer of {:?}, expected f32, f16 or bf16",
                other.dtype()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer() -> Tensor {
        let values = (0..2 * 4 * 2).map(|i| i as f32).collect::<Vec<_>>();
        Tensor::from_vec(values, (2, 4, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn one_list_moves_the_same_rows_of_every_head() {
        let buffer = buffer();
        gather_to_front(&buffer, &vec![vec![0, 2, 3]]).unwrap();
        let got = buffer.narrow(1, 0, 3).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(got[0], [[0., 1.], [4., 5.], [6., 7.]]);
        assert_eq!(got[1], [[8., 9.], [12., 13.], [14., 15.]]);
    }

    #[test]
    fn each_head_can_keep_its_own_rows() {
        let buffer = buffer();
        gather_to_front(&buffer, &vec![vec![1, 3], vec![0, 2]]).unwrap();
        let got = buffer.narrow(1, 0, 2).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(got[0], [[2., 3.], [6., 7.]]);
        assert_eq!(got[1], [[8., 9.], [12., 13.]]);
    }
}
