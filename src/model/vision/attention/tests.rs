use candle_core::Device;

use super::*;
use crate::cache::{shares, weighted_sums};

/// Attention of each window and head by candle's own operations.
fn plain(qkv: &[Tensor; 3], heads: usize, lengths: &[usize]) -> Result<Tensor> {
    let width = qkv[0].dim(1)? / heads;
    let mut windows = Vec::new();
    let mut first = 0;
    for &length in lengths {
        let mut by_head = Vec::new();
        for head in 0..heads {
            let part = |x: &Tensor| {
                x.narrow(0, first, length)?
                    .narrow(1, head * width, width)?
                    .contiguous()
            };
            let (q, k, v) = (part(&qkv[0])?, part(&qkv[1])?, part(&qkv[2])?);
            let logits = (q.matmul(&k.t()?)? / (width as f64).sqrt())?;
            by_head.push(weighted_sums(&shares(&logits)?, &v)?);
        }
        windows.push(Tensor::cat(&by_head, 1)?);
        first += length;
    }
    Tensor::cat(&windows, 0)
}

fn off(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

fn in_pool<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(run)
}

#[test]
fn windows_of_any_length_attend_within_themselves_with_any_number_of_threads() -> Result<()> {
    for (heads, width) in [(3, 8), (2, 72), (1, 5), (2, 64)] {
        let lengths = [1, 7, 32, 33, 128, 129, 300];
        let rows = lengths.iter().sum::<usize>();
        let random = || Tensor::randn(0f32, 1., (rows, heads * width), &Device::Cpu);
        let qkv = [random()?, random()?, random()?];
        let [q, k, v] = &qkv;
        let windows = Windows {
            heads,
            lengths: &lengths,
            turns: None,
        };
        let got = in_pool(1, || attend(q, k, v, windows))?;
        let off = off(&got, &plain(&qkv, heads, &lengths)?)?;
        assert!(off < 1e-5, "{heads} heads of {width}: off by {off:e}");
        let three = in_pool(3, || attend(q, k, v, windows))?;
        assert_eq!(got.to_vec2::<f32>()?, three.to_vec2::<f32>()?);
    }
    Ok(())
}

#[test]
fn queries_and_keys_of_one_product_are_turned_where_they_lie() -> Result<()> {
    let (rows, heads, width) = (50, 2, 8);
    let qkv = Tensor::randn(0f32, 2., (rows, 3 * heads * width), &Device::Cpu)?;
    let angles = Tensor::randn(0f32, 2., (rows, width / 2), &Device::Cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let part = |i: usize| qkv.narrow(1, i * heads * width, heads * width);
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let windows = Windows {
        heads,
        lengths: &[rows],
        turns: Some([&cos, &sin]),
    };
    let got = attend(&q, &k, &v, windows)?;
    let turned = |x: &Tensor| {
        let by_head = x
            .reshape((rows, heads, width))?
            .transpose(0, 1)?
            .contiguous()?;
        let turned = candle_nn::rotary_emb::rope(&by_head.unsqueeze(0)?, &cos, &sin)?;
        turned
            .squeeze(0)?
            .transpose(0, 1)?
            .flatten_from(1)?
            .contiguous()
    };
    let want = plain(&[turned(&q)?, turned(&k)?, v.contiguous()?], heads, &[rows])?;
    assert!(off(&got, &want)? < 1e-5);
    Ok(())
}

#[test]
fn large_logits_do_not_overflow_and_halves_stay_halves() -> Result<()> {
    let x = (Tensor::randn(0f32, 1., (200, 16), &Device::Cpu)? * 40.0)?;
    let windows = Windows {
        heads: 1,
        lengths: &[200],
        turns: None,
    };
    let got = attend(&x, &x, &x, windows)?;
    assert!(off(&got, &plain(&[x.clone(), x.clone(), x.clone()], 1, &[200])?)? < 1e-3);
    let half = x.to_dtype(DType::F16)?;
    assert_eq!(attend(&half, &half, &half, windows)?.dtype(), DType::F16);
    Ok(())
}

#[test]
fn windows_that_are_not_all_rows_are_an_error() -> Result<()> {
    let x = Tensor::zeros((4, 6), DType::F32, &Device::Cpu)?;
    for (heads, lengths) in [(1, vec![3]), (4, vec![4]), (0, vec![4])] {
        let windows = Windows {
            heads,
            lengths: &lengths,
            turns: None,
        };
        assert!(attend(&x, &x, &x, windows).is_err(), "{heads} {lengths:?}");
    }
    Ok(())
}
