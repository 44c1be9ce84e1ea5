//! Many rounds in one chat: each tells a fact, between lines of a text, and asks for one that was told some rounds before.
//!
//! Nothing is put back here: questions and answers stay in the stream, as they do when a robot is talked to.

use serde::{Deserialize, Serialize};

use super::facts::Fact;
use super::loss::{are_first_choices, token_losses};
use super::model::EvalModel;
use super::{parameter, EvalError, Progress};
use crate::cache::CacheConfig;

/// How a conversation goes.
#[derive(Debug, Clone)]
pub struct ConversationOptions {
    /// Text of the system turn.
    pub system: String,
    /// Tokens of the text that each round begins with.
    pub filler: usize,
    /// How many rounds ago the asked fact was told, by turns; 0: in this round.
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
    if options.lags.is_empty() || options.chunk == 0 {
        return Err(parameter("lags", "none", "at least one"));
    }
    let format = model.chat_format()?;
    let newline = model.encode("\n")?;
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
        let lag = options.lags[round % options.lags.len()].min(round);
        let asked = &facts[round - lag];
        let mut turn = match round {
            0 => format.first_user.clone(),
            _ => format.next_user.clone(),
        };
        turn.extend(filler.by_ref().take(options.filler));
        turn.extend_from_slice(&newline);
        turn.extend_from_slice(&fact.statement);
        told.push(at + turn.len());
        let value = asked.question.len() - asked.value_ids;
        turn.extend_from_slice(&newline);
        turn.extend_from_slice(&asked.question[..value]);
        turn.extend_from_slice(&format.answer);
        let start = turn.len();
        turn.extend_from_slice(&asked.question[value..]);

        let mut hidden = Vec::new();
        for chunk in turn.chunks(options.chunk) {
            hidden.push(model.append(before, chunk, &mut caches)?);
            before = chunk.last().copied();
            caches[0].reserve(options.chunk)?;
        }
        let hidden = candle_core::Tensor::cat(&hidden, 0)?;
        let before = hidden.narrow(0, start - 1, asked.value_ids)?;
        let right = are_first_choices(&model.decoder, &before, &turn[start..])?;
        let losses = token_losses(&model.decoder, &before, &turn[start..])?;
        rounds.push(Round {
            round,
            lag,
            distance: at + start - told[round - lag],
            right: right.into_iter().all(|right| right),
            loss: losses.iter().sum::<f32>() / losses.len() as f32,
        });
        at += turn.len();
        progress(1);
    }
    Ok(rounds)
}
