//! The gated delta rule on the CPU, token by token as it is written down, in the threads of the pool that it is called in.
//!
//! The columns of a head's matrix have nothing to do with each other. So some of them go through all tokens before the next ones do, and
//! what is worked on stays in the processor's nearest memory.

use candle_core::{bail, CpuStorage, Layout, Result, Storage, Tensor};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::delta::Inputs;

/// Columns that go through the tokens together: of 128 keys they are 16 KB.
const COLUMNS: usize = 32;

/// What the queries read, and the matrices behind the tokens, as [`Inputs::read`] has it. All tensors are f32, contiguous and on the CPU.
pub fn read(inputs: &Inputs, matrices: &Tensor) -> Result<(Tensor, Tensor)> {
    let (heads, tokens, keys) = inputs.keys.dims3()?;
    let values = inputs.values.dim(2)?;
    if matrices.dims() != [heads, keys, values] {
        bail!(
            "matrices of shape {:?}, expected {heads} of {keys} x {values}",
            matrices.dims()
        );
    }
    let tensors = [
        &inputs.queries,
        &inputs.keys,
        &inputs.values,
        &inputs.rates,
        &inputs.decays,
        matrices,
    ];
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[] as &[f32]; 6];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        *slice = whole(storage, layout)?;
    }
    let [q, k, v, rates, decays, before] = slices;

    let mut out = vec![0f32; heads * tokens * values];
    let mut behind = before.to_vec();
    let arch = Arch::new();
    let of_heads = out.par_chunks_mut((tokens * values).max(1));
    let of_heads = of_heads.zip(behind.par_chunks_mut(keys * values));
    of_heads.enumerate().for_each(|(head, (out, matrix))| {
        let own = |width| head * tokens * width..(head + 1) * tokens * width;
        arch.dispatch(Head {
            queries: &q[own(keys)],
            keys: &k[own(keys)],
            values: &v[own(values)],
            rates: &rates[own(1)],
            decays: &decays[own(1)],
            widths: (keys, values),
            out,
            matrix,
        });
    });
    Ok((
        Tensor::from_vec(out, (heads, tokens, values), matrices.device())?,
        Tensor::from_vec(behind, (heads, keys, values), matrices.device())?,
    ))
}

fn whole<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    let (Storage::Cpu(CpuStorage::F32(numbers)), Some((from, to))) =
        (storage, layout.contiguous_offsets())
    else {
        bail!("the delta rule takes contiguous numbers in f32 on the CPU");
    };
    Ok(&numbers[from..to])
}

/// One head, whose slices are rows one after the other, a row for each token.
struct Head<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    rates: &'a [f32],
    decays: &'a [f32],
    /// Of a key and of a value.
    widths: (usize, usize),
    out: &'a mut [f32],
    /// A row for each number of a key.
    matrix: &'a mut [f32],
}

impl NullaryFnOnce for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (keys, values) = self.widths;
        let mut columns = vec![[0f32; COLUMNS]; keys];
        for from in (0..values).step_by(COLUMNS) {
            let width = COLUMNS.min(values - from);
            for (column, row) in columns.iter_mut().zip(self.matrix.chunks_exact(values)) {
                column[..width].copy_from_slice(&row[from..from + width]);
            }
            let rows = self.keys.chunks_exact(keys);
            let rows = rows.zip(self.queries.chunks_exact(keys));
            let said = self.values.chunks_exact(values);
            let said = said.zip(self.out.chunks_exact_mut(values));
            let gates = self.rates.iter().zip(self.decays);
            for (((key, query), (value, out)), (rate, decay)) in rows.zip(said).zip(gates) {
                let kept = decay.exp();
                // What the matrix has for the key.
                let mut had = [0f32; COLUMNS];
                for (column, key) in columns.iter_mut().zip(key) {
                    for (number, had) in column.iter_mut().zip(&mut had) {
                        *number *= kept;
                        *had += key * *number;
                    }
                }
                let mut new = [0f32; COLUMNS];
                for ((new, had), value) in new.iter_mut().zip(had).zip(&value[from..]) {
                    *new = (value - had) * rate;
                }
                let mut read = [0f32; COLUMNS];
                for ((column, key), query) in columns.iter_mut().zip(key).zip(query) {
                    let numbers = column.iter_mut().zip(&new);
                    for ((number, new), read) in numbers.zip(&mut read) {
                        *number += key * new;
                        *read += query * *number;
                    }
                }
                out[from..from + width].copy_from_slice(&read[..width]);
            }
            let rows = self.matrix.chunks_exact_mut(values);
            for (column, row) in columns.iter().zip(rows) {
                row[from..from + width].copy_from_slice(&column[..width]);
            }
        }
    }
}
