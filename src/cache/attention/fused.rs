//! The kernel of the CPU as operations of candle.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{bail, CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::{Past, Sums};
use crate::cache::kernel::{self, Element, Queries, Turns, View};

/// As [`Past::attend`] says.
pub fn attend(past: &Past, q: &Tensor, positions: &[u32], sums: Option<Sums>) -> Result<Tensor> {
    let op = Attend {
        past,
        positions,
        sums: Mutex::new(sums),
    };
    let (keys, values) = (past.keys.rows(), past.values.rows());
    let attended = (q.to_dtype(DType::F32)?).apply_op3_no_bwd(keys, values, &op)?;
    attended.to_dtype(q.dtype())
}

/// As [`Past::sums`] says.
pub fn sums(past: &Past, q: &Tensor, positions: &[u32]) -> Result<Vec<f32>> {
    (q.to_dtype(DType::F32)?)
        .apply_op2_no_bwd(past.keys.rows(), &SumsAlone { past, positions })?
        .to_vec1()
}

/// Inputs: queries `[heads, tokens, head_dim]`, f32, keys and values `[kv_heads, budget, row]`.
struct Attend<'a, 'b> {
    past: &'a Past<'a>,
    positions: &'a [u32],
    /// A second output; the operation is run once and borrows itself unchanged.
    sums: Mutex<Option<Sums<'b>>>,
}

impl CustomOp3 for Attend<'_, '_> {
    fn name(&self) -> &'static str {
        "bounded-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = whole(q.as_slice::<f32>()?, q_layout)?;
        let shape = self.past.keys.dims()?;
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = sums.as_mut().map(|Sums { newest, sums }| Sums {
            newest: *newest,
            sums,
        });
        macro_rules! run {
            ($keys:expr, $values:expr) => {{
                let keys = whole($keys, keys_layout)?;
                let values = whole($values, values_layout)?;
                let turns = turns(self.past);
                let view = view(self.past, &turns, keys, values, shape);
                let queries = Queries::new(&view, q, self.positions.to_vec());
                kernel::attend(&view, &queries, sums)
            }};
        }
        let out = match (keys, values) {
            (CpuStorage::F32(keys), CpuStorage::F32(values)) => run!(keys, values),
            (CpuStorage::F16(keys), CpuStorage::F16(values)) => run!(keys, values),
            (CpuStorage::BF16(keys), CpuStorage::BF16(values)) => run!(keys, values),
            (CpuStorage::U8(keys), CpuStorage::U8(values)) => run!(keys, values),
            _ => bail!(
                "bounded attention: keys of {:?} and values of {:?}, expected f32, f16, bf16 or quantised rows for both",
                keys.dtype(),
                values.dtype()
            ),
        };
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

/// Inputs: queries `[heads, tokens, head_dim]`, f32, keys `[kv_heads, budget, row]`.
struct SumsAlone<'a> {
    past: &'a Past<'a>,
    positions: &'a [u32],
}

impl CustomOp2 for SumsAlone<'_> {
    fn name(&self) -> &'static str {
        "bounded-attention-sums"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = whole(q.as_slice::<f32>()?, q_layout)?;
        let shape = self.past.keys.dims()?;
        let mut sums = vec![0.0; shape.0 * self.past.len()];
        macro_rules! run {
            ($keys:expr) => {{
                let turns = turns(self.past);
                let view = view(self.past, &turns, whole($keys, keys_layout)?, &[], shape);
                let queries = Queries::new(&view, q, self.positions.to_vec());
                kernel::add_sums(&view, &queries, &mut sums);
            }};
        }
        match keys {
            CpuStorage::F32(keys) => run!(keys),
            CpuStorage::F16(keys) => run!(keys),
            CpuStorage::BF16(keys) => run!(keys),
            CpuStorage::U8(keys) => run!(keys),
            other => bail!(
                "bounded attention: keys of {:?}, expected f32, f16, bf16 or quantised rows",
                other.dtype()
            ),
        }
        let shape = Shape::from(sums.len());
        Ok((CpuStorage::F32(sums), shape))
    }
}

fn whole<'a, T>(data: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("bounded attention: a tensor is not contiguous"),
    }
}

fn turns<'a>(past: &Past<'a>) -> Vec<Turns<'a>> {
    let tables = past.rotary.iter().map(|table| table.host());
    tables.map(|(cos, sin)| Turns { cos, sin }).collect()
}

fn view<'a, T: Element>(
    past: &'a Past,
    turns: &'a [Turns<'a>],
    keys: &'a [T],
    values: &'a [T],
    (kv_heads, budget, head_dim): (usize, usize, usize),
) -> View<'a, T> {
    View {
        keys,
        values,
        kv_heads,
        budget,
        head_dim,
        len: past.len(),
        positions: &past.positions,
        turns,
    }
}
