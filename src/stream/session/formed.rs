//! Answers of a fixed form: what they begin with, and those that are text of a grammar.

use super::{Chunk, Session};
use crate::model::constraint::{Constraint, ConstraintError};
use crate::model::ModelError;
use crate::stream::answer::FinishReason;
use crate::stream::generation::Generation;
use crate::stream::instruction::Instruction;

impl Session {
    /// The grammar that an answer has to follow, if any.
    pub(super) fn constraint(
        &self,
        instruction: &Instruction,
    ) -> Result<Option<Constraint>, ConstraintError> {
        let Some(grammar) = &instruction.grammar else {
            return Ok(None);
        };
        let lead = self.state.stream.grammar.lead();
        let constraint = self.model.constraints()?.compile(grammar, lead)?;
        Ok(Some(constraint))
    }

    /// Closes the thought that the question opened, if it opened one: an answer of a fixed form has no room for it. Returns the logits of
    /// what follows, which `logits` are if there is nothing to close.
    pub(super) fn close_thought(
        &mut self,
        logits: Vec<f32>,
        run: &mut Generation,
    ) -> Result<Vec<f32>, ModelError> {
        let ids = self.encode(self.state.stream.grammar.no_thought())?;
        if ids.is_empty() {
            return Ok(logits);
        }
        let hidden = self.pass_whole(&ids, &[], Chunk::Answer, 0)?;
        let mut rows = self.logits(&hidden)?;
        ids.iter().for_each(|&id| run.given(id));
        run.skipped_thought();
        rows.pop().ok_or_else(no_text)
    }
}

pub(super) fn no_text() -> ModelError {
    ModelError::Inputs("no text to go on from, expected at least one token".to_string())
}

/// Why an answer that ended like this is not of its grammar, which is not complete.
pub(super) fn cut_off(
    instruction: &Instruction,
    finish: FinishReason,
    longest: usize,
) -> Option<String> {
    let kind = instruction.grammar.as_ref()?.kind;
    let by = match finish {
        FinishReason::Length => format!("at {longest} tokens (max_new_tokens)"),
        FinishReason::TimeLimit => "by its time_limit".to_string(),
        _ => return None,
    };
    Some(format!(
        "cut off {by}, where its grammar ({kind}) is not complete"
    ))
}
