//! How far pixel values may be from the published processor's.

use std::path::Path;

use candle_core::Tensor;
use inf_mllm::model::vision::Prepared;

use crate::support::json;

/// In grey levels: what transformers' two backends differ by.
const LEVEL: f32 = 1.001;
/// Where one side shrinks and the other grows: Pillow then resizes the rows and columns in the other order, and rounds between.
const OTHER_ORDER: f32 = 5.5;
/// On average over a picture.
const MEAN: f32 = 0.15;

/// The smallest of the standard deviations that values are divided by.
pub fn smallest_std(dir: &Path) -> f32 {
    let config = json(&dir.join("preprocessor_config.json"));
    let std: [f32; 3] = serde_json::from_value(config["image_std"].clone()).unwrap();
    std.into_iter().fold(1.0, f32::min)
}

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

/// Checks the values of a picture, of which a grey level is at most 1 / (255 `std`).
pub fn check(name: &str, prepared: &Prepared, (got, wanted): (&Tensor, &Tensor), std: f32) {
    assert_eq!(got.dims(), wanted.dims(), "{name}");
    let levels = (got - wanted).unwrap().abs().unwrap() * f64::from(255.0 * std);
    let levels = levels.unwrap();
    let max = levels.max_all().unwrap().to_scalar::<f32>().unwrap();
    let mean = levels.mean_all().unwrap().to_scalar::<f32>().unwrap();
    let limit = if mixed(prepared) { OTHER_ORDER } else { LEVEL };
    println!("{name}: pixel values differ by {max:.2} grey levels, on average by {mean:.3}");
    assert!(
        max <= limit && mean <= MEAN,
        "{name}: pixel values differ by {max} grey levels, on average by {mean}"
    );
}
