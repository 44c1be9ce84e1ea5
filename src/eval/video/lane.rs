//! One lane through one drive: every frame into a session, every question at its time, put back after it.

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::drive::{Drive, Question};
use crate::cache::PolicyKind;
use crate::eval::{EvalError, Progress};
use crate::stream::instruction::Recall;
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
    /// For every frame that shows the answer, one within [`NEAR_S`] of it was in front of the model: kept for the half at least, or
    /// recalled.
    pub in_front: bool,
    /// What was fed again for it; none where nothing could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recalled: Option<Recalled>,
}

/// What was fed again for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    pub units: usize,
    /// Tokens, those of the newest frame included.
    pub tokens: usize,
}

/// How far a frame may be from one that shows an answer and count as showing it too, seconds: a sighting lasts a few.
pub const NEAR_S: f64 = 2.0;

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
        let kept = kept_ns(session, &frames[..fed]);
        let (answer, mut spans) = ask(session, question, stamps)?;
        spans.extend(kept.into_iter().map(|stamp_ns| (stamp_ns, stamp_ns)));
        let begin_ns = frames.first().map_or(0, EncodedFrame::stamp_ns);
        let recalled = Recalled {
            units: answer.recalled.len(),
            tokens: answer.recalled_tokens,
        };
        let recalls = !session.archive().entries().is_empty();
        result.answers.push(Answered {
            right: question.entry.is_right(&answer.text) == Some(true),
            in_front: in_front(&question.entry.shown, begin_ns, &spans),
            recalled: recalls.then_some(recalled),
            id: answer.id,
            cell: question.cell,
            kind: question.kind.clone(),
            age: question.age,
            text: answer.text,
        });
    }
    result.tokens_evicted = session.usage().tokens_evicted;
    Ok(result)
}

/// Stamps of the frames of which the memory keeps half at least, nanoseconds.
fn kept_ns(session: &Session, frames: &[EncodedFrame]) -> Vec<i64> {
    let cache = &session.config().cache;
    if cache.policy == PolicyKind::LastFrames {
        let last = frames.iter().rev().take(cache.last_frames);
        return last.map(EncodedFrame::stamp_ns).collect();
    }
    let retained = session.state().cache.retained_frames();
    let kept = retained.into_iter().filter_map(|(id, tokens)| {
        let frame = frames.get(id as usize)?;
        (tokens >= 0.5 * frame.tokens() as f64).then(|| frame.stamp_ns())
    });
    kept.collect()
}

/// Asks aside; with the answer comes from and to when each recalled unit was seen, nanoseconds. `shown_ns`: an oracle recalls the
/// frames of these stamps.
fn ask(
    session: &mut Session,
    question: &Question,
    shown_ns: Option<Vec<i64>>,
) -> Result<(Answer, Vec<(i64, i64)>), EvalError> {
    let entry = &question.entry;
    let instruction = Instruction {
        id: entry.id.clone(),
        max_new_tokens: entry.max_new_tokens,
        ephemeral: true,
        recall: Recall {
            stamps_ns: shown_ns.clone().unwrap_or_default(),
            ..Recall::default()
        },
        ..Instruction::new(&entry.text)
    };
    let answer = session.ask(&instruction, &|| false, &mut |_| ());
    let unanswered = |reason: String| EvalError::Unanswered {
        id: entry.id.clone(),
        reason,
    };
    if answer.finish == FinishReason::Error {
        return Err(unanswered(answer.error.unwrap_or_default()));
    }
    let recalled = answer.recalled.iter();
    let recalled = recalled.map(|unit| (unit.stamp_ns, unit.seen_ns));
    let recalled = recalled.collect::<Vec<_>>();
    let stamps = recalled.iter().map(|span| span.0);
    if shown_ns
        .as_ref()
        .is_some_and(|shown_ns| !stamps.clone().eq(shown_ns.iter().copied()))
    {
        return Err(unanswered(format!(
            "the oracle recalled the frames of {:?} ns, expected those of {:?} ns",
            stamps.collect::<Vec<_>>(),
            shown_ns.unwrap_or_default()
        )));
    }
    Ok((answer, recalled))
}

/// Whether every frame of `shown`, seconds since the stamp `begin_ns`, is near one of the spans, nanoseconds.
fn in_front(shown: &[f64], begin_ns: i64, spans: &[(i64, i64)]) -> bool {
    let seconds = |ns: i64| ns.saturating_sub(begin_ns) as f64 * 1e-9;
    let near = |shown: &f64| {
        spans
            .iter()
            .any(|&(from, to)| seconds(from) - NEAR_S <= *shown && *shown <= seconds(to) + NEAR_S)
    };
    !shown.is_empty() && shown.iter().all(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_in_front_where_all_that_shows_it_is() {
        const S: i64 = 1_000_000_000;
        let spans = [(110 * S, 110 * S), (120 * S, 140 * S)];
        for (shown, expected) in [
            (&[10.0][..], true),
            (&[12.0], true),
            (&[12.5], false),
            (&[18.5, 30.0, 41.5], true),
            (&[10.0, 50.0], false),
            (&[], false),
        ] {
            assert_eq!(in_front(shown, 100 * S, &spans), expected, "{shown:?}");
        }
    }
}
