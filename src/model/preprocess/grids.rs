//! Grids of tiles that an image of a prompt may be cut into, as the published processors of InternVL and LFM2-VL choose among them.

/// Grids of square tiles.
#[derive(Debug, Clone)]
pub struct TileGrids {
    /// Side of a tile, pixels.
    pub tile: usize,
    /// Rows and columns, from the fewest tiles to the most; of equals the narrowest first.
    grids: Vec<[usize; 2]>,
}

impl TileGrids {
    /// All grids of `least` to `most` tiles.
    pub fn new(tile: usize, least: usize, most: usize) -> Self {
        let sides = |columns| (1..=most / columns).map(move |rows| [rows, columns]);
        let mut grids = (1..=most).flat_map(sides).collect::<Vec<_>>();
        grids.retain(|[rows, columns]| rows * columns >= least);
        grids.sort_by_key(|[rows, columns]| rows * columns);
        Self { tile, grids }
    }

    /// Rows and columns of tiles for an image of `size` (width, height): the grid whose aspect ratio is nearest. Of equals the one with
    /// the most tiles, as long as these have less than twice the image's pixels.
    pub fn best(&self, (width, height): (usize, usize)) -> [usize; 2] {
        let ratio = width as f64 / height as f64;
        let pixels = width as f64 * height as f64;
        let (mut best, mut least) = ([1, 1], f64::INFINITY);
        for &[rows, columns] in &self.grids {
            let off = (ratio - columns as f64 / rows as f64).abs();
            let filled = || pixels > 0.5 * (self.tile * self.tile * rows * columns) as f64;
            if off < least || (off == least && filled()) {
                (best, least) = ([rows, columns], off);
            }
        }
        best
    }
}
