//! How far pixel values may be from the published processor's.

use candle_core::Tensor;
use inf_mllm::model::vision::Prepared;

/// In normalised values: one grey level, by which transformers' two backends differ.
const LEVEL: f32 = 2.0 / 255.0 + 1e-6;
/// Where one side shrinks and the other grows: Pillow then resizes the rows and columns in the other order, and rounds between.
const OTHER_ORDER: f32 = 11.0 / 255.0 + 1e-6;
/// On average over a picture.
const MEAN: f32 = 0.3 / 255.0;

/// Whether the picture shrinks one way and grows the other on its way to a tile, or to all of them together.
fn mixed(prepared: &Prepared) -> bool {
    let (width, height) = prepared.layout.picture;
    let [_, rows, columns] = prepared.layout.grid;
    let together = prepared.tiles.first().filter(|_| prepared.tiles.len() > 1);
    let together = together.map(|tile| (columns * tile.width, rows * tile.height));
    let tiles = prepared.tiles.iter().map(|tile| (tile.width, tile.height));
    tiles
        .chain(together)
        .any(|(w, h)| width.cmp(&w) == height.cmp(&h).reverse() && width != w)
}

/// Checks the values of a picture.
pub fn check(name: &str, prepared: &Prepared, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.dims(), wanted.dims(), "{name}");
    let off = (got - wanted).unwrap().abs().unwrap();
    let max = off.max_all().unwrap().to_scalar::<f32>().unwrap();
    let mean = off.mean_all().unwrap().to_scalar::<f32>().unwrap();
    let limit = if mixed(prepared) { OTHER_ORDER } else { LEVEL };
    println!("{name}: pixel values differ by {max:.1e}, on average by {mean:.1e}");
    assert!(
        max <= limit && mean <= MEAN,
        "{name}: pixel values differ by {max}, on average by {mean}"
    );
}
