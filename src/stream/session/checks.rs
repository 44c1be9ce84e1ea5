//! What stands in the way of an answer, and what it needs to know before it begins.

use std::time::Instant;

use super::pauses::Prepared;
use super::{ChoicesError, RecallError, Session};
use crate::cache::{CacheError, PolicyKind};
use crate::model::constraint::ConstraintError;
use crate::model::ModelError;
use crate::stream::answer::Answer;
use crate::stream::frame::FrameError;
use crate::stream::instruction::Instruction;

impl Session {
    /// Why an instruction can never be answered, whatever is seen, if it cannot. Nothing changes.
    pub fn check_instruction(&self, instruction: &Instruction) -> Result<(), AskError> {
        self.check_asked(instruction)?;
        self.constraint(instruction)?;
        self.look_at(instruction)?;
        self.recall_mode(&instruction.recall)?;
        self.choice_ids(instruction)?;
        let tokens = self.question(&instruction.text)?.len();
        match self.config.cache.policy {
            // There may be more room after a reset.
            PolicyKind::Full => Ok(()),
            _ if tokens > self.state.cache.longest_turn() => Err(self.no_room(tokens)),
            _ => Ok(()),
        }
    }

    /// Sees to everything that an answer needs to know before it begins.
    pub(super) fn prepare(
        &mut self,
        instruction: &Instruction,
        answer: &mut Answer,
    ) -> Result<Prepared, AskError> {
        self.check_asked(instruction)?;
        self.check_seen(instruction)?;
        let form = self.constraint(instruction)?;
        let pictures = self.look_at(instruction)?;
        let started = Instant::now();
        let found = self.find(instruction, pictures.tokens)?;
        answer.recall_time = started.elapsed();
        Ok(Prepared {
            found,
            pictures,
            form,
        })
    }

    /// Refuses what is wrong with an instruction whatever it is asked of.
    fn check_asked(&self, instruction: &Instruction) -> Result<(), AskError> {
        let (asked, limit) = (instruction.max_new_tokens, self.config.max_new_tokens_limit);
        let typed = self.model.tokenizer.guard(&instruction.text);
        if typed.trim().is_empty() {
            return Err(AskError::Empty);
        }
        // A choice is as long as it is.
        if asked > limit && instruction.choices.is_empty() {
            return Err(AskError::TooMuchAsked { asked, limit });
        }
        Ok(self.check_choices(instruction)?)
    }

    /// Refuses to answer from nothing, and from a picture that was too old when the instruction came.
    fn check_seen(&self, instruction: &Instruction) -> Result<(), AskError> {
        if self.memory().seen() == 0 && instruction.images.is_empty() {
            return Err(AskError::NoFrame);
        }
        let limit = self.config.gate.max_frame_age;
        let age_ns = instruction
            .arrival_ns
            .and_then(|now_ns| self.memory().age_ns(now_ns));
        let age = age_ns.map_or(0.0, |age_ns| age_ns as f64 * 1e-9);
        match limit > 0.0 && age > limit {
            true => Err(AskError::Old { age, limit }),
            false => Ok(()),
        }
    }

    /// Why an instruction of this many tokens does not fit: it is too long, or what is kept for good leaves too little.
    pub(super) fn no_room(&self, tokens: usize) -> AskError {
        let cache = &self.state.cache;
        let usage = cache.usage();
        match self.config.cache.policy {
            PolicyKind::Full => ModelError::from(CacheError::Full {
                used: usage.used,
                budget: usage.budget,
                needed: tokens,
            })
            .into(),
            _ => AskError::TooLong {
                tokens,
                room: cache.longest_turn(),
            },
        }
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
    #[error(
        "instruction has {count} pictures, expected at most {limit} (instruction_images_limit)"
    )]
    TooManyPictures { count: usize, limit: usize },
    #[error("picture {number} of {count} of the instruction cannot be shown: {error}")]
    Picture {
        number: usize,
        count: usize,
        error: FrameError,
    },
    #[error("the instruction's pictures are {pictures} tokens long and its text {question}, expected at most {room} together (what the cache can hold of one turn)")]
    PicturesTooLarge {
        pictures: usize,
        question: usize,
        room: usize,
    },
    #[error("max_new_tokens is {asked}, expected at most {limit} (max_new_tokens_limit)")]
    TooMuchAsked { asked: usize, limit: usize },
    #[error(transparent)]
    Choices(#[from] ChoicesError),
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    #[error(transparent)]
    Recall(#[from] RecallError),
    #[error(transparent)]
    Model(#[from] ModelError),
}
