//! The checkpoint's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.
//!
//! - this file: where templates are found, and how they are rendered
//! - `python`: what templates expect of the Python that they were written for

mod python;

use std::path::PathBuf;

use minijinja::value::Value;
use minijinja::{context, Environment};
use serde::Serialize;
use serde_json::Value as Json;

use super::checkpoint::Checkpoint;
use super::ModelError;

/// One piece of a message.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Content {
    Image,
    Text { text: String },
}

/// One turn of a conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: Vec<Content>,
}

/// One turn of a conversation of text alone, whose templates take the text as it is and not in pieces.
#[derive(Debug, Clone, Serialize)]
pub struct TextMessage<'a> {
    pub role: &'static str,
    pub content: &'a str,
}

const JINJA: &str = "chat_template.jinja";
const TOKENIZER: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";

/// Tokens that templates may name.
const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Steps that a template may take: thousands of turns, but no endless loop.
const FUEL: u64 = 50_000_000;

/// A parsed chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    file: PathBuf,
}

impl ChatTemplate {
    /// Reads a template that must be there, as [`Self::find`] does.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        Self::find(checkpoint)?.ok_or_else(|| ModelError::Directory {
            dir: checkpoint.dir().to_path_buf(),
            what: format!(
                "no chat template: neither {JINJA} nor a field chat_template in chat_template.json, \
                 processor_config.json or {TOKENIZER}"
            ),
        })
    }

    /// Reads `chat_template.jinja`, or the field `chat_template` of the files that may hold it, and the tokens that
    /// `tokenizer_config.json` or `special_tokens_map.json` names.
    pub fn find(checkpoint: &Checkpoint) -> Result<Option<Self>, ModelError> {
        let mut found = None;
        if checkpoint.has(JINJA) {
            found = Some((JINJA, checkpoint.text(JINJA)?));
        }
        for name in ["chat_template.json", "processor_config.json", TOKENIZER] {
            if found.is_none() && checkpoint.has(name) {
                let json: Json = checkpoint.json(name)?;
                found = default_template(&json["chat_template"]).map(|source| (name, source));
            }
        }
        let Some((name, source)) = found else {
            return Ok(None);
        };
        let mut template = Self::parse(source, checkpoint.path(name))?;
        for name in [SPECIAL, TOKENIZER] {
            if checkpoint.has(name) {
                template.set_special_tokens(&checkpoint.json(name)?);
            }
        }
        Ok(Some(template))
    }

    /// From the template's source; `file` is what errors name.
    fn parse(source: String, file: PathBuf) -> Result<Self, ModelError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_fuel(Some(FUEL));
        python::add_to(&mut env);
        env.add_template_owned("chat", python::without_generation_tags(&source))
            .map_err(|e| ModelError::File {
                file: file.clone(),
                what: e.to_string(),
            })?;
        Ok(Self { env, file })
    }

    /// The tokens of a file that names each by its text or by an object with its `content`.
    fn set_special_tokens(&mut self, json: &Json) {
        for name in SPECIAL_TOKENS {
            let token = &json[name];
            if let Some(token) = token.as_str().or_else(|| token["content"].as_str()) {
                self.env.add_global(name, token.to_string());
            }
        }
    }

    /// The text of a conversation (of [`Message`] or [`TextMessage`], as the template wants it), with the opening of the
    /// assistant's turn at its end.
    pub fn render<M: Serialize>(&self, messages: &[M]) -> Result<String, ModelError> {
        self.render_with(messages, context! { add_generation_prompt => true })
    }

    /// The text of a conversation; `variables` are what the template knows beside it (`add_generation_prompt`,
    /// `enable_thinking`).
    pub fn render_with<M: Serialize, V: Serialize>(
        &self,
        messages: &[M],
        variables: V,
    ) -> Result<String, ModelError> {
        let variables = Value::from_serialize(variables);
        let render = || {
            self.env
                .get_template("chat")?
                .render(context! { messages => messages, ..variables })
        };
        render().map_err(|e| ModelError::File {
            file: self.file.clone(),
            what: e.to_string(),
        })
    }
}

/// A template's source: a text, or of several with names the one called default.
fn default_template(field: &Json) -> Option<String> {
    let default = |several: &Vec<Json>| {
        let default = several.iter().find(|one| one["name"] == "default")?;
        default["template"].as_str().map(str::to_string)
    };
    match field {
        Json::String(source) => Some(source.clone()),
        Json::Array(several) => default(several),
        _ => None,
    }
}
