//! Turns of the conversation: into the archive when they have been answered, and fed as a whole.

use std::ops::Range;

use super::recall::Finding;
use super::{Chunk, Session};
use crate::cache::Summary;
use crate::model::ModelError;
use crate::stream::archive::{Content, Turn, Unit};

/// A turn that has begun and is to enter the archive.
pub(super) struct OpenTurn {
    /// Tokens of the stream before it.
    from: u64,
    /// Tokens of its question with the markup.
    asked: usize,
    /// Those of its words among them.
    words: Range<usize>,
}

impl Session {
    /// Ids of a question that comes next.
    pub(super) fn question(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.question_as(text, false)
    }

    /// The same; `answered`: as it stands in front of an answer that is fed with it.
    fn question_as(&self, text: &str, answered: bool) -> Result<Vec<u32>, ModelError> {
        let (mut grammar, tokenizer) = (self.state.stream.grammar.clone(), &self.model.tokenizer);
        self.encode(&match answered && !self.config.remember_thoughts {
            true => grammar.answered_instruction(text, tokenizer),
            false => grammar.instruction(text, tokenizer),
        })
    }

    /// Where among the `ids` of a question that comes next its own words are: between what a question of no words would be. All of them
    /// where it has none.
    pub(super) fn words(&self, text: &str, ids: &[u32]) -> Result<Range<usize>, ModelError> {
        self.words_as(text, ids, false)
    }

    /// The same; `answered`: as [`Self::question_as`] has it.
    fn words_as(
        &self,
        text: &str,
        ids: &[u32],
        answered: bool,
    ) -> Result<Range<usize>, ModelError> {
        if text.is_empty() {
            return Ok(0..ids.len());
        }
        let markup = self.question_as("", answered)?;
        let alike = |(a, b): &(&u32, &u32)| a == b;
        let before = ids.iter().zip(&markup).take_while(alike).count();
        let pairs = ids[before..]
            .iter()
            .rev()
            .zip(markup[before..].iter().rev());
        let words = before..ids.len() - pairs.take_while(alike).count();
        Ok(if words.is_empty() {
            0..ids.len()
        } else {
            words
        })
    }

    /// Listens to a turn that begins with this question; none where none enters the archive. `answered`: it is fed with its answer.
    pub(super) fn open_turn(
        &mut self,
        question: &str,
        answered: bool,
    ) -> Result<Option<OpenTurn>, ModelError> {
        if self.finding.turns.is_empty() {
            return Ok(None);
        }
        let ids = self.question_as(question, answered)?;
        let words = self.words_as(question, &ids, answered)?;
        self.state.cache.listen(&self.finding.turns);
        Ok(Some(OpenTurn {
            from: self.usage().tokens_seen,
            asked: ids.len(),
            words,
        }))
    }

    /// Takes a turn into the archive that has been fed since it was opened, as of the time of the newest frame.
    pub(super) fn archive_turn(
        &mut self,
        turn: OpenTurn,
        question: &str,
        said: &[u32],
    ) -> Result<(), ModelError> {
        let heard = Finding::heard_in(&self.finding.turns, &self.state.cache.heard()?);
        let newest = self.memory().newest();
        let Some(stamp_ns) = newest.map(|newest| newest.stamp_ns) else {
            return Ok(());
        };
        // A question without an answer is none to come back to.
        if said.is_empty() {
            return Ok(());
        }
        let (words, answer) = (turn.words, turn.asked..turn.asked + said.len());
        let extent = turn.from + words.start as u64..turn.from + answer.end as u64;
        let summary = Summary::joined(&[Summary::of(&heard, words)?, Summary::of(&heard, answer)?]);
        // As if it stood behind another turn, and again between frames.
        let behind_frames = self.state.stream.grammar.format().text_after_frames;
        let markup = self.encode(behind_frames)?.len();
        let turn = Turn {
            tokens: markup + self.question_as(question, true)?.len() + said.len(),
            asked: question.into(),
            said: said.into(),
        };
        let unit = Unit::new(stamp_ns, Content::Turn(turn), summary);
        self.archive_unit(Some((unit, extent)));
        Ok(())
    }

    /// Feeds a turn that has been answered.
    pub(super) fn append_turn(&mut self, question: &str, said: &[u32]) -> Result<(), ModelError> {
        let ids = self.question_as(question, true)?;
        let tokenizer = &self.model.tokenizer;
        self.state.stream.grammar.instruction(question, tokenizer);
        self.reserve_instruction(ids.len())?;
        self.append(&ids, Chunk::Instruction, said.len().max(1))?;
        if !said.is_empty() {
            self.append(said, Chunk::Answer, 1)?;
        }
        self.state.stream.grammar.answered();
        Ok(())
    }

    /// The ids of an answer that the stream holds: its end is written with what comes next.
    pub(super) fn without_end(&self, said: &[u32]) -> Vec<u32> {
        let said = said.iter().copied();
        said.filter(|&token| !self.model.ends.contains(token))
            .collect()
    }
}
