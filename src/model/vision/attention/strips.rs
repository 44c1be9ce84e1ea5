//! The same in candle's operations, for a GPU: a strip of queries of all heads at a time, so that few logits are in memory together.

use candle_core::{DType, Result, Tensor};
use candle_nn::rotary_emb::rope;

use super::Windows;
use crate::cache::{shares, weighted_sums};

/// Logits that are in memory together, at most, unless one row of each head has more.
const LOGITS: usize = 1 << 24;

/// As [`super::attend`], on any device.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, windows: Windows) -> Result<Tensor> {
    let (rows, hidden) = q.dims2()?;
    let (heads, head_dim) = (windows.heads, hidden / windows.heads);
    // [heads, rows, head_dim]
    let by_head = |x: &Tensor| {
        x.reshape((rows, heads, head_dim))?
            .transpose(0, 1)?
            .contiguous()
    };
    let turned = |x: &Tensor| match windows.turns {
        Some(tables) => turn(&by_head(x)?, tables),
        None => by_head(x),
    };
    let q = (turned(q)? / (head_dim as f64).sqrt())?;
    let (k, v) = (turned(k)?, by_head(v)?);
    let mut attended = Vec::new();
    let mut first = 0;
    // Neighbours of one length are one batch.
    for equal in windows.lengths.chunk_by(|a, b| a == b) {
        let (length, count) = (equal[0], equal.len() * equal[0]);
        let batch = |x: &Tensor| {
            let part = x.narrow(1, first, count)?.contiguous()?;
            part.reshape((heads * equal.len(), length, head_dim))
        };
        let out = in_strips(&batch(&q)?, &batch(&k)?, &batch(&v)?, LOGITS)?;
        attended.push(out.reshape((heads, count, head_dim))?);
        first += count;
    }
    Tensor::cat(&attended, 1)?.transpose(0, 1)?.flatten_from(1)
}

/// `x` (`[heads, rows, head_dim]`, contiguous), turned in f32.
fn turn(x: &Tensor, [cos, sin]: [&Tensor; 2]) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?.unsqueeze(0)?;
    rope(&wide, cos, sin)?.squeeze(0)?.to_dtype(x.dtype())
}

/// Attention of scaled queries over keys and values, `[batch, rows, head_dim]` each, with at most so many logits at a time (but whole
/// rows); the softmax is in f32.
fn in_strips(q: &Tensor, k: &Tensor, v: &Tensor, logits: usize) -> Result<Tensor> {
    let (batch, rows, _) = q.dims3()?;
    let strip = (logits / (batch * rows).max(1)).clamp(1, rows.max(1));
    let k = k.t()?;
    let mut outs = Vec::new();
    for first in (0..rows).step_by(strip) {
        let q = q.narrow(1, first, strip.min(rows - first))?;
        let logits = q.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?;
        outs.push(weighted_sums(&shares(&logits)?, v)?);
    }
    Tensor::cat(&outs, 1)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::attend as on_cpu;
    use super::*;

    fn off(a: &Tensor, b: &Tensor) -> f32 {
        let off = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        off.to_scalar().unwrap()
    }

    #[test]
    fn attention_in_strips_of_rows_is_the_same() {
        let random = || Tensor::randn(0f32, 1., (2, 7, 4), &Device::Cpu).unwrap();
        let (q, k, v) = (random(), random(), random());
        let whole = in_strips(&q, &k, &v, LOGITS).unwrap();
        for logits in [1, 2 * 7 * 3] {
            let off = off(&in_strips(&q, &k, &v, logits).unwrap(), &whole);
            assert!(off < 1e-6, "{off}");
        }
    }

    #[test]
    fn windows_of_turned_rows_are_those_of_the_cpu() {
        let (heads, head_dim, lengths) = (3, 8, [5, 5, 1, 40, 40, 7]);
        let rows = lengths.iter().sum::<usize>();
        let random = |width| Tensor::randn(0f32, 1., (rows, width), &Device::Cpu).unwrap();
        let qkv = random(3 * heads * head_dim);
        let part = |i: usize| {
            qkv.narrow(1, i * heads * head_dim, heads * head_dim)
                .unwrap()
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let angles = random(head_dim / 2);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        for turns in [None, Some([&cos, &sin])] {
            let windows = Windows {
                heads,
                lengths: &lengths,
                turns,
            };
            let got = attend(&q, &k, &v, windows).unwrap();
            let off = off(&got, &on_cpu(&q, &k, &v, windows).unwrap());
            assert!(off < 1e-5, "{off}");
        }
    }
}
