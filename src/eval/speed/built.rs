//! A decoder of a shape with its cache, and the step of a token.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::ThreadPool;

use super::device::DeviceInfo;
use super::shapes::Shape;
use super::weights::{RandomWeights, WeightKind};
use super::{About, Bench, Path, COMMIT};
use crate::cache::{BoundedCache, Mark};
use crate::eval::EvalError;
use crate::gpu;
use crate::model::chooser::{Chooser, Draws};
use crate::model::decoder::step::Stepper;
use crate::model::decoder::{Decoder, Embedded};
use crate::model::threads::thread_pool_for;
use crate::model::weights::Weights;
use crate::model::{beside, ModelError};

/// Tokens that the cache is filled with at a time.
const CHUNK: usize = 256;

/// A decoder at work on one stream, as a session has it.
pub(super) struct Built {
    pub about: About,
    pub shape: Shape,
    pub decoder: Decoder,
    pub cache: BoundedCache,
    /// The tree of all tensors where the tower works.
    pub tower: Weights,
    /// Bytes of weights that a token reads.
    pub token_bytes: usize,
    chooser: Chooser,
    draws: Draws,
    stepper: Option<Stepper>,
}

impl Bench {
    /// Threads as the node would take them for this shape.
    pub(super) fn pool(&self) -> Result<ThreadPool, EvalError> {
        let shape = Shape::open(&self.shape)?;
        let numbers = shape.tensors.values();
        let numbers = numbers.map(|dims| dims.iter().product::<usize>());
        let bytes = numbers.sum::<usize>() * DType::BF16.size_in_bytes();
        Ok(thread_pool_for(self.threads, bytes as u64)?)
    }

    /// Draws the weights and allocates the cache.
    pub(super) fn build(&self) -> Result<Built, EvalError> {
        let shape = Shape::open(&self.shape)?;
        let source = Arc::new(RandomWeights::new(&shape, self.weights));
        let precision = match self.weights {
            WeightKind::Floats(precision) => precision,
            WeightKind::Blocks(_) => self.precision,
        };
        let dtype = precision.dtype(source.as_ref(), &self.device);
        let weights = Weights::new(source.clone(), dtype, &self.device);
        let config = shape.config.text();
        let (text, head) = (shape.config.text_path(), shape.config.head_path());
        let mut decoder = Decoder::new(config, &weights.pp(text), &weights.pp(head))?;
        let sizes = config
            .cache_shape()
            .map_err(|unsupported| unsupported.of(shape.checkpoint.path("config.json")))?;
        let mut cache = BoundedCache::new(sizes, &self.cache, 0, decoder.dtype(), &self.device)?;
        let chooser = Chooser::new(0.0, Vec::new());
        let gpu = match self.path {
            Path::Kernels => gpu::of(&self.device),
            Path::Operations => None,
        };
        cache.run_on(gpu.clone())?;
        decoder.lay_out_for(gpu.as_ref())?;
        let stepper = Stepper::fitting(&decoder, gpu.as_ref(), &cache, (&chooser, &[]));
        let about = About {
            path: match &stepper {
                Some(_) => Path::Kernels.name(),
                None => Path::Operations.name(),
            },
            shape: shape.name.to_string(),
            weights: self.weights.to_string(),
            dtype: decoder.dtype().as_str().to_string(),
            device: DeviceInfo::of(&self.device),
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
            policy: cache.policy_name(),
            budget: self.cache.budget,
        };
        // Of a table of embeddings that is nothing else, a token reads a row.
        let rows = config.vocab_size().max(1);
        let unread = match source.given(&format!("{head}.weight")) {
            Some(_) => decoder.embedding_bytes() / rows * (rows - 1),
            None => 0,
        };
        Ok(Built {
            token_bytes: decoder.weight_bytes() - unread,
            about,
            shape,
            decoder,
            cache,
            tower: Weights::new(source, dtype, &beside(&self.device)),
            chooser,
            draws: Draws::new(0),
            stepper,
        })
    }
}

impl Built {
    /// Puts so many random tokens of text into the stream; returns the one that comes next.
    pub fn fill(&mut self, tokens: usize) -> Result<u32, ModelError> {
        let vocabulary = self.shape.config.text().vocab_size() as u32;
        let mut rng = StdRng::seed_from_u64(0);
        let ids = (0..tokens.max(1)).map(|_| rng.random_range(0..vocabulary));
        let ids = ids.collect::<Vec<_>>();
        let mut next = 0;
        for chunk in ids.chunks(CHUNK) {
            let x = self.decoder.embed(chunk)?;
            let hidden = self.append(&x.into(), &vec![Mark::default(); chunk.len()], 1)?;
            next = self.choose(&hidden)?;
        }
        Ok(next)
    }

    /// Appends a chunk and sees to the room for the `next` tokens; returns the last hidden states.
    pub fn append(
        &mut self,
        chunk: &Embedded,
        marks: &[Mark],
        next: usize,
    ) -> Result<Tensor, ModelError> {
        let cache = &mut self.cache;
        if let Some(stepper) = &mut self.stepper {
            stepper.settle(cache)?;
        }
        let hidden = self.decoder.append_embedded(chunk, marks, cache)?;
        cache.reserve(next)?;
        Ok(hidden)
    }

    /// The step of a token of an answer, as a session takes it: appends it and chooses the next one.
    pub fn step(&mut self, token: u32) -> Result<u32, ModelError> {
        if let Some(stepper) = &mut self.stepper {
            let rules = (&self.chooser, &mut self.draws);
            let choice = stepper.step(token, Mark::default(), &mut self.cache, rules)?;
            self.cache.reserve(1)?;
            return Ok(choice.token);
        }
        self.cache.mark();
        let x = self.decoder.embed(&[token])?;
        let hidden = self.append(&x.into(), &[Mark::default()], 1)?;
        let next = self.choose(&hidden)?;
        self.cache.let_go();
        Ok(next)
    }

    /// Chooses what follows the last of these states.
    fn choose(&mut self, hidden: &Tensor) -> Result<u32, ModelError> {
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?;
        let logits = self.decoder.logits(&last)?.squeeze(0)?;
        let mut logits = logits.to_dtype(DType::F32)?.to_vec1()?;
        Ok(self.chooser.choose(&mut logits, &mut self.draws)?.token)
    }
}
