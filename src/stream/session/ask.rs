//! Instructions: from the question's tokens to the answer.

use std::collections::BTreeSet;
use std::time::Instant;

use candle_core::{DType, Tensor};

use super::checks::AskError;
use super::formed::{cut_off, no_text};
use super::pauses::{Asking, Meanwhile, Prepared, Progress};
use super::thoughts::cut_in_thought;
use super::{Chunk, Session};
use crate::cache::PolicyKind;
use crate::model::chooser::{Choice, Limits};
use crate::model::constraint::Constraint;
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, Basis, FinishReason};
use crate::stream::generation::Generation;
use crate::stream::instruction::Instruction;

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
                Progress::Answered(answer) => return *answer,
                Progress::Paused(paused) => asking = *paused,
            }
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
        let mut picture = None;
        let outcome = self.with_all_shown(instruction.ephemeral, |session| {
            picture = session.state.stream.picture;
            session.checked_ask(instruction, meanwhile, &mut asking, on_delta)
        });
        self.follow_cache();
        let (finish, error) = match outcome {
            Ok(Some(finish)) => (finish, None),
            Ok(None) => return Progress::Paused(Box::new(asking)),
            Err(reason) => (FinishReason::Error, Some(reason.to_string())),
        };
        let mut answer = asking.run.finish(finish, error, on_delta);
        if answer.error.is_none() {
            answer.error = cut_in_thought(&answer, self.longest(instruction));
        }
        answer.detections = self.detections(instruction, &answer, picture);
        Progress::Answered(Box::new(answer))
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
    pub(super) fn answer_to(&self, instruction: &Instruction) -> Generation {
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
        meanwhile: &dyn Fn() -> Meanwhile,
        asking: &mut Asking,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<Option<FinishReason>, AskError> {
        asking.run.answer.rest_on(&self.basis());
        let mut prepared = match asking.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare(instruction, &mut asking.run.answer)?,
        };
        let said = asking.run.answer.output_tokens;
        let Prepared {
            found,
            pictures,
            form,
        } = &mut prepared;
        let sent = pictures.tokens;
        let alone = found.is_empty() && sent == 0;
        let mut generate = |session: &mut Self| {
            if !alone {
                session.attempt(|session| {
                    let behind = session.question(&instruction.text)?.len() + said;
                    if !found.is_empty() {
                        session.feed_again(found, sent + behind, &mut asking.run.answer)?;
                    }
                    session.feed_pictures(pictures, behind)
                })?;
            }
            if instruction.choices.is_empty() {
                return session.generate(instruction, (form, sent), meanwhile, asking, on_delta);
            }
            let cut_off = || meanwhile() == Meanwhile::CutOff;
            let run = &mut asking.run;
            let outcome = session.choose_from(instruction, &cut_off, run, on_delta);
            run.answer.prompt_tokens += sent;
            outcome.map(Some)
        };
        let (turn, outcome) = if instruction.ephemeral {
            (None, self.passing(generate))
        } else {
            let mut turn = match alone {
                true => self.open_turn(&instruction.text, false)?,
                false => None,
            };
            let may_leave = !alone || self.may_leave(instruction);
            if may_leave {
                self.state.mark();
            }
            let outcome = generate(self);
            let answer = &asking.run.answer;
            let paused = matches!(outcome, Ok(None));
            let stays = alone && !paused && !self.drops_thought(answer);
            let draws = self.state.stream.draws;
            if may_leave {
                if !stays {
                    self.put_back();
                }
                self.state.let_go();
            }
            let said = self.remembered(instruction, answer)?;
            if !stays && !paused {
                // What was recalled, sent and thought leaves again, the turn stays.
                turn = self.open_turn(&instruction.text, true)?;
                self.attempt(|session| session.append_turn(&instruction.text, &said))?;
                self.state.stream.draws = draws;
            }
            (turn.map(|turn| (turn, said)), outcome)
        };
        match outcome {
            Ok(None) => asking.prepared = Some(prepared),
            Ok(Some(FinishReason::Stop | FinishReason::Length | FinishReason::TimeLimit)) => {
                if let Some((turn, said)) = turn {
                    if let Err(error) = self.archive_turn(turn, &instruction.text, &said) {
                        tracing::warn!(
                            "the turn of instruction {} is not archived: {error}",
                            instruction.id
                        );
                    }
                }
            }
            _ => {}
        }
        outcome
    }

    fn generate(
        &mut self,
        instruction: &Instruction,
        (form, sent): (&mut Option<Constraint>, usize),
        meanwhile: &dyn Fn() -> Meanwhile,
        asking: &mut Asking,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<Option<FinishReason>, AskError> {
        let longest = self.longest(instruction);
        let mut allowed = form.as_mut().map(Constraint::allowed).transpose()?;
        let mut said = self.repeatable(&instruction.text, &asking.run.answer.token_ids)?;
        let run = &mut asking.run;
        let before = run.answer.output_tokens;
        if let Some(draws) = asking.draws.take() {
            self.state.stream.draws = draws;
        }
        // The random state before the token that is chosen and not yet used.
        let mut before_choice = self.state.stream.draws;
        let started = Instant::now();
        let mut choice = self.attempt(|session| {
            let mut logits = session.put(&instruction.text, longest, &mut run.answer)?;
            if form.is_some() && run.answer.token_ids.is_empty() {
                logits = session.close_thought(logits, run)?;
            }
            let limits = Limits::new(allowed.as_ref(), said.as_ref());
            Ok::<_, AskError>(session.choose(&mut logits, limits)?)
        })?;
        run.answer.prompt_tokens += sent;
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
            match form {
                None => {
                    if let Err(error) = run.emit(token, on_delta) {
                        break Err(error.into());
                    }
                }
                Some(form) => {
                    let taken = form.take(token);
                    let taken = taken.map(|bytes| run.emit_bytes(&bytes, on_delta));
                    match taken.and_then(|()| form.allowed()) {
                        Ok(next) => allowed = Some(next),
                        Err(error) => break Err(error.into()),
                    }
                }
            }
            let newest = run.answer.token_ids.len().saturating_sub(1);
            let token = match self.limit_thought(instruction, (token, longest), run, on_delta) {
                Ok(last) => last,
                Err(error) => break Err(error),
            };
            if let Some(said) = &mut said {
                said.extend(&run.answer.token_ids[newest..]);
            }
            before_choice = self.state.stream.draws;
            let last = run.answer.output_tokens >= longest;
            let limits = Limits::new(allowed.as_ref(), said.as_ref());
            match self.follow(token, last, limits) {
                Ok(Some(next)) => choice = next,
                Ok(None) => break Ok(Some(FinishReason::Length)),
                Err(error) => break Err(error.into()),
            }
        };
        if let (Ok(Some(finish)), Some(form)) = (&finish, form) {
            if !form.is_complete()? {
                run.answer.error = cut_off(instruction, *finish, longest);
            }
        }
        if let Some(stepper) = &mut self.stepper {
            stepper.settle(&mut self.state.cache)?;
        }
        if !matches!(finish, Ok(None)) {
            let finish = finish.as_ref().ok().copied().flatten();
            self.note_evidence(&mut run.answer, finish);
        }
        self.state.stream.grammar.answered();
        let tokens = (run.answer.output_tokens - before).max(1) as u32;
        self.times.decode = started.elapsed() / tokens;
        finish
    }

    /// The longest answer to an instruction, tokens.
    pub(super) fn longest(&self, instruction: &Instruction) -> usize {
        match instruction.max_new_tokens {
            0 => self.config.max_new_tokens,
            given => given,
        }
    }

    /// Puts a question to the model, and what of its answer there is, with room for an answer of `longest` tokens: the logits of the next.
    pub(super) fn put(
        &mut self,
        question: &str,
        longest: usize,
        answer: &mut Answer,
    ) -> Result<Vec<f32>, AskError> {
        if self.config.cache.policy == PolicyKind::LastFrames {
            self.feed_last_frames()?;
            answer.rest_on(&self.basis());
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
        self.follow_answer();
        let hidden = match said.as_slice() {
            [] => self.pass(&ids, &[], Chunk::Instruction, longest)?,
            said => {
                self.append(&ids, Chunk::Instruction, said.len())?;
                self.pass(said, &[], Chunk::Answer, longest.saturating_sub(said.len()))?
            }
        };
        let mut rows = self.logits(&hidden.ok_or_else(no_text)?)?;
        Ok(rows.pop().ok_or_else(no_text)?)
    }

    /// Sees to it that no compaction falls into the middle of an instruction of so many tokens, where it could evict its beginning.
    pub(super) fn reserve_instruction(&mut self, tokens: usize) -> Result<(), ModelError> {
        let cache = &mut self.state.cache;
        match tokens > cache.plan().recent {
            true => Ok(cache.reserve(tokens)?),
            false => Ok(()),
        }
    }

    /// Feeds a token of an answer and chooses what follows it within limits, unless it is the last.
    pub(super) fn follow(
        &mut self,
        token: u32,
        last: bool,
        limits: Limits<'_>,
    ) -> Result<Option<Choice>, ModelError> {
        if let Some(choice) = self.step(token, limits)? {
            return Ok((!last).then_some(choice));
        }
        self.attempt(|session| {
            if last {
                return session.append(&[token], Chunk::Answer, 1).map(|()| None);
            }
            let hidden = session.pass(&[token], &[], Chunk::Answer, 1)?;
            let mut rows = session.logits(&hidden.ok_or_else(no_text)?)?;
            let mut logits = rows.pop().ok_or_else(no_text)?;
            session.choose(&mut logits, limits).map(Some)
        })
    }

    /// What follows text with these logits behind it, within limits.
    fn choose(&mut self, logits: &mut [f32], limits: Limits<'_>) -> Result<Choice, ModelError> {
        let draws = &mut self.state.stream.draws;
        Ok(self.chooser.choose_within(logits, limits, draws)?)
    }

    /// The tokens whose repetition is made less likely, if any is: those of the instruction's turn, which are its text, what the chat
    /// template puts around it, and what has been answered.
    fn repeatable(
        &self,
        question: &str,
        said: &[u32],
    ) -> Result<Option<BTreeSet<u32>>, ModelError> {
        if self.chooser.repetition_penalty == 1.0 {
            return Ok(None);
        }
        let asked = self.question(question)?;
        Ok(Some(asked.iter().chain(said).copied().collect()))
    }

    /// Logits over the vocabulary behind each of `hidden`, `[tokens, hidden]`.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let logits = self.model.decoder.logits(hidden)?;
        Ok(logits.to_dtype(DType::F32)?.to_vec2()?)
    }
}
