//! Pictures to patches, as the published Qwen2-VL image processor does it, which all the families use.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::sizes::{Limits, PixelCounts, VideoSizes};
use super::{Grid, Measures};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::fields::side;
use crate::model::preprocess::picture::Picture;
use crate::model::preprocess::recipe::Patches;
use crate::model::preprocess::resample::Resizer;
use crate::model::preprocess::{
    filter, processor_config, video_processor_config, Normalisation, NormalisationConfig,
    CLIP_MEAN, CLIP_STD,
};
use crate::model::vision::{FramePixels, FramePixelsError, Tile, View};
use crate::model::ModelError;

/// Mirrors `preprocessor_config.json` and `video_preprocessor_config.json`; missing fields have the values of transformers'
/// `Qwen2VLImageProcessor`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    /// PIL's number of the filter.
    resample: u8,
    size: Option<PixelCounts>,
    /// Where these stand, they win over `size`.
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    #[serde(deserialize_with = "side")]
    temporal_patch_size: usize,
    merge_size: usize,
    #[serde(flatten)]
    normalisation: NormalisationConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            resample: 3,
            size: None,
            min_pixels: None,
            max_pixels: None,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            normalisation: NormalisationConfig::default(),
        }
    }
}

/// What a family's published processors do in ways of their own.
#[derive(Debug, Clone, Copy)]
pub struct Processing {
    /// The fewest and the most pixels of an image, where nothing is said of them.
    pub image_pixels: (usize, usize),
    /// The same of a video, in squares that become a token: of a frame where its limits are each frame's.
    pub video_squares: (usize, usize),
    pub video_sizes: VideoSizes,
    /// Of images, too, a side that is shorter than a square's is brought to that first.
    pub images_at_least: bool,
    /// The values of a patch come pixel by pixel, not colour by colour.
    pub colours_last: bool,
    /// Means and deviations of the colours, where nothing is said of them.
    pub colours: [[f32; 3]; 2],
}

impl Processing {
    /// As `Qwen2VLImageProcessor` does it.
    pub fn qwen(video_sizes: VideoSizes) -> Self {
        Self {
            image_pixels: (56 * 56, 28 * 28 * 1280),
            video_squares: (128, 768),
            video_sizes,
            images_at_least: false,
            colours_last: false,
            colours: [CLIP_MEAN, CLIP_STD],
        }
    }
}

impl Config {
    /// The fewest and the most pixels of an image.
    fn image_pixels(&self, (fewest, most): (usize, usize)) -> Result<Limits, Unsupported> {
        let size = self.size.unwrap_or(PixelCounts::of(fewest, most));
        size.limits(self.min_pixels, self.max_pixels)
    }

    /// Those of a frame.
    fn frame_pixels(&self, processing: &Processing) -> Result<Limits, Unsupported> {
        let square = self.patch_size * self.merge_size;
        let square = square * square;
        let (fewest, most) = processing.video_squares;
        let size = self
            .size
            .unwrap_or(PixelCounts::of(fewest * square, most * square));
        let published = match processing.video_sizes {
            VideoSizes::EachFrame => size.limits(self.min_pixels, self.max_pixels)?,
            VideoSizes::WholeVideo => size.limits(None, None)?.shared(self.temporal_patch_size),
        };
        Ok(published.capped(FRAME_TOKENS * square))
    }

    /// Checks that patches are those of the tower, and that pictures may be resized.
    fn check(&self, measures: &Measures) -> Result<(), Unsupported> {
        if !self.do_resize {
            return Err(Unsupported::new("do_resize", "false", "true"));
        }
        for (field, given, tower) in [
            ("patch_size", self.patch_size, measures.patch_size),
            (
                "temporal_patch_size",
                self.temporal_patch_size,
                measures.temporal_patch_size,
            ),
            ("merge_size", self.merge_size, measures.spatial_merge_size),
        ] {
            if given != tower {
                let expected = format!("{tower}, as in vision_config");
                return Err(Unsupported::new(field, given, expected));
            }
        }
        Ok(())
    }

    fn rules(&self, pixels: Limits, processing: &Processing) -> Result<Rules, Unsupported> {
        let [mean, std] = processing.colours;
        Ok(Rules {
            pixels,
            resizer: Arc::new(Resizer::new(filter(self.resample)?)),
            normalisation: Normalisation::new(&self.normalisation, mean, std)?,
        })
    }
}

/// The most tokens of a video's frame (`VIDEO_MAX_TOKEN_NUM` of the families' own tools, qwen-vl-utils).
const FRAME_TOKENS: usize = 768;

/// What becomes of a picture before it is cut into patches.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Of a resized picture.
    pixels: Limits,
    pub resizer: Arc<Resizer>,
    pub normalisation: Normalisation,
}

/// The image processor and the video processor of a checkpoint.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    images: Rules,
    frames: Rules,
    processing: Processing,
    patch: usize,
    /// Frames of a patch.
    depth: usize,
    merge: usize,
}

impl ImageProcessor {
    /// Reads the processors' configurations, which must fit the tower's.
    pub fn load(
        checkpoint: &Checkpoint,
        measures: &Measures,
        processing: Processing,
    ) -> Result<Self, ModelError> {
        let (file, images) = processor_config::<Config>(checkpoint)?;
        let (origin, frames) = video_processor_config::<Config>(checkpoint)?;
        let images = images
            .check(measures)
            .and_then(|()| images.image_pixels(processing.image_pixels))
            .and_then(|pixels| images.rules(pixels, &processing));
        let frames = frames
            .check(measures)
            .and_then(|()| frames.frame_pixels(&processing))
            .and_then(|pixels| frames.rules(pixels, &processing));
        Ok(Self {
            images: images.map_err(|unsupported| unsupported.of(file))?,
            frames: frames.map_err(|unsupported| origin.error(unsupported))?,
            processing,
            patch: measures.patch_size,
            depth: measures.temporal_patch_size,
            merge: measures.spatial_merge_size,
        })
    }

    /// The same with other limits for frames.
    pub fn with_frame_pixels(&self, asked: FramePixels) -> Result<Self, FramePixelsError> {
        let mut processor = self.clone();
        let side = self.patch * self.merge;
        processor.frames.pixels = self.frames.pixels.with(asked, side * side)?;
        Ok(processor)
    }

    /// What is done with a picture that is looked at like this.
    pub fn rules(&self, view: View) -> &Rules {
        match view {
            View::Image { .. } => &self.images,
            View::Frame => &self.frames,
        }
    }

    /// Side of a patch, pixels.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// The grid of a picture of `size` (width, height).
    pub fn grid(&self, size: (usize, usize), view: View) -> Grid {
        let side = self.patch * self.merge;
        let begins_at_a_square = match view {
            View::Frame => self.processing.video_sizes == VideoSizes::WholeVideo,
            View::Image { .. } => self.processing.images_at_least,
        };
        let size = match begins_at_a_square {
            true => VideoSizes::at_least(side, size),
            false => (size.0 as f64, size.1 as f64),
        };
        let (down, across) = self.rules(view).pixels.squares(size, side);
        Grid {
            height: down * self.merge,
            width: across * self.merge,
            merge: self.merge,
        }
    }

    /// Width and height of the picture of a grid, pixels.
    pub fn size_of(&self, grid: Grid) -> (usize, usize) {
        (grid.width * self.patch, grid.height * self.patch)
    }

    /// How a picture is laid out.
    pub fn layout(&self) -> Patches {
        Patches {
            side: self.patch,
            merge: self.merge,
            frames: self.depth,
        }
    }

    /// The picture at the size of its grid.
    pub fn resize(&self, picture: &dyn Picture, grid: Grid, view: View) -> Tile {
        let (width, height) = self.size_of(grid);
        Tile {
            width,
            height,
            rgb: self.rules(view).resizer.resize(picture, (width, height)),
        }
    }

    /// The patches of a resized picture, `[patches, 3 * frames * side * side]`, f32: colour by colour, the picture as every frame.
    pub fn patches(&self, tile: &Tile, grid: Grid, view: View) -> candle_core::Result<Tensor> {
        let normalisation = self.rules(view).normalisation;
        let area = self.patch * self.patch;
        let mut values = Vec::with_capacity(grid.patches() * 3 * self.depth * area);
        for (row, column) in grid.places() {
            for colour in 0..3 {
                let first = values.len();
                for y in row * self.patch..(row + 1) * self.patch {
                    let from = 3 * (y * tile.width + column * self.patch);
                    let pixels = tile.rgb[from..][..3 * self.patch].as_chunks::<3>().0;
                    let bytes = pixels.iter().map(|pixel| pixel[colour]);
                    values.extend(bytes.map(|byte| normalisation.value(byte, colour)));
                }
                for _ in 1..self.depth {
                    values.extend_from_within(first..first + area);
                }
            }
        }
        let shape = (grid.patches(), 3 * self.depth * area);
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// A published processor's patches, `[patches, values]`, as [`Self::patches`] has them: colour by colour.
    pub fn by_colours(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        let area = self.patch * self.patch;
        match self.processing.colours_last {
            false => Ok(values.clone()),
            true => values
                .reshape((values.dim(0)?, area, 3, self.depth))?
                .permute((0, 2, 3, 1))?
                .flatten_from(1),
        }
    }

    /// Of the patches of two pictures, `[patches, 3 * 2 * side * side]` each, the first of the one as the first frame and the second of the
    /// other as the second.
    pub fn join(&self, first: &Tensor, second: &Tensor) -> candle_core::Result<Tensor> {
        let area = self.patch * self.patch;
        let frames = |values: &Tensor| values.reshape((values.dim(0)?, 3, self.depth, area));
        let (before, behind) = (frames(first)?, frames(second)?);
        let parts = [
            before.narrow(2, 0, 1)?,
            behind.narrow(2, 1, self.depth - 1)?,
        ];
        Tensor::cat(&parts, 2)?.reshape(first.shape())
    }
}
