//! An answer in the making.

use std::sync::Arc;
use std::time::Instant;

use super::answer::{Answer, AnswerDelta, FinishReason, Instruction};
use super::grammar::Thought;
use crate::model::chooser::Choice;
use crate::model::text_stream::TextStream;
use crate::model::tokenizer::ChatTokenizer;
use crate::model::ModelError;

/// An answer in the making.
pub(super) struct Generation {
    pub answer: Answer,
    received: Instant,
    logprobs: f64,
    /// Tokens that were chosen, of the answer's tokens.
    chosen: usize,
    pieces: u32,
    tokenizer: Arc<ChatTokenizer>,
    text: TextStream,
    thought: Thought,
    /// The beginning of a character of a text that comes in bytes.
    held: Vec<u8>,
}

impl Generation {
    /// An answer to `instruction` of which nothing has been generated; `answer` holds what the session knows beforehand, and
    /// `thought` is cut off from its text.
    pub fn new(
        answer: Answer,
        instruction: &Instruction,
        tokenizer: Arc<ChatTokenizer>,
        thought: Thought,
    ) -> Self {
        Self {
            answer,
            tokenizer,
            thought,
            text: TextStream::default(),
            held: Vec::new(),
            received: instruction.received,
            logprobs: 0.0,
            chosen: 0,
            pieces: 0,
        }
    }

    pub fn chose(&mut self, choice: Choice) {
        self.given(choice.token);
        self.chosen += 1;
        self.logprobs += f64::from(choice.logprob);
    }

    /// Takes a token of the answer that the model had no part in.
    pub fn given(&mut self, token: u32) {
        self.answer
            .time_to_first_token
            .get_or_insert_with(|| self.received.elapsed());
        self.answer.token_ids.push(token);
        self.answer.output_tokens += 1;
    }

    /// Hands out what the text grows by with the token that was chosen last, without a thought and blanks at its start.
    pub fn emit(
        &mut self,
        token: u32,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<(), ModelError> {
        let added = self.text.push(token, &self.tokenizer)?;
        let added = self.thought.answer_in(&added);
        let added = self.append(&added);
        if !added.is_empty() {
            self.send(added, false, on_delta);
        }
        Ok(())
    }

    /// Hands out text of a fixed form as it is, whatever it begins with; `bytes` may end in the middle of a character.
    pub fn emit_bytes(&mut self, bytes: &[u8], on_delta: &mut dyn FnMut(AnswerDelta)) {
        self.held.extend(bytes);
        let whole = match std::str::from_utf8(&self.held) {
            // A character of which more may come.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.held.len(),
        };
        let whole = self.held.drain(..whole).collect::<Vec<_>>();
        let added = String::from_utf8_lossy(&whole).into_owned();
        if !added.is_empty() {
            self.answer.text.push_str(&added);
            self.send(added, false, on_delta);
        }
    }

    fn append(&mut self, added: &str) -> String {
        let added = match self.answer.text.is_empty() {
            true => added.trim_start(),
            false => added,
        };
        self.answer.text.push_str(added);
        added.to_string()
    }

    fn send(&mut self, text: String, done: bool, on_delta: &mut dyn FnMut(AnswerDelta)) {
        on_delta(AnswerDelta {
            id: self.answer.id.clone(),
            ticket: self.answer.ticket,
            index: self.pieces,
            text,
            done,
        });
        self.pieces += 1;
    }

    pub fn finish(
        mut self,
        finish: FinishReason,
        error: Option<String>,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        // What there is of a character that was cut off; ids that have been decoded once are decoded again.
        let rest = std::mem::take(&mut self.text).finish(&self.tokenizer);
        let mut rest = self.thought.answer_in(&rest.unwrap_or_default());
        rest.push_str(&self.thought.rest());
        let mut rest = self.append(&rest);
        let held = String::from_utf8_lossy(&self.held);
        self.answer.text.push_str(&held);
        rest.push_str(&held);
        self.send(rest, true, on_delta);
        self.answer.finish = finish;
        self.answer.error = error.or(self.answer.error);
        self.answer.latency = self.received.elapsed();
        self.answer.mean_logprob = (self.logprobs / self.chosen.max(1) as f64) as f32;
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::checkpoint::Checkpoint;

    /// One that has not begun; `open`: the question opened a thought.
    fn generation(open: bool) -> Generation {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_smolvlm");
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let tokenizer = Arc::new(ChatTokenizer::load(&checkpoint).unwrap());
        let instruction = Instruction::new("What is it?");
        let answer = Answer::new(&instruction);
        Generation::new(answer, &instruction, tokenizer, Thought::new(open))
    }

    /// An answer that is generated as `said`, token by token, with the pieces of its text.
    fn answered(open: bool, said: &str) -> (Answer, Vec<String>) {
        let (mut run, mut pieces) = (generation(open), Vec::new());
        for token in run.tokenizer.clone().encode_text(said).unwrap() {
            let logprob = -1.0;
            run.chose(Choice { token, logprob });
            run.emit(token, &mut |delta| pieces.push(delta.text))
                .unwrap();
        }
        let answer = run.finish(FinishReason::Stop, None, &mut |delta| {
            pieces.push(delta.text)
        });
        (answer, pieces)
    }

    #[test]
    fn a_thought_is_in_no_piece_of_an_answer_but_counts() {
        for (open, said, expected) in [
            (
                false,
                "<think>\nis it blue? no\n</think>\n\na red box",
                "a red box",
            ),
            (true, "is it blue? no\n</think>\n\na red box", "a red box"),
            (false, " a red box", "a red box"),
            (false, "<thinner", "<thinner"),
            (false, "<think>for ever and ever", ""),
            (true, "for ever and ever", ""),
        ] {
            let (answer, pieces) = answered(open, said);
            assert_eq!(answer.text, expected, "{said}");
            assert_eq!(pieces.concat(), expected, "{said}");
            assert!(pieces[..pieces.len() - 1]
                .iter()
                .all(|piece| !piece.is_empty()));
            // Every token was paid for in time and memory.
            assert_eq!(answer.token_ids.len(), answer.output_tokens);
            assert!(answer.output_tokens > said.split(' ').count() - 1, "{said}");
        }
    }

    #[test]
    fn text_of_a_fixed_form_is_handed_out_as_it_is_in_whole_characters() {
        let said = "\n <think>Größe</think>";
        for cut in 0..=said.len() {
            let (mut run, mut pieces) = (generation(false), Vec::new());
            let (before, behind) = said.as_bytes().split_at(cut);
            for part in [before, behind] {
                run.emit_bytes(part, &mut |delta| pieces.push(delta.text));
            }
            let answer = run.finish(FinishReason::Stop, None, &mut |delta| {
                pieces.push(delta.text)
            });
            assert_eq!(answer.text, said);
            assert_eq!(pieces.concat(), said);
        }
        // Cut off in the middle of a character.
        let mut run = generation(false);
        run.emit_bytes(b"Gr\xc3", &mut |_| ());
        let answer = run.finish(FinishReason::Length, None, &mut |_| ());
        assert_eq!(answer.text, "Gr\u{FFFD}");
    }
}
