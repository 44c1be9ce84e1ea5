//! Cosmos 3 Edge (arXiv 2606.02800): SigLIP 2 for pictures of any size, a merger of squares of four patches, and a decoder like Llama's with a
//! squared ReLU and three axes of positions. The generators beside it are left alone, as those of [`super::cosmos3`].
//!
//! - this file: the family, and where things stand in a pipeline of diffusers
//! - `config`: the checkpoint's configuration
//! - `tower`: the tower with the merger

mod config;
mod tower;

use super::checkpoint::Checkpoint;
use super::cosmos3::OTHER_PARTS;
use super::decoder::{self, Unsupported};
use super::family::{text_config, FamilyConfig, OtherPart, CONFIG};
use super::qwen_vl::{Processing, QwenVision, VideoSizes, AROUND_IMAGE, IMAGE_PAD};
use super::vision::Vision;
use super::weights::{Names, Weights};
use super::ModelError;
use crate::cache::RopeAxes;
use config::{Config, Shape};
use tower::EdgeTower;

const TEXT_PATH: &str = "model.language_model";
const VISUAL_PATH: &str = "model.visual";
const PROJECTOR_PATH: &str = "model.projector";

/// The hub's names of the decoder, which are diffusers', in the spelling of transformers' model, as its conversion_mapping.py has them
/// (5.23). Tower and merger have their own names in the hub's files; what that saves anew has the decoder's names of products there, too.
pub const NAMES: Names = Names(&[
    ("layers.", "model.language_model.layers."),
    ("embed_tokens.", "model.language_model.embed_tokens."),
    ("norm.", "model.language_model.norm."),
    (".self_attn.to_q.", ".self_attn.q_proj."),
    (".self_attn.to_k.", ".self_attn.k_proj."),
    (".self_attn.to_v.", ".self_attn.v_proj."),
    (".self_attn.to_out.", ".self_attn.o_proj."),
    (".mlp.up_proj.", ".mlp.fc1."),
    (".mlp.down_proj.", ".mlp.fc2."),
]);

/// As `Cosmos3EdgeImageProcessor` and `Cosmos3EdgeVideoProcessor` do it.
const PROCESSING: Processing = Processing {
    image_pixels: (256 * 256, 4096 * 4096),
    video_squares: (4, 24 * 1024),
    video_sizes: VideoSizes::WholeVideo,
    images_at_least: true,
    colours_last: true,
    colours: [[0.5; 3]; 2],
};

/// A checkpoint's configuration, read and checked.
struct Edge {
    image_token: u32,
    text: decoder::Config,
    shape: Shape,
}

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    let wrong = |unsupported: Unsupported| unsupported.of(checkpoint.path(CONFIG));
    let config = Config::from_json(checkpoint.json(CONFIG)?).map_err(wrong)?;
    let tied = config.tie_word_embeddings;
    let text = text_config(
        checkpoint,
        config.text_config.clone(),
        decoder::llama::COSMOS3_EDGE,
        tied,
    )?;
    check_axes(&text).map_err(wrong)?;
    Ok(Box::new(Edge {
        image_token: config.image_token_id,
        shape: config.shape(text.hidden_size()).map_err(wrong)?,
        text,
    }))
}

/// Checks that the decoder's positions have three axes that take turns.
fn check_axes(text: &decoder::Config) -> Result<(), Unsupported> {
    let expected = "mrope_section: three numbers that take turns";
    match text.cache_shape()?.rope.axes {
        RopeAxes::Interleaved(_) => Ok(()),
        RopeAxes::One => Err(Unsupported::new("rope_parameters", "no sections", expected)),
        RopeAxes::Sections(_) => Err(Unsupported::new(
            "rope_parameters",
            "not interleaved",
            expected,
        )),
    }
    .map_err(|unsupported| unsupported.within("text_config"))
}

impl FamilyConfig for Edge {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        TEXT_PATH
    }

    fn head_path(&self) -> &str {
        "lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.image_token, IMAGE_PAD)
    }

    fn markup_tokens(&self) -> &[&str] {
        &AROUND_IMAGE
    }

    fn other_parts(&self) -> &'static [OtherPart] {
        OTHER_PARTS
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError> {
        let at = (weights.dtype(), weights.device());
        let shape = &self.shape;
        let vision = QwenVision::new(checkpoint, (&shape.measures, PROCESSING), at, || {
            let parts = [VISUAL_PATH, PROJECTOR_PATH].map(|path| weights.pp(path));
            Ok(Box::new(EdgeTower::new(shape, &parts)?))
        })?;
        Ok(Box::new(vision))
    }
}
