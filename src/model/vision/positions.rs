//! Learned positions of a square of patches, stretched over a picture's grid: what lets a tower of fixed size see any ("NaFlex", arXiv 2502.14786).

use candle_core::{Device, Result, Tensor};

use crate::model::preprocess::resample::Filter;

/// The table of positions `[side, side, hidden]`, f32, for a grid of rows and columns, `[rows * columns, hidden]`: with a bilinear filter,
/// first its rows become those of the grid, then its columns.
pub fn stretched(table: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (side, _, hidden) = table.dims3()?;
    let device = table.device();
    let table = table.reshape((side, side * hidden))?;
    let down = weights(side, rows, device)?.matmul(&table)?;
    let down = down.reshape((rows, side, hidden))?;
    let across = weights(side, columns, device)?;
    let across = across.broadcast_left(rows)?.contiguous()?;
    across.matmul(&down)?.flatten_to(1)
}

/// The weights with which `from` values in a row become `to`, `[to, from]`, f32: linear between the middles of places, over more of them
/// where places become fewer, as torch's `interpolate` does it with `antialias`.
fn weights(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; to * from];
    for (i, weights) in weights.chunks_exact_mut(from).enumerate() {
        let (start, taps) = Filter::Bilinear.weights(from, to, i);
        for (weight, tap) in weights[start..].iter_mut().zip(taps) {
            *weight = tap as f32;
        }
    }
    Tensor::from_vec(weights, (to, from), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By torch 2.15: `interpolate(table, size, mode="bilinear", align_corners=False, antialias=True)` of rows 0 to 4 squared.
    #[test]
    fn positions_are_stretched_and_shrunk_as_torch_does_it() -> Result<()> {
        for (to, wanted) in [
            (5, &[0.0, 1.0, 4.0, 9.0, 16.0][..]),
            (
                8,
                &[0.0, 0.4375, 1.1875, 3.0625, 5.5625, 8.6875, 12.9375, 16.0],
            ),
            (3, &[0.428_571_4, 4.444_444_7, 13.0]),
            (2, &[1.727_272_7, 9.727_272]),
        ] {
            let table = Tensor::new(&[0f32, 1.0, 4.0, 9.0, 16.0], &Device::Cpu)?;
            let got = weights(5, to, &Device::Cpu)?.matmul(&table.unsqueeze(1)?)?;
            let got = got.flatten_all()?.to_vec1::<f32>()?;
            let near = got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(got.len() == wanted.len() && near, "{got:?}, {wanted:?}");
        }
        Ok(())
    }
}
