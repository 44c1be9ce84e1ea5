//! Many rounds in one chat: each tells a fact, between lines of a text, and asks for one that was told some rounds before.
//!
//! Nothing is put back here: questions and answers stay in the stream, as they do when a robot is talked to.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::facts::Fact;
use super::model::EvalModel;
use super::recall::value_after;
use super::{parameter, EvalError, Progress};
use crate::cache::CacheConfig;

/// How a conversation goes.
#[derive(Debug, Clone)]
pub struct ConversationOptions {
    /// Text of the system turn.
    pub system: String,
    /// Tokens of the text that each round begins with.
    pub filler: usize,
    /// How many rounds ago the asked fact was told, by turns; 0: in this round. A round without so many before it asks for
    /// nothing.
    pub lags: Vec<usize>,
    /// Tokens per forward pass.
    pub chunk: usize,
    /// An instruction that the policy is given beforehand; empty: none.
    pub standing: String,
}

/// One round's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub round: usize,
    pub lag: usize,
    /// Tokens between the fact's statement and the answer's value.
    pub distance: usize,
    pub right: bool,
    /// Mean loss of the value's tokens, nats.
    pub loss: f32,
}

/// Runs one round per fact of `facts` under one policy. The right answer goes on in the stream, whatever the model would have said.
pub fn conversation(
    model: &EvalModel,
    facts: &[Fact],
    text: &[u32],
    config: &CacheConfig,
    options: &ConversationOptions,
    progress: Progress,
) -> Result<Vec<Round>, EvalError> {
    check_lags(&options.lags)?;
    if options.chunk == 0 {
        return Err(parameter("chunk", 0, "at least 1 token"));
    }
    let noted = model.encode("Noted.")?;
    let format = model.chat_format()?;
    let mut opening = format.open.clone();
    opening.extend(model.encode(&options.system)?);
    let standing = match options.standing.as_str() {
        "" => Vec::new(),
        text => model.encode(text)?,
    };
    let mut caches = [model.cache_after(config, opening.len())?];
    model.append(None, &opening, &mut caches)?;
    model.note_standing(&standing, &mut caches)?;
    let mut before = opening.last().copied();
    let mut filler = text.iter().copied().cycle();
    let mut at = opening.len();
    let mut told = Vec::with_capacity(facts.len());
    let mut rounds = Vec::with_capacity(facts.len());
    for (round, fact) in facts.iter().enumerate() {
        let mut turn = match round {
            0 => format.first_user.clone(),
            _ => format.next_user.clone(),
        };
        turn.extend(filler.by_ref().take(options.filler));
        turn.extend_from_slice(&fact.statement);
        told.push(at + turn.len());
        let lag = options.lags[round % options.lags.len()];
        let asked = round.checked_sub(lag).map(|told| &facts[told]);
        let mut start = 0;
        match asked {
            Some(asked) => {
                let value = asked.question.len() - asked.value_ids;
                turn.extend_from_slice(&asked.request);
                turn.extend_from_slice(&format.answer);
                start = turn.len() + value;
                turn.extend_from_slice(&asked.question);
            }
            None => {
                turn.extend_from_slice(&format.answer);
                turn.extend_from_slice(&noted);
            }
        }

        let mut hidden = Vec::new();
        for chunk in turn.chunks(options.chunk) {
            hidden.push(model.append(before, chunk, &mut caches)?);
            before = chunk.last().copied();
            caches[0].reserve(options.chunk)?;
        }
        if asked.is_some() {
            let hidden = Tensor::cat(&hidden, 0)?;
            let (right, loss) = value_after(model, &hidden, start, &turn[start..])?;
            rounds.push(Round {
                round,
                lag,
                distance: at + start - told[round - lag],
                right,
                loss,
            });
        }
        at += turn.len();
        progress(1);
    }
    Ok(rounds)
}

/// Checks that no fact is asked for twice, because an answer must not be found in an earlier answer: in a cycle of `n` rounds,
/// round `c` asks for a fact of round `c - lag`, and these must differ modulo `n`.
fn check_lags(lags: &[usize]) -> Result<(), EvalError> {
    let n = lags.len();
    let mut told = (0..n).map(|c| (c + n * lags[c] - lags[c]) % n);
    let mut seen = vec![false; n];
    if n > 0 && told.all(|round| !std::mem::replace(&mut seen[round], true)) {
        return Ok(());
    }
    Err(parameter(
        "lags",
        format!("{lags:?}"),
        "at least one, and no two rounds that ask for the same fact",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_that_would_ask_twice_are_refused() {
        for good in [&[0][..], &[3], &[0, 2], &[1, 0, 2, 5, 17]] {
            assert!(check_lags(good).is_ok(), "{good:?}");
        }
        for bad in [&[][..], &[0, 1], &[0, 1, 2, 4, 8, 16, 32]] {
            assert!(check_lags(bad).is_err(), "{bad:?}");
        }
    }
}
