//! Instructions: from the question's tokens to the answer.

use std::time::Instant;

use candle_core::DType;

use super::{Chunk, RecallError, Session};
use crate::cache::{CacheError, PolicyKind};
use crate::model::chooser::Choice;
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, Basis, FinishReason, Generation, Instruction};
use crate::stream::frame::FrameError;

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
        let mut run = self.answer_to(instruction);
        let picture = self.state.stream.picture;
        let outcome = self.checked_ask(instruction, cancelled, &mut run, on_delta);
        let (finish, error) = match outcome {
            Ok(finish) => (finish, None),
            Err(reason) => (FinishReason::Error, Some(reason.to_string())),
        };
        self.follow_cache();
        let mut answer = run.finish(finish, error, on_delta);
        answer.detections = self.detections(&answer, picture);
        answer
    }

    /// What an answer that is given now rests on.
    pub fn basis(&self) -> Basis {
        let memory = self.memory();
        Basis {
            vision_tokens: self.state.cache.image_tokens(),
            newest_frame: memory.newest().cloned(),
            camera: self.newest_camera().unwrap_or_default().to_string(),
            oldest_frame_ns: memory.oldest_ns(),
            frames_seen: memory.seen(),
        }
    }

    /// What is known of an answer before any of it is generated.
    fn answer_to(&self, instruction: &Instruction) -> Generation {
        let mut answer = Answer::new(instruction);
        answer.rest_on(&self.basis());
        let thought = self.state.stream.grammar.thought();
        Generation::new(answer, instruction, self.model.tokenizer.clone(), thought)
    }

    /// Label of the camera of the newest frame, where there are several.
    fn newest_camera(&self) -> Option<&str> {
        let newest = self.memory().newest()?;
        self.config.cameras.label(newest.camera)
    }

    fn checked_ask(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        let (asked, limit) = (instruction.max_new_tokens, self.config.max_new_tokens_limit);
        let typed = self.model.tokenizer.guard(&instruction.text);
        if typed.trim().is_empty() {
            return Err(AskError::Empty);
        }
        if asked > limit {
            return Err(AskError::TooMuchAsked { asked, limit });
        }
        if self.memory().seen() == 0 && instruction.images.is_empty() {
            return Err(AskError::NoFrame);
        }
        self.check_age(instruction)?;
        let mut pictures = self.look_at(instruction)?;
        let sent = pictures.tokens;
        let started = Instant::now();
        let found = self.find(instruction, sent)?;
        run.answer.recall_time = started.elapsed();
        let mut generate = |session: &mut Self| {
            if !found.is_empty() || sent > 0 {
                session.attempt(|session| {
                    let question = session.question(&instruction.text)?.len();
                    if !found.is_empty() {
                        session.feed_again(&found, sent + question, &mut run.answer)?;
                    }
                    session.feed_pictures(std::mem::take(&mut pictures), question)
                })?;
            }
            let outcome = session.generate(instruction, cancelled, run, on_delta);
            run.answer.prompt_tokens += sent;
            outcome
        };
        if instruction.ephemeral {
            return self.passing(generate);
        }
        let (turn, outcome) = if found.is_empty() && sent == 0 {
            let turn = self.open_turn(&instruction.text)?;
            (turn, generate(self))
        } else {
            let (outcome, draws) = self.passing(|session| {
                let outcome = generate(session);
                Ok::<_, AskError>((outcome, session.state.stream.draws))
            })?;
            // What was recalled and sent leaves again, the turn stays.
            let said = &run.answer.token_ids;
            let turn = self.open_turn(&instruction.text)?;
            self.attempt(|session| session.append_turn(&instruction.text, said))?;
            self.state.stream.draws = draws;
            (turn, outcome)
        };
        if let Ok(FinishReason::Stop | FinishReason::Length | FinishReason::TimeLimit) = outcome {
            let archived = self.archive_turn(turn, &instruction.text, &run.answer.token_ids);
            if let Err(error) = archived {
                tracing::warn!(
                    "the turn of instruction {} is not archived: {error}",
                    instruction.id
                );
            }
        }
        outcome
    }

    /// Refuses to answer from a picture that was too old when the instruction came.
    fn check_age(&self, instruction: &Instruction) -> Result<(), AskError> {
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
        let started = Instant::now();
        let mut choice =
            self.attempt(|session| session.put(&instruction.text, longest, &mut run.answer))?;
        self.times.prefill = started.elapsed();

        let started = Instant::now();
        let finish = loop {
            if cancelled() {
                break Ok(FinishReason::Cancelled);
            }
            if instruction.is_late(Instant::now()) {
                break Ok(FinishReason::TimeLimit);
            }
            run.chose(choice);
            let token = choice.token;
            if self.model.ends.contains(token) {
                break Ok(FinishReason::Stop);
            }
            if let Err(error) = run.emit(token, on_delta) {
                break Err(error.into());
            }
            let last = run.answer.output_tokens == longest;
            match self.follow(token, last) {
                Ok(Some(next)) => choice = next,
                Ok(None) => break Ok(FinishReason::Length),
                Err(error) => break Err(error.into()),
            }
        };
        if let Some(stepper) = &mut self.stepper {
            stepper.settle(&mut self.state.cache)?;
        }
        self.note_evidence(&mut run.answer, finish.as_ref().ok().copied());
        self.state.stream.grammar.answered();
        let tokens = run.answer.output_tokens.max(1) as u32;
        self.times.decode = started.elapsed() / tokens;
        finish
    }

    /// Puts a question to the model, with room for an answer of `longest` tokens, of which the first is chosen.
    fn put(
        &mut self,
        question: &str,
        longest: usize,
        answer: &mut Answer,
    ) -> Result<Choice, AskError> {
        if self.config.cache.policy == PolicyKind::LastFrames {
            self.feed_last_frames()?;
        }
        let tokenizer = &self.model.tokenizer;
        let text = self.state.stream.grammar.instruction(question, tokenizer);
        let ids = self.encode(&text)?;
        answer.prompt_tokens = ids.len();
        let tokens = ids.len();
        if tokens > self.state.cache.longest_turn() {
            return Err(self.no_room(tokens));
        }
        self.reserve_instruction(tokens)?;
        self.follow_answer();
        Ok(self.go_on(&ids, Chunk::Instruction, longest)?)
    }

    /// Sees to it that no compaction falls into the middle of an instruction of so many tokens, where it could evict its beginning.
    pub(super) fn reserve_instruction(&mut self, tokens: usize) -> Result<(), ModelError> {
        let cache = &mut self.state.cache;
        match tokens > cache.plan().recent {
            true => Ok(cache.reserve(tokens)?),
            false => Ok(()),
        }
    }

    /// Feeds a token of an answer and chooses what follows it, unless it is the last.
    fn follow(&mut self, token: u32, last: bool) -> Result<Option<Choice>, ModelError> {
        if let Some(choice) = self.step(token)? {
            return Ok((!last).then_some(choice));
        }
        self.attempt(|session| match last {
            true => session.append(&[token], Chunk::Answer, 1).map(|()| None),
            false => session.go_on(&[token], Chunk::Answer, 1).map(Some),
        })
    }

    /// Feeds text and chooses what follows it.
    fn go_on(&mut self, ids: &[u32], chunk: Chunk<'_>, next: usize) -> Result<Choice, ModelError> {
        let hidden = self.pass(ids, &[], chunk, next)?;
        let hidden = hidden.ok_or_else(|| {
            ModelError::Inputs("no text to go on from, expected at least one token".to_string())
        })?;
        let logits = self.model.decoder.logits(&hidden)?.squeeze(0)?;
        let mut logits = logits.to_dtype(DType::F32)?.to_vec1()?;
        let draws = &mut self.state.stream.draws;
        Ok(self.chooser.choose(&mut logits, draws)?)
    }

    /// Why an instruction of this many tokens does not fit: it is too long, or what is kept for good leaves too little.
    fn no_room(&self, tokens: usize) -> AskError {
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
    Recall(#[from] RecallError),
    #[error(transparent)]
    Model(#[from] ModelError),
}
