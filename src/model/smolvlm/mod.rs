//! SmolVLM / SmolVLM2 / Idefics3: SigLIP tower, pixel-shuffle connector, Llama decoder.
//!
//! Names follow the published tensors: `model.vision_model`, `model.connector`, `model.text_model`, `lm_head`.

mod config;
mod connector;

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use candle_transformers::models::siglip;

pub use config::Config;
use connector::Connector;

use super::checkpoint::Checkpoint;
use super::llama::Llama;
use super::preprocess::ImageProcessor;
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use super::ModelError;

/// The family's control tokens.
pub mod control {
    pub const BOS: &str = "<|im_start|>";
    pub const END_OF_UTTERANCE: &str = "<end_of_utterance>";
    pub const FAKE_IMAGE: &str = "<fake_token_around_image>";
    pub const GLOBAL_IMAGE: &str = "<global-img>";
    pub const IMAGE: &str = "<image>";
}

/// A loaded checkpoint: everything from pictures and text to logits.
pub struct SmolVlm {
    pub config: Config,
    pub tokenizer: ChatTokenizer,
    pub template: ChatTemplate,
    pub processor: ImageProcessor,
    pub decoder: Llama,
    vision: siglip::VisionModel,
    connector: Connector,
    dtype: DType,
    device: Device,
    /// Ends an answer.
    pub end_of_utterance: u32,
}

impl SmolVlm {
    /// Loads a published directory; the weights may have any precision, the arithmetic is done in `dtype`.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config = Config::load(checkpoint)?;
        let tokenizer = ChatTokenizer::load(checkpoint)?;
        for name in [control::BOS, control::FAKE_IMAGE, control::GLOBAL_IMAGE] {
            tokenizer.control(name)?;
        }
        let end_of_utterance = tokenizer.control(control::END_OF_UTTERANCE)?;
        let image = tokenizer.control(control::IMAGE)?;
        if image != config.image_token_id {
            return Err(ModelError::Unsupported {
                file: checkpoint.path("tokenizer.json"),
                field: format!("id of {}", control::IMAGE),
                value: image.to_string(),
                expected: format!("{}, as config.json says", config.image_token_id),
            });
        }
        if tokenizer.vocab_size() > config.text_config.vocab_size {
            return Err(ModelError::Unsupported {
                file: checkpoint.path("tokenizer.json"),
                field: "vocabulary".to_string(),
                value: tokenizer.vocab_size().to_string(),
                expected: format!(
                    "at most text_config.vocab_size ({})",
                    config.text_config.vocab_size
                ),
            });
        }
        let template = ChatTemplate::load(checkpoint)?;
        let processor = ImageProcessor::load(checkpoint, config.vision_config.image_size)?;

        let vb = checkpoint.weights(dtype, device)?;
        let fail = |error| checkpoint.weight_error(error);
        let model = vb.pp("model");
        let vision = siglip::VisionModel::new(
            &config.vision_config.to_siglip(),
            false,
            model.pp("vision_model"),
        )
        .map_err(fail)?;
        let connector = Connector::new(&config, model.pp("connector")).map_err(fail)?;
        let head = (!config.tied()).then(|| vb.clone());
        let decoder =
            Llama::new(&config.text_config, model.pp("text_model"), head).map_err(fail)?;
        Ok(Self {
            config,
            tokenizer,
            template,
            processor,
            decoder,
            vision,
            connector,
            dtype: vb.dtype(),
            device: device.clone(),
            end_of_utterance,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Vision tower and connector: pixel values `[images, 3, size, size]` -> `[images, tokens, hidden]`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let pixels = pixels.to_device(&self.device)?.to_dtype(self.dtype)?;
        Ok(self.connector.forward(&self.vision.forward(&pixels)?)?)
    }

    /// The text that stands for one unsplit image in a prompt.
    pub fn image_text(&self) -> String {
        let tokens = self.config.tokens_per_image();
        let mut text = format!("{}{}", control::FAKE_IMAGE, control::GLOBAL_IMAGE);
        text.push_str(&control::IMAGE.repeat(tokens));
        text.push_str(control::FAKE_IMAGE);
        text
    }

    /// Input embeddings `[tokens, hidden]`: those of `ids`, with the rows of image tokens taken from `features`
    /// (`[images, tokens, hidden]`) in order.
    pub fn embed(&self, ids: &[u32], features: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let text = self.decoder.embed(ids)?;
        let image = self.config.image_token_id;
        let wanted = ids.iter().filter(|&&id| id == image).count();
        let rows = match features {
            Some(features) => features.flatten_to(1)?,
            None => text.narrow(0, 0, 0)?,
        };
        if rows.dim(0)? != wanted {
            return Err(candle_core::Error::Msg(format!(
                "{wanted} image tokens in the input, but features for {}",
                rows.dim(0)?
            ))
            .into());
        }
        if wanted == 0 {
            return Ok(text);
        }
        // Runs of text and of image tokens, in order.
        let mut pieces = Vec::new();
        let (mut at, mut used) = (0, 0);
        while at < ids.len() {
            let is_image = ids[at] == image;
            let run = ids[at..]
                .iter()
                .take_while(|&&id| (id == image) == is_image)
                .count();
            if is_image {
                pieces.push(rows.narrow(0, used, run)?);
                used += run;
            } else {
                pieces.push(text.narrow(0, at, run)?);
            }
            at += run;
        }
        Ok(Tensor::cat(&pieces, 0)?)
    }
}
