//! What the policies are worth on long text (perplexity, recall, cost, and the age of what they keep) and on long drives.
//!
//! - `model`: the decoder under test with its tokenizer; the only file that knows how checkpoints are loaded
//! - `text`: a long text as ids
//! - `variant`: a policy with its parameters, as a line of text and as a key in the results
//! - `loss`: the loss of given tokens from hidden states
//! - `feed`: streams fed in chunks, in lock-step, with their losses by block
//! - `ppl`: the perplexity of a text under one or more policies, and the reference lines
//! - `ages`: how old the kept tokens are
//! - `endless`: a long stream: loss, time, memory and ages along it
//! - `timing`: a step on one state against the same step on another
//! - `facts`: planted facts and when to ask for them
//! - `recall`: the answers to them
//! - `text_memory`: a text's archive beside its cache, and what is recalled from it
//! - `conversation`: facts and questions in one long chat
//! - `video`: questions about long drives
//! - `speed`: how fast published shapes decode and take frames on this machine
//! - `stats`: intervals of shares, and of the difference of paired shares
//! - `store`: results as JSON lines, by key, so that a rerun goes on where the last one ended
//! - `fingerprint`: short numbers that stand for contents in these keys
pub mod ages;
pub mod conversation;
pub mod endless;
pub mod facts;
pub mod feed;
pub mod fingerprint;
pub mod loss;
pub mod model;
pub mod ppl;
pub mod recall;
pub mod speed;
pub mod stats;
pub mod store;
pub mod text;
pub mod text_memory;
pub mod timing;
pub mod variant;
pub mod video;

use std::path::PathBuf;

use crate::cache::parameter::ParameterError;
use crate::cache::{CacheError, PolicyKind, TensorError};
use crate::model::ModelError;
use crate::stream::bag::BagError;
use crate::stream::script::ScriptError;
use crate::stream::session::PushError;

/// What can go wrong in a measurement.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("{file}: {what}")]
    File { file: PathBuf, what: String },
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        name: &'static str,
        value: String,
        expected: String,
    },
    #[error(transparent)]
    Given(#[from] ParameterError),
    /// Of those that make a difference to a policy.
    #[error("policy {policy}: {error}")]
    PolicyParameter {
        policy: PolicyKind,
        error: ParameterError,
    },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Bag(#[from] BagError),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error(transparent)]
    Frame(#[from] PushError),
    #[error("instruction {id} was not answered: {reason}")]
    Unanswered { id: String, reason: String },
    #[error("tensor operation in the evaluation: {0}")]
    Tensor(TensorError),
}

impl From<candle_core::Error> for EvalError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

/// A parameter that does not fit.
pub(crate) fn parameter(
    name: &'static str,
    value: impl ToString,
    expected: impl ToString,
) -> EvalError {
    EvalError::Parameter {
        name,
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

/// Called with the number of tokens, or frames, done since the last call.
pub type Progress<'a> = &'a dyn Fn(usize);
