//! Pixel shuffle: squares of patches joined into rows.

use candle_core::{Result, Tensor};

/// `[tiles, patches, width]` -> `[tiles, patches / scale^2, width * scale^2]`: the patches of each square of `scale` x `scale` one behind
/// the other, row by row. The patches of a tile are a square whose side is a multiple of `scale`.
pub fn pixel_shuffle(x: &Tensor, scale: usize) -> Result<Tensor> {
    let (tiles, patches, width) = x.dims3()?;
    let out = patches.isqrt() / scale;
    x.reshape((tiles, out, scale, out, scale * width))?
        .transpose(2, 3)?
        .reshape((tiles, out * out, scale * scale * width))
}

/// `[rows * columns, width]` -> `[rows * columns / scale^2, width * scale^2]`: the same of one grid of patches, whose sides are multiples of
/// `scale`.
pub fn grid_shuffle(x: &Tensor, [rows, columns]: [usize; 2], scale: usize) -> Result<Tensor> {
    let width = x.dim(1)?;
    let (down, across) = (rows / scale, columns / scale);
    x.reshape((down, scale, across, scale * width))?
        .transpose(1, 2)?
        .reshape((down * across, scale * scale * width))
}
