//! Thoughts in front of answers: how long they may be, and what of a turn stays in the memory once it has been answered.

use super::{AskError, Session};
use crate::cache::PolicyKind;
use crate::model::chooser::Limits;
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, FinishReason, ThoughtEnd};
use crate::stream::generation::Generation;
use crate::stream::instruction::Instruction;

impl Session {
    /// Whether a turn that has been answered is to leave the memory again, to be fed without its thought.
    pub(super) fn drops_thought(&self, answer: &Answer) -> bool {
        let written = self.state.stream.grammar.writes_thought();
        self.forgets_thoughts() && (written || answer.thought_end != ThoughtEnd::None)
    }

    /// Whether a turn may have to leave the memory again.
    pub(super) fn may_leave(&self, instruction: &Instruction) -> bool {
        let every = self.config.frames_during_answers;
        let may_pause = every > 0 && self.longest(instruction) > every;
        may_pause || self.forgets_thoughts()
    }

    /// Without a memory there is nothing that a thought could leave: every question begins anew.
    fn forgets_thoughts(&self) -> bool {
        !self.config.remember_thoughts && self.config.cache.policy != PolicyKind::LastFrames
    }

    /// The ids of an answer as the memory is to hold them behind their question.
    pub(super) fn remembered(
        &self,
        instruction: &Instruction,
        answer: &Answer,
    ) -> Result<Vec<u32>, ModelError> {
        if !self.drops_thought(answer) {
            return Ok(self.without_end(&answer.token_ids));
        }
        let tokenizer = &self.model.tokenizer;
        let ids = self.without_end(answer.answer_ids());
        // Choices and grammars begin with the answer itself.
        if !instruction.choices.is_empty() || instruction.grammar.is_some() {
            return Ok(ids);
        }
        if answer.text.is_empty() {
            return Ok(Vec::new());
        }
        let mut blanks = 0;
        while let Some(&id) = ids.get(blanks) {
            let text = tokenizer.decode(&[id])?;
            if text.is_empty() || !text.chars().all(|c| c == '\n') {
                break;
            }
            blanks += 1;
        }
        let ids = &ids[blanks..];
        let grammar = &self.state.stream.grammar;
        let lead = grammar.lead();
        let as_written = tokenizer.decode(ids)?;
        if lead.is_empty() && as_written.trim_start_matches(' ') == answer.text {
            return Ok(ids.to_vec());
        }
        // A token holds the end of the thought and the beginning of the answer, or the answer begins otherwise than behind a question.
        let mut grammar = grammar.clone();
        let question = grammar.answered_instruction(&instruction.text, tokenizer);
        let before = tokenizer.encode_after(self.state.stream.last_id, &question)?;
        let text = format!("{lead}{}", tokenizer.guard(&answer.text));
        tokenizer.encode_after(before.last().copied(), &text)
    }

    /// Closes the thought that an answer is in, if it has come to the longest one there may be and there is room for an answer behind it,
    /// which is at most `longest` tokens long with the thought. `token` is the last one, which has not been fed; returns the one that is
    /// the last then.
    pub(super) fn limit_thought(
        &mut self,
        instruction: &Instruction,
        (token, longest): (u32, usize),
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<u32, AskError> {
        let limit = match instruction.max_thought_tokens {
            0 => self.config.max_thought_tokens,
            given => given,
        };
        if limit == 0 || !run.is_thinking() || run.answer.thought_tokens < limit {
            return Ok(token);
        }
        let closing = self.state.stream.grammar.end_of_thought();
        let closing = self.model.tokenizer.encode_after(Some(token), closing)?;
        if run.answer.output_tokens + closing.len() >= longest {
            return Ok(token);
        }
        let mut last = token;
        for id in closing {
            // The random state is only that of tokens that are chosen.
            let draws = self.state.stream.draws;
            self.follow(last, true, Limits::default())?;
            self.state.stream.draws = draws;
            run.given(id);
            run.emit(id, on_delta)?;
            last = id;
        }
        run.answer.thought_end = ThoughtEnd::Limit;
        Ok(last)
    }
}

/// Why there is nothing of an answer, which may be `longest` tokens long, if it ended within its thought.
pub(super) fn cut_in_thought(answer: &Answer, longest: usize) -> Option<String> {
    let by = match (answer.thought_end, answer.finish) {
        (ThoughtEnd::Cut, FinishReason::Length) => format!("at {longest} tokens (max_new_tokens)"),
        (ThoughtEnd::Cut, FinishReason::TimeLimit) => "by its time_limit".to_string(),
        _ => return None,
    };
    Some(format!(
        "cut off {by} within its thought, before an answer had begun (max_thought_tokens closes a thought earlier)"
    ))
}
