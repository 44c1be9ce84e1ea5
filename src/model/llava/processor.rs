//! Pictures to tiles, as the published image processors of CLIP, SigLIP and the LLaVA families do it.

use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::preprocess::picture::{Picture, PlanarRow};
use crate::model::preprocess::resample::{Resizer, Window};
use crate::model::preprocess::{
    filter, processor_config, Normalisation, NormalisationConfig, CLIP_MEAN, CLIP_STD,
};
use crate::model::vision::Tile;
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    image_processor_type: Option<String>,
    do_resize: Option<bool>,
    size: Size,
    /// PIL's number of the filter.
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    /// Of LLaVA-1.5's own processor: pictures are made square with their mean colour. (Of the others, that tensors are filled up.)
    do_pad: Option<bool>,
    image_grid_pinpoints: Option<Vec<[usize; 2]>>,
    #[serde(flatten)]
    normalisation: NormalisationConfig,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Shortest {
        shortest_edge: usize,
    },
    Sides {
        height: usize,
        width: usize,
    },
    /// As old files have it: the shortest edge of a size, both sides of a crop.
    Number(usize),
}

/// The image processor of a checkpoint.
#[derive(Debug)]
pub struct Processor {
    /// Side of a tile, pixels.
    pub tile: usize,
    /// What the shorter side becomes before the middle is cut out; if nothing, both sides become the tile's.
    shortest_edge: Option<usize>,
    pad: bool,
    pub resizer: Resizer,
    pub normalisation: Normalisation,
}

impl Processor {
    /// Reads the processor's configuration for a tower of `tile` pixels; `pinpoints` are those of config.json, if pictures are cut into
    /// tiles.
    pub fn load(
        checkpoint: &Checkpoint,
        tile: usize,
        pinpoints: Option<&[[usize; 2]]>,
    ) -> Result<Self, ModelError> {
        let (file, config) = processor_config::<Config>(checkpoint)?;
        Self::new(&config, tile, pinpoints).map_err(|unsupported| unsupported.of(file))
    }

    fn new(
        config: &Config,
        tile: usize,
        pinpoints: Option<&[[usize; 2]]>,
    ) -> Result<Self, Unsupported> {
        if config.do_resize == Some(false) {
            return Err(Unsupported::new("do_resize", "false", "true"));
        }
        if let (Some(given), Some(expected)) = (&config.image_grid_pinpoints, pinpoints) {
            if given != expected {
                let expected = format!("{expected:?}, as config.json says");
                let field = "image_grid_pinpoints";
                return Err(Unsupported::new(field, format!("{given:?}"), expected));
            }
        }
        let kind = config.image_processor_type.as_deref().unwrap_or_default();
        let (mean, std) = match kind.starts_with("Siglip") {
            true => ([0.5; 3], [0.5; 3]),
            false => (CLIP_MEAN, CLIP_STD),
        };
        let shortest_edge = config.shortest_edge(tile)?;
        Ok(Self {
            tile,
            shortest_edge: match (shortest_edge, pinpoints) {
                (Some(edge), Some(_)) if edge != tile => {
                    let expected = format!("{tile}, the vision tower's image_size");
                    return Err(Unsupported::new("size.shortest_edge", edge, expected));
                }
                (edge, _) => edge,
            },
            pad: pinpoints.is_none() && config.do_pad == Some(true),
            resizer: Resizer::new(filter(config.resample.unwrap_or(BICUBIC))?),
            normalisation: Normalisation::new(&config.normalisation, mean, std)?,
        })
    }

    /// A picture as the processor of CLIP or SigLIP makes it a tile.
    pub fn image(&self, picture: &dyn Picture) -> Tile {
        let square = self.in_square(picture);
        let picture = if self.pad { &square } else { picture };
        let Some(edge) = self.shortest_edge else {
            return self.stretched(picture);
        };
        let (width, height) = picture.size();
        let longer = |this: usize, other: usize| match this > other {
            true => (edge as f64 * this as f64 / other as f64) as usize,
            false => edge,
        };
        let to = (longer(width, height), longer(height, width));
        let middle = |side: usize| {
            let start = (side - self.tile) / 2;
            start..start + self.tile
        };
        let part = Window {
            across: middle(to.0),
            down: middle(to.1),
        };
        self.tile_of(self.resizer.resize_part(picture, to, part))
    }

    /// The same, but for the whole picture where only its middle would be taken.
    pub fn frame(&self, picture: &dyn Picture) -> Tile {
        match self.frames_in_square() {
            true => self.padded(picture),
            false => self.stretched(picture),
        }
    }

    /// Whether frames come into a square first: where the checkpoint has it so, or images are cut out of.
    pub fn frames_in_square(&self) -> bool {
        self.pad || self.shortest_edge.is_some()
    }

    /// What is around a picture in its square.
    pub fn square_colour(&self) -> [u8; 3] {
        let mean = self.normalisation.mean();
        mean.map(|value| (value * 255.0) as u8)
    }

    /// The whole picture at the size of a tile, its aspect ratio given up.
    pub fn stretched(&self, picture: &dyn Picture) -> Tile {
        self.tile_of(self.resizer.resize(picture, (self.tile, self.tile)))
    }

    /// The whole picture in the middle of a square of the mean colour, at the size of a tile.
    pub fn padded(&self, picture: &dyn Picture) -> Tile {
        self.stretched(&self.in_square(picture))
    }

    fn in_square<'a>(&self, picture: &'a dyn Picture) -> InSquare<'a> {
        InSquare {
            picture,
            colour: self.square_colour().map(i32::from),
        }
    }

    pub fn tile_of(&self, rgb: Vec<u8>) -> Tile {
        Tile {
            width: self.tile,
            height: self.tile,
            rgb,
        }
    }
}

/// PIL's number.
const BICUBIC: u8 = 3;

impl Config {
    /// What the shorter side of a picture becomes, if not both sides are given; at least `tile`, the side of what is cut out.
    fn shortest_edge(&self, tile: usize) -> Result<Option<usize>, Unsupported> {
        let expected = |what: &str| format!("{what} {tile}, the vision tower's image_size");
        let crops = self.do_center_crop.unwrap_or(self.crop_size.is_some());
        let crop = match self.crop_size.filter(|_| crops) {
            None => None,
            Some(Size::Sides { height, width }) => Some((height, width)),
            Some(
                Size::Number(side)
                | Size::Shortest {
                    shortest_edge: side,
                },
            ) => Some((side, side)),
        };
        if let Some((height, width)) = crop.filter(|&crop| crop != (tile, tile)) {
            let value = format!("{height} x {width}");
            return Err(Unsupported::new("crop_size", value, expected("both sides")));
        }
        match self.size {
            Size::Sides { height, width } if (height, width) == (tile, tile) => Ok(None),
            Size::Sides { height, width } => {
                let value = format!("{height} x {width}");
                Err(Unsupported::new("size", value, expected("both sides")))
            }
            Size::Shortest { shortest_edge } | Size::Number(shortest_edge) => {
                if crop.is_none() {
                    let expected =
                        "true with a crop_size, as the size is that of the shortest edge";
                    return Err(Unsupported::new("do_center_crop", crops, expected));
                }
                match (tile..=MAX_EDGE).contains(&shortest_edge) {
                    true => Ok(Some(shortest_edge)),
                    false => {
                        let expected =
                            format!("{tile}, the vision tower's image_size, to {MAX_EDGE}");
                        Err(Unsupported::new(
                            "size.shortest_edge",
                            shortest_edge,
                            expected,
                        ))
                    }
                }
            }
        }
    }
}

/// The largest side that a picture is brought to, pixels.
const MAX_EDGE: usize = 4096;

/// A picture in the middle of a square of one colour.
struct InSquare<'a> {
    picture: &'a dyn Picture,
    colour: [i32; 3],
}

impl Picture for InSquare<'_> {
    fn size(&self) -> (usize, usize) {
        let (width, height) = self.picture.size();
        let side = width.max(height);
        (side, side)
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        let (width, height) = self.picture.size();
        let side = width.max(height);
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        let inside = y.checked_sub(top).filter(|&y| y < height).map(|y| {
            let mut inner = PlanarRow::new(width);
            self.picture.read_row(y, &mut inner);
            inner
        });
        let planes = |row: PlanarRow| [row.red, row.green, row.blue];
        let inside = inside.map(planes);
        let outer = [&mut row.red, &mut row.green, &mut row.blue];
        for (i, plane) in outer.into_iter().enumerate() {
            plane[..side].fill(self.colour[i]);
            if let Some(inside) = &inside {
                plane[left..left + width].copy_from_slice(&inside[i][..width]);
            }
        }
    }
}
