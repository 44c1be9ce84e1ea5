//! An answer in the making.

use std::sync::Arc;
use std::time::Instant;

use super::answer::{Answer, AnswerDelta, FinishReason, ThoughtEnd};
use super::grammar::{Parted, Thought};
use super::instruction::Instruction;
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
    /// Marks of thoughts that are control tokens of this checkpoint, which have no text otherwise.
    marks: Vec<(u32, String)>,
    /// The beginning of a character of a text that comes in bytes.
    held: Vec<u8>,
}

impl Generation {
    /// An answer to `instruction` of which nothing has been generated; `answer` holds what the session knows beforehand, and
    /// `thought` is parted from its text.
    pub fn new(
        answer: Answer,
        instruction: &Instruction,
        tokenizer: Arc<ChatTokenizer>,
        thought: Thought,
    ) -> Self {
        Self {
            answer,
            marks: Thought::control_marks(&tokenizer),
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

    /// Hands out what thought and text grow by with the token that was chosen last, each without blanks at its start.
    pub fn emit(
        &mut self,
        token: u32,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<(), ModelError> {
        let mark = self.marks.iter().find(|(id, _)| *id == token);
        let added = match mark {
            Some((_, mark)) => mark.clone(),
            None => self.text.push(token, &self.tokenizer)?,
        };
        let parted = self.thought.part(&added);
        self.note_thought();
        self.hand_out(parted, on_delta);
        Ok(())
    }

    /// Whether the answer has come to the middle of a thought.
    pub fn is_thinking(&self) -> bool {
        self.thought.is_thinking()
    }

    /// The thought that the question opened has been closed at once, with what has been given so far.
    pub fn skipped_thought(&mut self) {
        self.thought.skip();
        self.note_thought();
        self.answer.thought_end = ThoughtEnd::Skipped;
    }

    /// Notes how long the thought is, and that it has ended.
    fn note_thought(&mut self) {
        let ended = self.thought.has_ended() && self.answer.thought_end == ThoughtEnd::None;
        if ended {
            self.answer.thought_end = ThoughtEnd::Ended;
        }
        if ended || self.thought.is_thinking() {
            self.answer.thought_tokens = self.answer.output_tokens;
        }
    }

    fn hand_out(&mut self, parted: Parted, on_delta: &mut dyn FnMut(AnswerDelta)) {
        if !parted.thought.is_empty() {
            self.answer.thought.push_str(&parted.thought);
            self.send(parted.thought, (true, false), on_delta);
        }
        let added = self.append(&parted.answer);
        if !added.is_empty() {
            self.send(added, (false, false), on_delta);
        }
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
            self.send(added, (false, false), on_delta);
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

    /// Sends text of the thought (`thought`) or of the answer, of which it may be the last.
    fn send(
        &mut self,
        text: String,
        (thought, done): (bool, bool),
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) {
        on_delta(AnswerDelta {
            id: self.answer.id.clone(),
            ticket: self.answer.ticket,
            index: self.pieces,
            text,
            thought,
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
        let parted = self.thought.part(&rest.unwrap_or_default());
        self.note_thought();
        let last = self.thought.rest();
        let thought = Parted {
            thought: parted.thought + &last.thought,
            answer: String::new(),
        };
        self.hand_out(thought, on_delta);
        // A question that was not put has opened no thought.
        if self.thought.is_thinking() && self.answer.prompt_tokens > 0 {
            self.answer.thought_end = ThoughtEnd::Cut;
        }
        let mut rest = self.append(&(parted.answer + &last.answer));
        let held = String::from_utf8_lossy(&self.held);
        self.answer.text.push_str(&held);
        rest.push_str(&held);
        self.send(rest, (false, true), on_delta);
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
        let mut answer = Answer::new(&instruction);
        answer.prompt_tokens = 1;
        Generation::new(answer, &instruction, tokenizer, Thought::new(open))
    }

    /// An answer that is generated as `said`, token by token, with its pieces.
    fn answered(open: bool, said: &str) -> (Answer, Vec<AnswerDelta>) {
        let (mut run, mut pieces) = (generation(open), Vec::new());
        for token in run.tokenizer.clone().encode_text(said).unwrap() {
            let logprob = -1.0;
            run.chose(Choice { token, logprob });
            run.emit(token, &mut |delta| pieces.push(delta)).unwrap();
        }
        let answer = run.finish(FinishReason::Stop, None, &mut |delta| pieces.push(delta));
        (answer, pieces)
    }

    #[test]
    fn a_thought_comes_in_pieces_of_its_own_and_its_tokens_count() {
        let (blue, long) = ("is it blue? no", "for ever and ever");
        let box_ = "a red box";
        for (open, said, thought, text, end) in [
            (
                false,
                "<think>\nis it blue? no\n</think>\n\na red box",
                blue,
                box_,
                ThoughtEnd::Ended,
            ),
            (
                true,
                "is it blue? no\n</think>\n\na red box",
                blue,
                box_,
                ThoughtEnd::Ended,
            ),
            (false, " a red box", "", box_, ThoughtEnd::None),
            (false, "<thinner", "", "<thinner", ThoughtEnd::None),
            (false, "<think>for ever and ever", long, "", ThoughtEnd::Cut),
            (true, "for ever and ever", long, "", ThoughtEnd::Cut),
            (true, "", "", "", ThoughtEnd::Cut),
            (false, "", "", "", ThoughtEnd::None),
        ] {
            let (answer, pieces) = answered(open, said);
            assert_eq!((&*answer.thought, &*answer.text), (thought, text), "{said}");
            let joined = |of_thought: bool| {
                let pieces = pieces.iter().filter(|piece| piece.thought == of_thought);
                pieces.map(|piece| piece.text.as_str()).collect::<String>()
            };
            assert_eq!((&*joined(true), &*joined(false)), (thought, text), "{said}");
            let (last, others) = pieces.split_last().unwrap();
            assert!(last.done && !last.thought);
            assert!(others
                .iter()
                .all(|piece| !piece.text.is_empty() && !piece.done));
            assert!((0..)
                .zip(&pieces)
                .all(|(index, piece)| piece.index == index));
            assert_eq!(answer.thought_end, end, "{said}");
            // Every token was paid for in time and memory.
            assert_eq!(answer.token_ids.len(), answer.output_tokens);
            assert!(
                answer.output_tokens >= said.split_whitespace().count(),
                "{said}"
            );
            let behind = answer.output_tokens - answer.thought_tokens;
            match end {
                ThoughtEnd::None => assert_eq!(answer.thought_tokens, 0),
                ThoughtEnd::Cut => assert_eq!(behind, 0),
                _ => {
                    let ids = answer.answer_ids();
                    assert!(answer.thought_tokens > 0 && ids.len() == behind);
                }
            }
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
