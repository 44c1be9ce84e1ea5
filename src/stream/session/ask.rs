//! Instructions: from the question's tokens to the answer.

use std::time::Instant;

use candle_core::DType;

use super::{Chunk, RecallError, Session};
use crate::cache::{CacheError, PolicyKind};
use crate::model::chooser::{Choice, Draws};
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, Basis, FinishReason, Generation, Instruction};
use crate::stream::archive::Found;

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
        let meanwhile = || match cancelled() {
            true => Meanwhile::CutOff,
            false => Meanwhile::Nothing,
        };
        let mut asking = self.begin_answer(instruction);
        loop {
            match self.go_on_answering(instruction, asking, &meanwhile, on_delta) {
                Progress::Answered(answer) => return answer,
                Progress::Paused(paused) => asking = paused,
            }
        }
    }

    /// An answer of which nothing has been generated.
    pub fn begin_answer(&self, instruction: &Instruction) -> Asking {
        Asking {
            run: self.answer_to(instruction),
            found: None,
            draws: None,
        }
    }

    /// The same as [`Self::ask`], from where the answer has come to until it ends or is paused for a frame: then the memory is as if the
    /// instruction had not been put yet, and what is taken in comes before it. `meanwhile` is asked before every token.
    ///
    /// A pause comes after `frames_during_answers` tokens at the earliest, and not where the turn has become so long that it could not be
    /// put again as a whole. Going on feeds instruction and answer again, behind what has been taken in.
    pub fn go_on_answering(
        &mut self,
        instruction: &Instruction,
        mut asking: Asking,
        meanwhile: &dyn Fn() -> Meanwhile,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Progress {
        let outcome = self.checked_ask(instruction, meanwhile, &mut asking, on_delta);
        self.follow_cache();
        let (finish, error) = match outcome {
            Ok(Some(finish)) => (finish, None),
            Ok(None) => return Progress::Paused(asking),
            Err(reason) => (FinishReason::Error, Some(reason.to_string())),
        };
        Progress::Answered(asking.run.finish(finish, error, on_delta))
    }

    /// What an answer that is given now rests on.
    pub fn basis(&self) -> Basis {
        let memory = self.memory();
        Basis {
            vision_tokens: self.state.cache.image_tokens(),
            newest_frame: memory.newest().cloned(),
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

    fn checked_ask(
        &mut self,
        instruction: &Instruction,
        meanwhile: &dyn Fn() -> Meanwhile,
        asking: &mut Asking,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<Option<FinishReason>, AskError> {
        let found = match asking.found.take() {
            Some(found) => {
                asking.run.answer.rest_on(&self.basis());
                found
            }
            None => {
                self.check_asked(instruction)?;
                let started = Instant::now();
                let found = self.find(instruction)?;
                asking.run.answer.recall_time = started.elapsed();
                found
            }
        };
        let said = asking.run.answer.output_tokens;
        let mut generate = |session: &mut Self| {
            if !found.is_empty() {
                session.attempt(|session| {
                    let question = session.question(&instruction.text)?.len();
                    session.feed_again(&found, question + said, &mut asking.run.answer)
                })?;
            }
            session.generate(instruction, meanwhile, asking, on_delta)
        };
        let (turn, outcome) = if instruction.ephemeral {
            (None, self.passing(generate))
        } else if found.is_empty() {
            let turn = self.open_turn(&instruction.text)?;
            (turn, self.unless_paused(instruction, generate))
        } else {
            let (outcome, draws) = self.passing(|session| {
                let outcome = generate(session);
                Ok::<_, AskError>((outcome, session.state.stream.draws))
            })?;
            let mut turn = None;
            if !matches!(outcome, Ok(None)) {
                // What was recalled leaves again, the turn stays.
                let said = &asking.run.answer.token_ids;
                turn = self.open_turn(&instruction.text)?;
                self.attempt(|session| session.append_turn(&instruction.text, said))?;
                self.state.stream.draws = draws;
            }
            (turn, outcome)
        };
        match outcome {
            Ok(None) => asking.found = Some(found),
            Ok(Some(FinishReason::Stop | FinishReason::Length | FinishReason::TimeLimit)) => {
                let said = &asking.run.answer.token_ids;
                let archived = self.archive_turn(turn, &instruction.text, said);
                if let Err(error) = archived {
                    tracing::warn!(
                        "the turn of instruction {} is not archived: {error}",
                        instruction.id
                    );
                }
            }
            _ => {}
        }
        outcome
    }

    /// Why an instruction cannot be put, if it cannot.
    fn check_asked(&self, instruction: &Instruction) -> Result<(), AskError> {
        let (asked, limit) = (instruction.max_new_tokens, self.config.max_new_tokens_limit);
        let typed = self.model.tokenizer.guard(&instruction.text);
        if typed.trim().is_empty() {
            return Err(AskError::Empty);
        }
        if asked > limit {
            return Err(AskError::TooMuchAsked { asked, limit });
        }
        if self.memory().seen() == 0 {
            return Err(AskError::NoFrame);
        }
        self.check_age(instruction)
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
        meanwhile: &dyn Fn() -> Meanwhile,
        asking: &mut Asking,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<Option<FinishReason>, AskError> {
        let longest = self.longest(instruction);
        let run = &mut asking.run;
        let before = run.answer.output_tokens;
        if let Some(draws) = asking.draws.take() {
            self.state.stream.draws = draws;
        }
        // The random state before the token that is chosen and not yet used.
        let mut before_choice = self.state.stream.draws;
        let started = Instant::now();
        let mut choice =
            self.attempt(|session| session.put(&instruction.text, longest, &mut run.answer))?;
        self.times.prefill = started.elapsed();

        let started = Instant::now();
        let finish = loop {
            match meanwhile() {
                Meanwhile::CutOff => break Ok(Some(FinishReason::Cancelled)),
                Meanwhile::FrameWaits if self.may_pause(&run.answer, before) => {
                    asking.draws = Some(before_choice);
                    break Ok(None);
                }
                _ => {}
            }
            if instruction.is_late(Instant::now()) {
                break Ok(Some(FinishReason::TimeLimit));
            }
            run.chose(choice);
            let token = choice.token;
            if self.model.ends.contains(token) {
                break Ok(Some(FinishReason::Stop));
            }
            if let Err(error) = run.emit(token, on_delta) {
                break Err(error.into());
            }
            before_choice = self.state.stream.draws;
            let last = run.answer.output_tokens == longest;
            match self.follow(token, last) {
                Ok(Some(next)) => choice = next,
                Ok(None) => break Ok(Some(FinishReason::Length)),
                Err(error) => break Err(error.into()),
            }
        };
        if let Some(stepper) = &mut self.stepper {
            stepper.settle(&mut self.state.cache)?;
        }
        self.state.stream.grammar.answered();
        let tokens = (run.answer.output_tokens - before).max(1) as u32;
        self.times.decode = started.elapsed() / tokens;
        finish
    }

    /// The longest answer to an instruction, tokens.
    fn longest(&self, instruction: &Instruction) -> usize {
        match instruction.max_new_tokens {
            0 => self.config.max_new_tokens,
            given => given,
        }
    }

    /// Whether an answer that had `before` tokens when it was gone on with may be paused: it has grown enough, and the whole turn can be
    /// put again.
    fn may_pause(&self, answer: &Answer, before: usize) -> bool {
        let every = self.config.frames_during_answers;
        let turn = answer.recalled_tokens + answer.prompt_tokens + answer.output_tokens;
        every > 0
            && answer.output_tokens >= before + every
            && turn <= self.state.cache.longest_turn()
    }

    /// Does something to the state that is undone if it is paused.
    fn unless_paused(
        &mut self,
        instruction: &Instruction,
        work: impl FnOnce(&mut Self) -> Result<Option<FinishReason>, AskError>,
    ) -> Result<Option<FinishReason>, AskError> {
        let every = self.config.frames_during_answers;
        if every == 0 || self.longest(instruction) <= every {
            return work(self);
        }
        self.state.mark();
        let outcome = work(self);
        if let Ok(None) = outcome {
            self.put_back();
        }
        self.state.let_go();
        outcome
    }

    /// Puts a question to the model, and what of its answer there is, with room for an answer of `longest` tokens, of which the next is
    /// chosen.
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
        let said = &answer.token_ids;
        self.reserve_instruction(tokens + said.len())?;
        if said.is_empty() {
            return Ok(self.go_on(&ids, Chunk::Instruction, longest)?);
        }
        self.append(&ids, Chunk::Instruction, said.len())?;
        Ok(self.go_on(said, Chunk::Answer, longest - said.len())?)
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

/// An answer that is being given.
pub struct Asking {
    run: Generation,
    /// What was recalled for it, once that is known.
    found: Option<Vec<Found>>,
    /// The random state at a pause.
    draws: Option<Draws>,
}

/// How far an answer has come.
pub enum Progress {
    Answered(Answer),
    /// A frame waits, for which there is room now.
    Paused(Asking),
}

/// What has happened while the last token was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    Nothing,
    /// The answer is to end here.
    CutOff,
    /// A frame waits that could be taken in.
    FrameWaits,
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
    #[error("max_new_tokens is {asked}, expected at most {limit} (max_new_tokens_limit)")]
    TooMuchAsked { asked: usize, limit: usize },
    #[error(transparent)]
    Recall(#[from] RecallError),
    #[error(transparent)]
    Model(#[from] ModelError),
}
