//! Instructions: from the question's tokens to the answer.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use super::{Chunk, Session};
use crate::cache::{CacheError, PolicyKind};
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, FinishReason, Generation, Instruction};

impl Session {
    /// Answers an instruction from the memory. Every way this can end is an [`Answer`].
    ///
    /// `cancelled` is asked before every token; `on_delta` gets the text as it grows, the last piece with `done` set.
    pub fn ask(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        let mut run = Generation::new(self.answer_to(instruction), instruction);
        let outcome = self.checked_ask(instruction, cancelled, &mut run, on_delta);
        let (finish, error) = match outcome {
            Ok(finish) => (finish, None),
            Err(reason) => (FinishReason::Error, Some(reason.to_string())),
        };
        self.follow_cache();
        run.finish(finish, error, on_delta)
    }

    /// The answer to an instruction that is not put to the model; its only piece is the last.
    pub fn unanswered(
        &self,
        instruction: &Instruction,
        finish: FinishReason,
        reason: String,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        Generation::new(self.answer_to(instruction), instruction).finish(
            finish,
            Some(reason),
            on_delta,
        )
    }

    /// What is known of an answer before any of it is generated.
    fn answer_to(&self, instruction: &Instruction) -> Answer {
        Answer {
            id: instruction.id.clone(),
            instruction_ns: instruction.stamp_ns,
            text: String::new(),
            finish: FinishReason::Error,
            error: None,
            prompt_tokens: 0,
            vision_tokens: self.vision_tokens(),
            output_tokens: 0,
            time_to_first_token: None,
            latency: Duration::ZERO,
            newest_frame: self.memory.newest().cloned(),
            oldest_frame_ns: self.memory.oldest_ns(),
            frames_seen: self.memory.seen(),
            mean_logprob: 0.0,
            token_ids: Vec::new(),
        }
    }

    fn checked_ask(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        if instruction.text.trim().is_empty() {
            return Err(AskError::Empty);
        }
        if self.memory.seen() == 0 {
            return Err(AskError::NoFrame);
        }
        self.check_age(instruction)?;
        let saved = match instruction.ephemeral {
            true => Some((
                self.cache.snapshot().map_err(ModelError::from)?,
                self.grammar.clone(),
                self.last_id,
            )),
            false => None,
        };
        let finish = self.generate(instruction, cancelled, run, on_delta);
        if let Some((cache, grammar, last_id)) = saved {
            self.cache.restore(&cache).map_err(ModelError::from)?;
            self.grammar = grammar;
            self.last_id = last_id;
        }
        finish
    }

    /// Refuses to answer from a picture that was too old when the instruction came.
    fn check_age(&self, instruction: &Instruction) -> Result<(), AskError> {
        let limit = self.config.gate.max_frame_age;
        let age_ns = instruction
            .arrival_ns
            .and_then(|now_ns| self.memory.age_ns(now_ns));
        let age = age_ns.map_or(0.0, |age_ns| age_ns as f64 * 1e-9);
        match limit > 0.0 && age > limit {
            true => Err(AskError::Old { age, limit }),
            false => Ok(()),
        }
    }

    fn generate(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        let longest = match instruction.max_new_tokens {
            0 => self.config.max_new_tokens,
            given => given,
        };
        if self.config.cache.policy == PolicyKind::LastFrames {
            self.feed_last_frames()?;
        }
        let mut grammar = self.grammar.clone();
        let text = grammar.instruction(&instruction.text, &self.model.tokenizer);
        let ids = self.encode(&text)?;
        run.answer.prompt_tokens = ids.len();
        if ids.len() > self.cache.longest_turn() {
            return Err(self.no_room(ids.len()));
        }
        let started = Instant::now();
        if ids.len() > self.cache.plan().recent {
            // A compaction in the middle of the instruction could evict its beginning.
            self.cache.reserve(ids.len()).map_err(ModelError::from)?;
        }
        let mut hidden = self.append(&ids, &[], Chunk::Instruction, longest)?;
        self.grammar = grammar;
        self.times.prefill = started.elapsed();

        let started = Instant::now();
        let finish = loop {
            if cancelled() {
                break FinishReason::Cancelled;
            }
            let (token, logprob) = self.sampler.next(&self.logits(&hidden)?);
            run.chose(token, logprob);
            if self.model.ends.contains(token) {
                break FinishReason::Stop;
            }
            run.emit(self.model.tokenizer.decode(run.text_ids())?, on_delta);
            match self.append(&[token], &[], Chunk::Answer, 1) {
                Ok(next) => hidden = next,
                Err(error) => {
                    self.grammar.answered();
                    return Err(error.into());
                }
            }
            if run.answer.output_tokens == longest {
                break FinishReason::Length;
            }
        };
        self.grammar.answered();
        let tokens = run.answer.output_tokens.max(1) as u32;
        self.times.decode = started.elapsed() / tokens;
        Ok(finish)
    }

    /// Why an instruction of this many tokens does not fit: it is too long, or what is kept for good leaves too little.
    fn no_room(&self, tokens: usize) -> AskError {
        let usage = self.cache.usage();
        match self.config.cache.policy {
            PolicyKind::Full => ModelError::from(CacheError::Full {
                used: usage.used,
                budget: usage.budget,
                needed: tokens,
            })
            .into(),
            _ => AskError::TooLong {
                tokens,
                room: self.cache.longest_turn(),
            },
        }
    }

    /// Logits over the vocabulary for one hidden state (`[1, hidden]`).
    fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>, ModelError> {
        let logits = self.model.decoder.logits(hidden)?.squeeze(0)?;
        Ok(logits.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// Image tokens in the cache, mean over kept sets.
    fn vision_tokens(&self) -> usize {
        let sets = || self.cache.layers().iter().flat_map(|layer| layer.sets());
        let images: usize = sets()
            .map(|set| {
                set.iter()
                    .filter(|token| token.mark.frame.is_some())
                    .count()
            })
            .sum();
        images / sets().count().max(1)
    }
}

/// Why an instruction was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("instruction text is empty, expected at least one character that is not a space")]
    Empty,
    #[error("no frame has been seen yet, expected at least one before an instruction")]
    NoFrame,
    #[error("the newest picture is {age:.3} s old, expected at most {limit} s (max_frame_age)")]
    Old { age: f64, limit: f64 },
    #[error("instruction is {tokens} tokens long, expected at most {room} (what the cache can hold of one turn)")]
    TooLong { tokens: usize, room: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
}
