//! The answers to planted facts, asked for ephemerally on one stream: the state is put back after each question.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::facts::{Ask, Fact, Timeline};
use super::loss::{are_first_choices, token_losses};
use super::model::EvalModel;
use super::stats::Share;
use super::text_memory::TextMemory;
use super::{parameter, EvalError, Progress};
use crate::cache::{BoundedCache, CacheConfig};
use crate::stream::archive::{ArchiveConfig, Found};

/// One question's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the fact among all facts of the run.
    pub fact: usize,
    /// See [`Ask::distance`].
    pub distance: Option<usize>,
    /// Every token of the value was the model's first choice.
    pub right: bool,
    /// Mean loss of the value's tokens, nats.
    pub loss: f32,
    /// Share of the statement's tokens that are kept when the question comes, over all kept sets, 0 to 1.
    pub kept: f32,
    /// What was recalled, where there is an archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recalled: Option<Recalled>,
}

/// What was fed again for a question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recalled {
    /// The fact was among it.
    pub hit: bool,
    pub units: usize,
    /// Tokens, those between units included.
    pub tokens: usize,
    /// Units in the archive, and its bytes.
    pub archived: usize,
    pub bytes: usize,
}

/// How the stream is fed.
#[derive(Debug, Clone, Copy)]
pub struct RecallOptions<'a> {
    /// Tokens per forward pass.
    pub chunk: usize,
    /// Ids of an instruction that the policy is given beforehand, without it being part of the stream; empty: none.
    pub standing: &'a [u32],
    /// How what has left the cache is recalled, if it is.
    pub archive: Option<&'a ArchiveConfig>,
}

/// Streams the timeline through one policy and asks all its questions. `first` is the number of its first fact.
pub fn recall(
    model: &EvalModel,
    timeline: &Timeline,
    config: &CacheConfig,
    first: usize,
    options: &RecallOptions,
    progress: Progress,
) -> Result<Vec<Answer>, EvalError> {
    if options.chunk == 0 {
        return Err(parameter("chunk", 0, "at least 1 token"));
    }
    let mut caches = [model.cache(config)?];
    model.note_standing(options.standing, &mut caches)?;
    let mut memory = match options.archive {
        Some(archive) => Some(TextMemory::new(model, archive)?),
        None => None,
    };
    let mut answers = Vec::with_capacity(timeline.asks.len());
    let mut at = 0;
    let mut asks = timeline.asks.as_slice();
    while at < timeline.ids.len() || !asks.is_empty() {
        let due = asks.iter().take_while(|ask| ask.at == at).count();
        let (now, later) = asks.split_at(due);
        asks = later;
        if !now.is_empty() {
            caches[0].mark();
            for ask in now {
                let fact = &timeline.facts[ask.fact];
                let told = ask.distance.map(|distance| {
                    let end = (ask.at - distance) as u64;
                    end - fact.statement.len() as u64..end
                });
                let retained = caches[0].retained();
                let kept = told.clone().map_or(0.0, |told| retained.share(told));
                let found = match &memory {
                    Some(memory) => memory.find(fact.asked(), &mut caches)?,
                    None => Vec::new(),
                };
                let recalled = memory.as_ref().map(|memory| {
                    let told = told.unwrap_or_default();
                    memory.recalled(&found, told)
                });
                let (right, loss) = question(model, fact, memory.as_ref(), &found, &mut caches)?;
                caches[0].put_back()?;
                answers.push(Answer {
                    fact: first + ask.fact,
                    distance: ask.distance,
                    right,
                    loss,
                    kept,
                    recalled,
                });
            }
            caches[0].let_go();
        }
        let next = asks.first().map_or(timeline.ids.len(), |ask: &Ask| ask.at);
        let to = next.min(at + options.chunk);
        if to > at {
            let before = at.checked_sub(1).map(|last| timeline.ids[last]);
            let chunk = &timeline.ids[at..to];
            match &mut memory {
                Some(memory) => memory.append(before, chunk, &mut caches)?,
                None => model.append(before, chunk, &mut caches)?,
            };
            caches[0].reserve(options.chunk)?;
            progress(to - at);
        }
        at = to;
    }
    Ok(answers)
}

/// Whether every token of the value is the model's first choice after the question, and their mean loss; in front of the question
/// stands what was found.
fn question(
    model: &EvalModel,
    fact: &Fact,
    memory: Option<&TextMemory>,
    found: &[Found],
    caches: &mut [BoundedCache; 1],
) -> Result<(bool, f32), EvalError> {
    let mut ids = memory.map_or_else(Vec::new, |memory| memory.text(found));
    let start = ids.len() + fact.asked().len();
    ids.extend_from_slice(&fact.question);
    let recent = caches[0].plan().recent;
    if ids.len() > recent && !found.is_empty() {
        // A compaction in the middle of it could evict its beginning.
        caches[0].reserve(ids.len())?;
    }
    let hidden = model.append(None, &ids, caches)?;
    value_after(model, &hidden, start, &ids[start..])
}

/// The same for a value that begins at row `start` of the tokens whose hidden states are given, `[tokens, hidden]`.
pub(super) fn value_after(
    model: &EvalModel,
    hidden: &Tensor,
    start: usize,
    value: &[u32],
) -> Result<(bool, f32), EvalError> {
    let before = hidden.narrow(0, start - 1, value.len())?;
    let right = are_first_choices(&model.decoder, &before, value)?;
    let losses = token_losses(&model.decoder, &before, value)?;
    let loss = losses.iter().sum::<f32>() / losses.len() as f32;
    Ok((right.into_iter().all(|right| right), loss))
}

/// The share of right answers at one distance, its interval, and the mean loss of the values.
pub fn at_distance(answers: &[Answer], distance: Option<usize>) -> (Share, f64) {
    let there = answers
        .iter()
        .filter(|answer| answer.distance == distance)
        .collect::<Vec<_>>();
    let right = there.iter().filter(|answer| answer.right).count();
    let loss = there
        .iter()
        .map(|answer| f64::from(answer.loss))
        .sum::<f64>();
    (
        Share::wilson(right, there.len()),
        loss / there.len().max(1) as f64,
    )
}

/// Share of the facts' tokens that were kept when they were asked for at one distance, 0 to 1.
pub fn kept(answers: &[Answer], distance: usize) -> f64 {
    let there = answers.iter().filter(|a| a.distance == Some(distance));
    let kept = there.map(|a| f64::from(a.kept)).collect::<Vec<_>>();
    kept.iter().sum::<f64>() / kept.len().max(1) as f64
}

/// The share of questions at one distance for which the fact was recalled or still kept for the most part, and of right answers to
/// those.
pub fn hits(answers: &[Answer], distance: usize) -> [Share; 2] {
    let there = answers.iter().filter(|a| a.distance == Some(distance));
    let (mut asked, mut hits, mut right) = (0, 0, 0);
    for answer in there {
        let hit = answer.kept >= 0.5 || answer.recalled.is_some_and(|recalled| recalled.hit);
        asked += 1;
        hits += usize::from(hit);
        right += usize::from(hit && answer.right);
    }
    [Share::wilson(hits, asked), Share::wilson(right, hits)]
}

/// Right or wrong at one distance in the order of the facts, so that two policies can be compared question by question.
pub fn outcomes(answers: &[Answer], distance: Option<usize>) -> Vec<bool> {
    let mut there = answers
        .iter()
        .filter(|answer| answer.distance == distance)
        .collect::<Vec<_>>();
    there.sort_by_key(|answer| answer.fact);
    there.iter().map(|answer| answer.right).collect()
}
