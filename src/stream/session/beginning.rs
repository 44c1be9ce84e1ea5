//! How a stream begins: the protected prefix and the standing instruction, and whether a system prompt leaves room for the rest.

use std::sync::Arc;

use super::{Chunk, Session, SessionConfig};
use crate::cache::{CacheConfig, CacheError, Plan};
use crate::model::mllm::Mllm;
use crate::model::tokenizer::ChatTokenizer;
use crate::model::vision::View;
use crate::model::ModelError;
use crate::stream::grammar::{Chat, Grammar, Shot};
use crate::stream::session::state::StreamState;

/// A camera's picture, where the number of a frame's tokens depends on it and none has come yet.
const USUAL_PICTURE: (usize, usize) = (640, 480);

/// A question of the usual length.
const USUAL_QUESTION: &str = "What is in view?";

/// What a system prompt has to fit into. It needs neither the model nor the engine's thread.
#[derive(Debug, Clone)]
pub struct PromptCheck {
    tokenizer: Arc<ChatTokenizer>,
    chat: Chat,
    cache: CacheConfig,
    /// The longest input the model was made for, tokens.
    max_positions: usize,
    /// Tokens of a frame.
    frame: usize,
    /// Tokens of a short question, with the beginning of its answer.
    question: usize,
    standing_instruction: String,
}

/// The beginning of a stream under some system prompt.
#[derive(Debug)]
pub struct Beginning {
    /// As the prefix leaves it.
    pub grammar: Grammar,
    /// Ids of the protected prefix.
    pub prefix: Vec<u32>,
    /// The last id behind the prefix, if it is text that the next text goes on from.
    last_id: Option<u32>,
    /// Ids of the standing instruction; empty: there is none.
    standing: Vec<u32>,
}

impl PromptCheck {
    pub fn new(model: &Mllm, chat: Chat, config: &SessionConfig) -> Result<Self, ModelError> {
        let layout = model.vision.layout(USUAL_PICTURE, View::Frame);
        let mut grammar = Grammar::new(chat.clone());
        let cameras = 0..config.cameras.count();
        let labels = cameras.filter_map(|camera| config.cameras.label(camera));
        let longest = labels.max_by_key(|label| label.len());
        let shot = Shot {
            grid: layout.grid,
            elapsed_ns: 0,
            camera: (0, longest),
        };
        let frame = grammar.frame(&model.vision.markup(&layout), &shot).text;
        let question = grammar.instruction(USUAL_QUESTION, &model.tokenizer);
        Ok(Self {
            frame: model.tokenizer.encode(&frame)?.len(),
            question: model.tokenizer.encode(&question)?.len(),
            tokenizer: model.tokenizer.clone(),
            chat,
            cache: config.cache.clone(),
            max_positions: model.shape.max_positions,
            standing_instruction: config.standing_instruction.clone(),
        })
    }

    /// Fails where the budget has no room behind `system_prompt` for a frame and what else must fit, with the numbers.
    pub fn check(&self, system_prompt: &str) -> Result<(), ModelError> {
        self.beginning(system_prompt).map(|_| ())
    }

    /// What a stream with `system_prompt` begins with, if it fits.
    pub(super) fn beginning(&self, system_prompt: &str) -> Result<Beginning, ModelError> {
        let mut grammar = Grammar::new(self.chat.clone());
        let text = grammar.prefix(system_prompt, &self.tokenizer);
        let prefix = self.tokenizer.encode_prompt(&text)?;
        let longest = self.plan(prefix.len())?.recent;
        let opening = self.tokenizer.is_opening(&prefix);
        let last_id = prefix.last().copied().filter(|_| !opening);
        let standing = self.standing(grammar.clone(), last_id)?;
        if standing.len() > longest {
            return Err(CacheError::Parameter {
                name: "standing_instruction",
                value: format!("{} tokens long", standing.len()),
                expected: format!("at most {longest} tokens (what a compaction keeps as recent)"),
            }
            .into());
        }
        Ok(Beginning {
            grammar,
            prefix,
            last_id,
            standing,
        })
    }

    /// The cache's plan behind a prefix of so many tokens; fails where the budget has no room there for a frame and a question.
    fn plan(&self, prefix: usize) -> Result<Plan, CacheError> {
        let (frame, question) = (self.frame, self.question);
        let (budget, longest) = (self.cache.budget, self.max_positions);
        let evicts = self.cache.policy.build(&self.cache)?.evicts();
        let fits = |plan: &Plan| {
            (!evicts || plan.longest_turn() >= question) && plan.budget > prefix + frame + question
        };
        let plan = match self.cache.plan(prefix, longest) {
            Ok(plan) if fits(&plan) => return Ok(plan),
            // What is wrong with another parameter is no matter of the budget.
            Err(error) if !matches!(error, CacheError::Parameter { name: "budget", .. }) => {
                return Err(error)
            }
            plan => plan,
        };
        let enough = |budget: usize| {
            let mut cache = self.cache.clone();
            cache.budget = budget;
            cache.plan(prefix, longest).is_ok_and(|plan| fits(&plan))
        };
        let needed = format!(
            "room for a prefix of {prefix} and one frame of {frame} tokens, and for a question of {question} in what a compaction always keeps"
        );
        let expected = match (budget..=longest).find(|&budget| enough(budget)) {
            Some(least) => format!("at least {least} ({needed})"),
            None if prefix + frame + question >= longest => {
                format!("{needed}, which the model's longest input of {longest} tokens has not")
            }
            // It is not for the budget.
            None => {
                plan?;
                return Err(CacheError::Parameter {
                    name: "slack",
                    value: self.cache.slack.to_string(),
                    expected: format!(
                        "at least {question}, the tokens of a short question, which has to fit in what a compaction frees or always keeps"
                    ),
                });
            }
        };
        Err(CacheError::Parameter {
            name: "budget",
            value: budget.to_string(),
            expected,
        })
    }

    /// Ids of the standing instruction behind the prefix.
    fn standing(&self, mut grammar: Grammar, last_id: Option<u32>) -> Result<Vec<u32>, ModelError> {
        let standing = self.standing_instruction.trim();
        if standing.is_empty() {
            return Ok(Vec::new());
        }
        let text = grammar.instruction(standing, &self.tokenizer);
        self.tokenizer.encode_after(last_id, &text)
    }
}

impl Session {
    /// Forgets everything but the prefix and starts a new epoch.
    pub fn reset(&mut self) -> Result<(), ModelError> {
        self.reset_with(self.config.system_prompt.clone())
    }

    /// [`Self::reset`] to another system prompt. All or nothing: if it fails, the stream goes on as it was.
    pub fn reset_with(&mut self, system_prompt: String) -> Result<(), ModelError> {
        let beginning = Arc::new(self.check.beginning(&system_prompt)?);
        self.attempt(|session| session.begin(beginning))?;
        self.config.system_prompt = system_prompt;
        Ok(())
    }

    /// Feeds the protected beginning of a new stream, and learns what the standing instruction looks like.
    pub(super) fn begin(&mut self, beginning: Arc<Beginning>) -> Result<(), ModelError> {
        self.state.stream = StreamState::new(beginning.clone(), &self.config);
        self.feed_prefix(&beginning)?;
        if beginning.standing.is_empty() {
            return Ok(());
        }
        let keys = self.passing(|session| {
            session.append(&beginning.standing, Chunk::Instruction, 1)?;
            Ok::<_, ModelError>(session.state.cache.newest_keys(beginning.standing.len())?)
        })?;
        self.state.cache.look_for(keys);
        Ok(())
    }

    /// Empties the cache and feeds the prefix, which is empty where neither the format nor the tokenizer has one.
    pub(super) fn feed_prefix(&mut self, beginning: &Beginning) -> Result<(), ModelError> {
        self.state.cache.reset(beginning.prefix.len())?;
        if !beginning.prefix.is_empty() {
            self.append(&beginning.prefix, Chunk::Prefix, 1)?;
        }
        self.state.stream.last_id = beginning.last_id;
        Ok(())
    }
}
