//! What running takes in memory: weights and tokenizer, the cache, and what a chunk is worked with.

use candle_core::DType;

use super::Report;
use crate::cache::{CacheConfig, CacheError, CacheShape};
use crate::model::decoder::{self, working::Chunk};
use crate::model::vision::working::Working;

/// Tokens of a chunk of text where there are no frames, as evaluations feed them.
pub const TEXT_CHUNK: usize = 64;

/// What a model is run with.
pub struct Needs<'a> {
    pub decoder: &'a decoder::Config,
    pub shape: CacheShape,
    pub cache: &'a CacheConfig,
    /// Type of the arithmetic.
    pub dtype: DType,
    /// What is worked with is counted of the CPU alone.
    pub on_cpu: bool,
    /// Matrices of the decoder are blocks as the products of the CPU want them.
    pub in_panels: bool,
    /// What each of the pictures is worked with.
    pub pictures: Vec<Working>,
}

impl Needs<'_> {
    /// What a cache keeps beside keys, values and states, bytes.
    fn beside(&self, budget: usize) -> Result<u64, CacheError> {
        let config = CacheConfig {
            budget,
            ..self.cache.clone()
        };
        self.shape.beside_bytes(&config, self.dtype)
    }

    /// What a picture or a chunk of so many tokens is worked with, bytes.
    fn working(&self, tokens: usize, budget: usize) -> u64 {
        if !self.on_cpu {
            return 0;
        }
        let pictures = self.pictures.iter();
        let tower = pictures.clone().map(|picture| picture.bytes);
        let chunk = Chunk {
            tokens,
            slots: budget,
            dtype: self.dtype,
            in_panels: self.in_panels,
            // Features, and those of deeper layers as they are and put in their places.
            waiting: pictures
                .map(|picture| 1 + 2 * picture.deep)
                .max()
                .unwrap_or(0),
        };
        let decoder = self.decoder.working_bytes(&self.shape, &chunk);
        tower.fold(decoder, u64::max)
    }
}

impl Report {
    /// What all of it takes, when frames and weights are known; `memory` is what there is, if that was said.
    pub(super) fn fill_memory(
        &mut self,
        needs: &Needs,
        memory: Option<u64>,
    ) -> Result<(), CacheError> {
        let frames = self.frames.iter().map(|frame| frame.opening_tokens);
        self.chunk_tokens = frames.max().unwrap_or(TEXT_CHUNK);
        let weights = self.weight_bytes.saturating_add(self.repacked_bytes);
        let model = weights.saturating_add(self.tokenizer_bytes);
        let fixed = model.saturating_add(self.state_bytes);
        let all = |budget: usize| -> Result<u64, CacheError> {
            let keys = self.kv_bytes_per_token.saturating_mul(budget as u64);
            let cache = keys.saturating_add(needs.beside(budget)?);
            let working = needs.working(self.chunk_tokens, budget);
            Ok(fixed.saturating_add(cache).saturating_add(working))
        };
        let fitting =
            memory.map(|memory| largest(self.context, |budget| Ok(all(budget)? <= memory)));
        let (memory_bytes, fitting) = (all(self.budget)?, fitting.transpose()?);
        self.memory_bytes = memory_bytes;
        self.fitting_budget = fitting;
        self.beside_bytes = needs.beside(self.budget)?;
        self.working_bytes = needs.working(self.chunk_tokens, self.budget);
        if let (Some(memory), Some(0)) = (memory, self.fitting_budget) {
            self.problems.push(format!(
                "weights and tokenizer take {model} bytes, and {memory} bytes of memory leave no room for a cache"
            ));
        }
        Ok(())
    }
}

/// The largest budget up to `most` that fits, or 0; smaller ones do if a larger one does.
fn largest(
    most: usize,
    fits: impl Fn(usize) -> Result<bool, CacheError>,
) -> Result<usize, CacheError> {
    let (mut fitting, mut most) = (0, most);
    while fitting < most {
        let middle = most - (most - fitting) / 2;
        match fits(middle)? {
            true => fitting = middle,
            false => most = middle - 1,
        }
    }
    Ok(fitting)
}
