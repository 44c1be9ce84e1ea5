//! One lane through one drive: every frame into a session, every question at its time, put back after it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::drive::{Drive, Question};
use crate::eval::{EvalError, Progress};
use crate::stream::session::EncodedFrame;
use crate::stream::{Answer, FinishReason, Instruction, Session};

/// What a lane is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Black images: the floor.
    Black,
    /// The drive, and before each question once more the frames that show its answer: the oracle.
    Oracle,
    /// The drive.
    Drive,
}

/// What a lane made of a drive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneResult {
    pub frames: usize,
    /// The most slots of a layer that were in use after a frame.
    pub most_used: usize,
    pub budget: usize,
    pub tokens_evicted: u64,
    pub answers: Vec<Answered>,
}

/// One question's outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    pub id: String,
    pub cell: Cell,
    #[serde(rename = "type")]
    pub kind: String,
    /// See [`Question::age`].
    pub age: f64,
    pub text: String,
    pub right: bool,
}

/// Plays `frames`, the drive's or black ones, into a new session. `shown`: for each question the frames that an oracle feeds again in
/// front of it. `progress` is called with the number of frames done since the last call.
pub fn run(
    session: &mut Session,
    drive: &Drive,
    frames: &[EncodedFrame],
    shown: Option<&[Vec<usize>]>,
    progress: Progress,
) -> Result<LaneResult, EvalError> {
    let mut result = LaneResult {
        frames: frames.len(),
        most_used: 0,
        budget: session.usage().budget,
        tokens_evicted: 0,
        answers: Vec::with_capacity(drive.questions.len()),
    };
    let mut fed = 0;
    for (number, question) in drive.questions.iter().enumerate() {
        for frame in &frames[fed..question.after] {
            session.push_encoded(frame)?;
            result.most_used = result.most_used.max(session.usage().used);
            progress(1);
        }
        fed = question.after;
        let again = shown.map(|shown| {
            let again = shown[number].iter().map(|&frame| frames[frame].clone());
            again.collect::<Vec<_>>()
        });
        result
            .answers
            .push(ask(session, question, again.as_deref())?);
    }
    result.tokens_evicted = session.usage().tokens_evicted;
    Ok(result)
}

/// Asks aside; behind the frames of `again`, if there are any.
fn ask(
    session: &mut Session,
    question: &Question,
    again: Option<&[EncodedFrame]>,
) -> Result<Answered, EvalError> {
    let entry = &question.entry;
    let instruction = Instruction {
        id: entry.id.clone(),
        text: entry.text.clone(),
        max_new_tokens: entry.max_new_tokens,
        ephemeral: true,
        stamp_ns: 0,
        arrival_ns: None,
        received: Instant::now(),
    };
    let (go_on, ignore) = (&|| false, &mut |_| ());
    let answer: Answer = match again {
        Some(frames) => session.ask_after(frames, &instruction, go_on, ignore),
        None => session.ask(&instruction, go_on, ignore),
    };
    if answer.finish == FinishReason::Error {
        return Err(EvalError::Unanswered {
            id: answer.id,
            reason: answer.error.unwrap_or_default(),
        });
    }
    Ok(Answered {
        right: entry.is_right(&answer.text) == Some(true),
        id: answer.id,
        cell: question.cell,
        kind: question.kind.clone(),
        age: question.age,
        text: answer.text,
    })
}
