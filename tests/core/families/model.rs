//! A checkpoint of any kind, loaded.

use std::path::Path;

use candle_core::Device;
use inf_mllm::cache::CacheShape;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::Decoder;
use inf_mllm::model::family::{model_type, Family};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::template::ChatTemplate;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::tokenizer::ChatTokenizer;
use inf_mllm::model::weights::Quantization;

use crate::support::{decoder_alone, load};

pub enum Model {
    Multimodal(Box<Mllm>),
    Text(Box<TextModel>),
    /// A directory without a tokenizer.
    Decoder(Box<Decoder>, CacheShape),
}

impl Model {
    pub fn load(dir: &Path) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        if Family::of(&model_type(&checkpoint).unwrap()).is_some() {
            return Self::Multimodal(Box::new(load(dir)));
        }
        if !checkpoint.has("tokenizer.json") {
            let (decoder, shape) = decoder_alone(dir);
            return Self::Decoder(Box::new(decoder), shape);
        }
        let quantization = Quantization::default();
        let text = TextModel::load(dir, quantization, Precision::F32, &Device::Cpu).unwrap();
        Self::Text(Box::new(text))
    }

    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Multimodal(model) => &model.decoder,
            Self::Text(model) => &model.decoder,
            Self::Decoder(decoder, _) => decoder,
        }
    }

    pub fn shape(&self) -> CacheShape {
        match self {
            Self::Multimodal(model) => model.shape,
            Self::Text(model) => model.shape,
            Self::Decoder(_, shape) => *shape,
        }
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        match self {
            Self::Multimodal(model) => Some(&model.template),
            Self::Text(model) => model.template.as_ref(),
            Self::Decoder(..) => None,
        }
    }

    pub fn tokenizer(&self) -> &ChatTokenizer {
        match self {
            Self::Multimodal(model) => &model.tokenizer,
            Self::Text(model) => model.tokenizer.chat(),
            Self::Decoder(..) => panic!("the directory has no tokenizer"),
        }
    }
}
