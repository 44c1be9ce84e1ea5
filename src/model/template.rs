//! The checkpoint's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.

use std::path::PathBuf;

use minijinja::value::Value;
use minijinja::{context, Environment, Error, ErrorKind};
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
                 processor_config.json or tokenizer_config.json"
            ),
        })
    }

    /// Reads `chat_template.jinja`, or the field `chat_template` of the files that may hold it.
    pub fn find(checkpoint: &Checkpoint) -> Result<Option<Self>, ModelError> {
        let mut found = None;
        if checkpoint.has(JINJA) {
            found = Some((JINJA, checkpoint.text(JINJA)?));
        }
        for name in [
            "chat_template.json",
            "processor_config.json",
            "tokenizer_config.json",
        ] {
            if found.is_none() && checkpoint.has(name) {
                let json: Json = checkpoint.json(name)?;
                found = json["chat_template"]
                    .as_str()
                    .map(|template| (name, template.to_string()));
            }
        }
        let parse = |(name, source)| Self::parse(source, checkpoint.path(name));
        found.map(parse).transpose()
    }

    /// From the template's source; `file` is what errors name.
    pub fn parse(source: String, file: PathBuf) -> Result<Self, ModelError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_template_owned("chat", source)
            .map_err(|e| ModelError::File {
                file: file.clone(),
                what: e.to_string(),
            })?;
        Ok(Self { env, file })
    }

    /// The text of a conversation (of [`Message`] or [`TextMessage`], as the template wants it), with the opening of the
    /// assistant's turn at its end.
    pub fn render<M: Serialize>(&self, messages: &[M]) -> Result<String, ModelError> {
        let render = || {
            self.env
                .get_template("chat")?
                .render(context! { messages => messages, add_generation_prompt => true })
        };
        render().map_err(|e| ModelError::File {
            file: self.file.clone(),
            what: e.to_string(),
        })
    }
}
