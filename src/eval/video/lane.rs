//! One lane through one drive: every frame into a session, every question at its time, put back after it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::drive::{Drive, Question};
use crate::eval::{EvalError, Progress};
use crate::stream::answer::Recall;
use crate::stream::session::EncodedFrame;
use crate::stream::{Answer, FinishReason, Instruction, Session};

/// What a lane is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Black images: the floor.
    Black,
    /// The drive, and for each question the frames that show its answer are recalled: the oracle.
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
    /// What was fed again for it; none where nothing could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recalled: Option<Recalled>,
}

/// What was fed again for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    /// All times at which the answer was shown are within [`HIT_S`] of a recalled unit's.
    pub hit: bool,
    pub units: usize,
    /// Tokens, those of the newest frame included.
    pub tokens: usize,
}

/// How far a recalled frame may be from one that shows the answer and count as showing it too, seconds: a sighting lasts a few.
pub const HIT_S: f64 = 2.0;

/// Plays `frames`, the drive's or black ones, into a new session. `shown`: for each question the frames that an oracle recalls for it,
/// where the session's archive has them all. `progress` is called with the number of frames done since the last call.
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
        let shown = shown.map(|shown| shown[number].iter());
        let stamps = shown.map(|shown| shown.map(|&frame| frames[frame].stamp_ns()).collect());
        let begin_ns = frames.first().map_or(0, EncodedFrame::stamp_ns);
        let answered = ask(session, question, begin_ns, stamps)?;
        result.answers.push(answered);
    }
    result.tokens_evicted = session.usage().tokens_evicted;
    Ok(result)
}

/// Asks aside. `shown_ns`: an oracle recalls the frames of these stamps. `begin_ns`: the stamp that the script's times count from.
fn ask(
    session: &mut Session,
    question: &Question,
    begin_ns: i64,
    shown_ns: Option<Vec<i64>>,
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
        recall: Recall {
            stamps_ns: shown_ns.clone().unwrap_or_default(),
            ..Recall::default()
        },
    };
    let answer = session.ask(&instruction, &|| false, &mut |_| ());
    let unanswered = |reason: String| EvalError::Unanswered {
        id: entry.id.clone(),
        reason,
    };
    if answer.finish == FinishReason::Error {
        return Err(unanswered(answer.error.unwrap_or_default()));
    }
    if let Some(shown_ns) = shown_ns {
        let recalled = answer.recalled.iter().map(|unit| unit.stamp_ns);
        let recalled = recalled.collect::<Vec<_>>();
        if recalled != shown_ns {
            return Err(unanswered(format!(
                "the oracle recalled the frames of {recalled:?} ns, expected those of {shown_ns:?} ns"
            )));
        }
    }
    let recalls = !session.archive().entries().is_empty();
    Ok(Answered {
        right: entry.is_right(&answer.text) == Some(true),
        recalled: recalls.then(|| recalled(&answer, question, begin_ns)),
        id: answer.id,
        cell: question.cell,
        kind: question.kind.clone(),
        age: question.age,
        text: answer.text,
    })
}

fn recalled(answer: &Answer, question: &Question, begin_ns: i64) -> Recalled {
    let seconds = |ns: i64| ns.saturating_sub(begin_ns) as f64 * 1e-9;
    let near = |shown: f64| {
        answer.recalled.iter().any(|unit| {
            let (from, to) = (seconds(unit.stamp_ns), seconds(unit.seen_ns));
            from - HIT_S <= shown && shown <= to + HIT_S
        })
    };
    let shown = &question.entry.shown;
    Recalled {
        hit: !shown.is_empty() && shown.iter().all(|&shown| near(shown)),
        units: answer.recalled.len(),
        tokens: answer.recalled_tokens,
    }
}
