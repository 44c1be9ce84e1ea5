//! Answers that are paused for frames: in the middle of an answer a frame would be no conversation that a checkpoint knows, so that the
//! turn is taken back and put again behind the frame.

use super::pictures::Pictures;
use super::Session;
use crate::model::chooser::Draws;
use crate::model::constraint::Constraint;
use crate::stream::answer::Answer;
use crate::stream::archive::Found;
use crate::stream::generation::Generation;
use crate::stream::instruction::Instruction;

/// An answer that is being given.
pub struct Asking {
    pub(super) run: Generation,
    /// Once the instruction has been found to be one that can be answered.
    pub(super) prepared: Option<Prepared>,
    /// The random state at a pause.
    pub(super) draws: Option<Draws>,
}

/// What an answer needs to know beside the question.
pub(super) struct Prepared {
    /// What is recalled for it.
    pub found: Vec<Found>,
    pub pictures: Pictures,
    /// What it has to be a text of, as far as it has come.
    pub form: Option<Constraint>,
}

/// How far an answer has come.
pub enum Progress {
    Answered(Box<Answer>),
    /// A frame waits, for which there is room now.
    Paused(Box<Asking>),
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

impl Session {
    /// An answer of which nothing has been generated.
    pub fn begin_answer(&self, instruction: &Instruction) -> Asking {
        Asking {
            run: self.answer_to(instruction),
            prepared: None,
            draws: None,
        }
    }

    /// Whether an answer that had `before` tokens when it was gone on with may be paused: it has grown enough, and the whole turn can be
    /// put again.
    pub(super) fn may_pause(&self, answer: &Answer, before: usize) -> bool {
        let every = self.config.frames_during_answers;
        let turn = answer.recalled_tokens + answer.prompt_tokens + answer.output_tokens;
        every > 0
            && answer.output_tokens >= before + every
            && turn <= self.state.cache.longest_turn()
    }
}
