//! A loaded multimodal checkpoint: everything from pictures and text to logits.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use super::checkpoint::Checkpoint;
use super::constraint::{ConstraintError, Constraints};
use super::decoder::{self, Decoder, Embedded};
use super::device::beside;
use super::ends::Ends;
use super::family::{Family, VideoAxis};
use super::generation::GenerationRules;
use super::placeholders::placeholders;
use super::precision::Precision;
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use super::vision::beside::Beside;
use super::vision::{ImageFeatures, Layout, Vision};
use super::weights::{Quantization, Source, Weights};
use super::ModelError;
use crate::cache::{CacheShape, FrameId, Mark, Place};

/// A multimodal model.
pub struct Mllm {
    pub family: &'static Family,
    pub config: decoder::Config,
    pub shape: CacheShape,
    /// Can be used in other threads while the model works.
    pub tokenizer: Arc<ChatTokenizer>,
    pub template: ChatTemplate,
    pub decoder: Decoder,
    /// Can be used in other threads while the model works.
    pub vision: Arc<dyn Vision>,
    /// Tokens that end an answer.
    pub ends: Ends,
    /// What the checkpoint asks of whoever chooses tokens.
    pub generation: GenerationRules,
    /// Ids that no answer holds, for they stand for pictures or for nothing, or the checkpoint suppresses them.
    pub placeholders: Vec<u32>,
    image_token: u32,
    /// How several frames are one video, if they are.
    pub video_axis: Option<VideoAxis>,
    video_token: Option<u32>,
    placeholder: String,
    device: Device,
    tower_device: Device,
    /// Made when they are asked for first, which takes a while.
    constraints: OnceLock<Result<Constraints, ConstraintError>>,
}

/// A chunk of text and images as the decoder takes it.
pub struct Chunk {
    pub embedded: Embedded,
    /// Of each token, the image that it belongs to, counted within the chunk.
    pub images: Vec<Option<usize>>,
    /// Of each token, its place in its image.
    pub places: Vec<Place>,
}

impl Chunk {
    /// What each token is to the cache, if the images are counted from 0.
    pub fn marks(&self) -> Vec<Mark> {
        let tokens = self.images.iter().zip(&self.places);
        tokens
            .map(|(image, &place)| Mark {
                frame: image.map(|i| i as FrameId),
                place,
                ..Mark::default()
            })
            .collect()
    }
}

impl Mllm {
    /// Loads a published directory; the weights may have any type, the arithmetic is done in that of `precision`.
    pub fn load(
        checkpoint: &Checkpoint,
        quantization: Quantization,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let family = Family::find(checkpoint)?;
        let tensors = checkpoint.tensors(family.names, quantization)?;
        let dtype = precision.dtype(tensors.as_ref(), device);
        Self::build(checkpoint, family, tensors, (dtype, device))
    }

    /// The model of a directory with the weights of `source`.
    pub fn build(
        checkpoint: &Checkpoint,
        family: &'static Family,
        source: Arc<dyn Source>,
        (dtype, device): (DType, &Device),
    ) -> Result<Self, ModelError> {
        let family_config = (family.open)(checkpoint)?;
        let config = family_config.text().clone();
        let shape = config
            .cache_shape()
            .map_err(|unsupported| unsupported.of(checkpoint.path(super::family::CONFIG)))?;
        let tokenizer = ChatTokenizer::load(checkpoint)?;
        for name in family_config.markup_tokens() {
            tokenizer.control(name)?;
        }
        let (image_token, placeholder) = family_config.image_token();
        tokenizer.check_control(placeholder, image_token)?;
        let vocabulary = family_config.vocabulary();
        let unfed = family_config.unfed_token();
        let unfed = unfed.and_then(|name| tokenizer.control(name).ok());
        let is_behind = unfed.is_some_and(|id| id as usize == vocabulary);
        tokenizer.check_vocabulary(vocabulary + usize::from(is_behind))?;
        let template = ChatTemplate::load(checkpoint)?;
        template.try_out(true)?;
        let ends = Ends::load(checkpoint, &tokenizer)?;
        let markup = family_config.markup_tokens().iter();
        let markup = markup.map(|name| tokenizer.control(name));
        let pictures = [Ok(image_token)]
            .into_iter()
            .chain(family_config.video_token().map(Ok))
            .chain(markup)
            .collect::<Result<Vec<_>, _>>()?;
        let generation = GenerationRules::load(checkpoint, &tokenizer)?;
        let unsaid = pictures.into_iter().chain(generation.suppressed.clone());
        let placeholders = placeholders(unsaid, &tokenizer, config.vocab_size(), &ends);

        let beside = beside(device);
        let tower = Weights::new(source.clone(), dtype, &beside);
        let vision = family_config.vision(checkpoint, &tower)?;
        let vision = Beside::of(vision, &beside, device);
        let weights = Weights::new(source, dtype, device);
        let text = weights.pp(family_config.text_path());
        let head = weights.pp(family_config.head_path());
        let decoder = Decoder::new(&config, &text, &head)
            .map_err(|error| checkpoint.weight_error(error, device))?;
        Ok(Self {
            family,
            placeholder: placeholder.to_string(),
            config,
            shape,
            tokenizer: Arc::new(tokenizer),
            template,
            decoder,
            vision,
            tower_device: beside,
            ends,
            generation,
            placeholders,
            image_token,
            video_token: family_config.video_token(),
            video_axis: family_config.video_axis(),
            device: device.clone(),
            constraints: OnceLock::new(),
        })
    }

    /// What grammars of answers are compiled with.
    pub fn constraints(&self) -> Result<&Constraints, ConstraintError> {
        let made = self.constraints.get_or_init(|| {
            let vocabulary = self.config.vocab_size();
            Constraints::new(&self.tokenizer, &self.ends, vocabulary)
        });
        made.as_ref().map_err(ConstraintError::clone)
    }

    /// Where the decoder runs, and what is made of pictures comes to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the tower runs: of a GPU another stream.
    pub fn tower_device(&self) -> &Device {
        &self.tower_device
    }

    /// Type of the arithmetic.
    pub fn dtype(&self) -> DType {
        self.decoder.dtype()
    }

    /// The text that a template puts where an image is.
    pub fn placeholder(&self) -> &str {
        &self.placeholder
    }

    /// A rendered prompt with the markup of each image in the place of its placeholder.
    pub fn expand(&self, rendered: &str, images: &[Layout]) -> Result<String, ModelError> {
        let pieces = rendered.split(&self.placeholder).collect::<Vec<_>>();
        if pieces.len() != images.len() + 1 {
            return Err(ModelError::Inputs(format!(
                "the chat template placed {} images, expected {}",
                pieces.len() - 1,
                images.len()
            )));
        }
        let mut expanded = String::new();
        for (piece, image) in pieces.iter().zip(images) {
            expanded.push_str(piece);
            expanded.push_str(&self.vision.markup(image));
        }
        expanded.push_str(pieces.last().copied().unwrap_or_default());
        Ok(expanded)
    }

    /// Whether an id stands for a row of a picture.
    pub fn is_image(&self, id: u32) -> bool {
        id == self.image_token || Some(id) == self.video_token
    }

    /// A chunk's input embeddings: those of `ids`, with the rows of image tokens taken from `images` in order.
    pub fn embed(&self, ids: &[u32], images: &[ImageFeatures]) -> Result<Chunk, ModelError> {
        let wanted = ids.iter().filter(|&&id| self.is_image(id)).count();
        let mut given = 0;
        for image in images {
            given += image.rows.dim(0)?;
        }
        if given != wanted {
            return Err(ModelError::Inputs(format!(
                "{wanted} image tokens in the input, but features for {given}"
            )));
        }
        // The rows of images are replaced, and the decoder need not have an embedding of what stands for them.
        let known = |&id: &u32| if self.is_image(id) { 0 } else { id };
        let text = self
            .decoder
            .embed(&ids.iter().map(known).collect::<Vec<_>>())?;
        if wanted == 0 {
            return Ok(Chunk {
                embedded: text.into(),
                images: vec![None; ids.len()],
                places: vec![Place::default(); ids.len()],
            });
        }
        let merged = |text: &Tensor, rows: &[&Tensor]| -> candle_core::Result<Tensor> {
            self.merge(ids, text, &Tensor::cat(rows, 0)?)
        };
        let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
        let mut embedded = Embedded::from(merged(&text, &rows)?);
        let zeros = text.zeros_like()?;
        for layer in 0..images[0].deep.len() {
            let rows = images
                .iter()
                .map(|image| &image.deep[layer])
                .collect::<Vec<_>>();
            embedded.deep.push(merged(&zeros, &rows)?);
        }
        let (images, places) = self.image_places(ids, images)?;
        Ok(Chunk {
            embedded,
            images,
            places,
        })
    }

    /// `text` (`[tokens, hidden]`) with the rows of image tokens replaced by `rows`, in order.
    fn merge(&self, ids: &[u32], text: &Tensor, rows: &Tensor) -> candle_core::Result<Tensor> {
        let rows = rows.to_dtype(text.dtype())?;
        let mut pieces = Vec::new();
        let (mut at, mut used) = (0, 0);
        for run in ids.chunk_by(|&a, &b| self.is_image(a) == self.is_image(b)) {
            if self.is_image(run[0]) {
                pieces.push(rows.narrow(0, used, run.len())?);
                used += run.len();
            } else {
                pieces.push(text.narrow(0, at, run.len())?);
            }
            at += run.len();
        }
        Tensor::cat(&pieces, 0)
    }

    /// Which image each token belongs to, and where in it it stands.
    fn image_places(
        &self,
        ids: &[u32],
        images: &[ImageFeatures],
    ) -> Result<(Vec<Option<usize>>, Vec<Place>), ModelError> {
        let mut of_tokens = image_places(images)?.into_iter();
        let tokens = ids.iter().map(|&id| match self.is_image(id) {
            true => of_tokens.next().map(|(i, place)| (Some(i), place)),
            false => Some((None, Place::default())),
        });
        Ok(tokens.map(Option::unwrap_or_default).unzip())
    }
}

/// Of every row of these images, which of them it belongs to, and where in it it stands.
pub fn image_places(images: &[ImageFeatures]) -> Result<Vec<(usize, Place)>, ModelError> {
    let mut of_tokens = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let [_, height, width] = image.grid.unwrap_or_default();
        let small = |size: usize| {
            u16::try_from(size).map_err(|_| {
                ModelError::Inputs(format!(
                    "an image of {height} x {width} tokens, expected at most {}",
                    u16::MAX
                ))
            })
        };
        for token in 0..image.rows.dim(0)? {
            let place = match image.grid {
                None => Place::default(),
                Some([time, ..]) => Place {
                    offset: [
                        small(token / (height * width))?,
                        small(token / width % height)?,
                        small(token % width)?,
                    ],
                    extent: small(time.max(height).max(width))?,
                    video: None,
                },
            };
            of_tokens.push((i, place));
        }
    }
    Ok(of_tokens)
}
