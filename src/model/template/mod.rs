//! The checkpoint's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.
//!
//! - this file: where templates are found, and what they are rendered with
//! - `jinja`: the language, with every step and byte metered

mod jinja;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{json, Value as Json};

use super::checkpoint::Checkpoint;
use super::ModelError;
use jinja::Data;

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

/// Tokens that templates may name, beside those under [`EXTRA_TOKENS`].
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// An object with a model's own tokens, as `image_token`.
const EXTRA_TOKENS: &str = "extra_special_tokens";

/// What a template knows in every conversation, here as nothing: transformers defines them where none are given.
const NOT_GIVEN: [&str; 2] = ["tools", "documents"];

/// A parsed chat template.
pub struct ChatTemplate {
    template: jinja::Template,
    /// What the template knows in every conversation.
    known: Vec<(String, Data)>,
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
    /// `tokenizer_config.json` or `special_tokens_map.json` names. A template with nothing in it counts as none.
    pub fn find(checkpoint: &Checkpoint) -> Result<Option<Self>, ModelError> {
        let mut found = None;
        if checkpoint.has(JINJA) {
            let source = checkpoint.text(JINJA)?;
            found = with_content(source).map(|source| (JINJA, source));
        }
        for name in ["chat_template.json", "processor_config.json", TOKENIZER] {
            if found.is_none() && checkpoint.has(name) {
                let json: Json = checkpoint.json(name)?;
                let source = default_template(&json["chat_template"]).and_then(with_content);
                found = source.map(|source| (name, source));
            }
        }
        let Some((name, source)) = found else {
            return Ok(None);
        };
        let mut template = Self::parse(&source, checkpoint.path(name))?;
        for name in [SPECIAL, TOKENIZER] {
            if checkpoint.has(name) {
                template.set_special_tokens(&checkpoint.json(name)?);
            }
        }
        Ok(Some(template))
    }

    /// From the template's source; `file` is what errors name.
    pub fn parse(source: &str, file: PathBuf) -> Result<Self, ModelError> {
        match jinja::Template::parse(source) {
            Ok(template) => Ok(Self {
                template,
                known: NOT_GIVEN
                    .map(|name| (name.to_string(), Data::Null))
                    .to_vec(),
                file,
            }),
            Err(error) => Err(ModelError::File {
                file,
                what: format!("chat template, {error}"),
            }),
        }
    }

    /// The tokens of a file that names each by its text or by an object with its `content`.
    fn set_special_tokens(&mut self, json: &Json) {
        let extra = json[EXTRA_TOKENS].as_object().into_iter().flatten();
        let extra = extra.map(|(name, token)| (name.as_str(), token));
        let named = SPECIAL_TOKENS.map(|name| (name, &json[name]));
        for (name, token) in named.into_iter().chain(extra) {
            if let Some(token) = token.as_str().or_else(|| token["content"].as_str()) {
                let token = Data::Text(token.to_string());
                self.known.push((name.to_string(), token));
            }
        }
    }

    /// The text of a conversation (of [`Message`] or [`TextMessage`], as the template wants it), with the opening of the
    /// assistant's turn at its end.
    pub fn render<M: Serialize>(&self, messages: &[M]) -> Result<String, ModelError> {
        self.render_with(messages, json!({ "add_generation_prompt": true }))
    }

    /// The text of a conversation; `variables` are what the template knows beside it (`add_generation_prompt`,
    /// `enable_thinking`).
    pub fn render_with<M: Serialize, V: Serialize>(
        &self,
        messages: &[M],
        variables: V,
    ) -> Result<String, ModelError> {
        let fail = |what: String| ModelError::File {
            file: self.file.clone(),
            what: format!("chat template, {what}"),
        };
        let mut known = self.known.clone();
        if let Data::Object(variables) = data_of(&variables).map_err(fail)? {
            known.extend(variables);
        }
        known.push(("messages".to_string(), data_of(&messages).map_err(fail)?));
        self.template
            .render(&known)
            .map_err(|e| fail(e.to_string()))
    }

    /// Renders a conversation of every role once, of pieces if the model takes images, without its system turn where templates refuse
    /// one: what [`Self::parse`] cannot see of a template shows here and not at the first question.
    pub fn try_out(&self, takes_images: bool) -> Result<(), ModelError> {
        const TURNS: [(&str, &str); 4] = [
            ("system", "Be brief."),
            ("user", "What is it?"),
            ("assistant", "A cube."),
            ("user", "Of what colour?"),
        ];
        let render = |turns: &[(&'static str, &'static str)]| match takes_images {
            true => {
                let pieces = |&(role, text): &(&'static str, &str)| {
                    let text = Content::Text {
                        text: text.to_string(),
                    };
                    let image = (role == "user").then_some(Content::Image);
                    let content = image.into_iter().chain([text]).collect();
                    Message { role, content }
                };
                self.render(&turns.iter().map(pieces).collect::<Vec<_>>())
            }
            false => {
                let plain =
                    |&(role, content): &(&'static str, &'static str)| TextMessage { role, content };
                self.render(&turns.iter().map(plain).collect::<Vec<_>>())
            }
        };
        match render(&TURNS) {
            Ok(_) => Ok(()),
            Err(_) => render(&TURNS[1..]).map(|_| ()),
        }
    }
}

fn data_of(value: &impl Serialize) -> Result<Data, String> {
    Data::of(value).map_err(|error| error.to_string())
}

/// A template's source, unless there is nothing in it; editors put a byte order mark in front of some.
fn with_content(source: String) -> Option<String> {
    let source = match source.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_string(),
        None => source,
    };
    (!source.trim().is_empty()).then_some(source)
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
