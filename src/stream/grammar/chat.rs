//! The chat format of one checkpoint, seen from its own chat template.

use std::sync::Arc;

use super::formats::ChatFormat;
use super::thought::{Thinking, Thought};
use crate::model::family::VideoAxis;
use crate::model::mllm::Mllm;
use crate::model::template::{Content, Message};
use crate::model::ModelError;

/// The row of the table that writes conversations as the checkpoint's template does, and what the template says of its own.
#[derive(Debug, Clone)]
pub struct Chat {
    pub format: &'static ChatFormat,
    /// What stands in the place of the system turn when there is no system prompt: the checkpoint's own default, if it has one.
    pub no_system: Arc<str>,
    /// What is written in front of every answer: it opens a thought, or stands for one without words; empty if the template writes neither.
    pub thought: Arc<str>,
    /// How frames that follow one another are one video, if they are.
    pub video_axis: Option<VideoAxis>,
}

/// What a template writes around a user's first text.
struct Around<'t> {
    before: &'t str,
    behind: &'t str,
}

impl Chat {
    /// The format of a model, as [`Self::find`] has it, with a warning if its template is not known or opens thoughts.
    pub fn of(model: &Mllm) -> Result<Self, ModelError> {
        Self::of_thinking(model, Thinking::Auto)
    }

    /// The same for a model that is to think, or not.
    pub fn of_thinking(model: &Mllm, thinking: Thinking) -> Result<Self, ModelError> {
        let (chat, known) = Self::find(model)?;
        let chat = chat.thinking(thinking);
        for remark in chat.remarks(model, known) {
            tracing::warn!("{remark}");
        }
        Ok(chat)
    }

    /// Of the rows of the model's family the first that writes a conversation as its template does; of several the first that puts
    /// images as it does. If none does, the family's first, and false.
    pub fn find(model: &Mllm) -> Result<(Self, bool), ModelError> {
        let family = model.family.name;
        let rows = ChatFormat::of_family(family);
        let first = rows
            .clone()
            .next()
            .ok_or_else(|| ModelError::Inputs(format!("the family {family} has no chat format")))?;
        let template = &model.template;
        let asked = template.render(&[turn(1)])?;
        // A template may refuse system turns.
        let (with_system, whole) = match template.render(&conversation()) {
            Ok(whole) => (true, whole),
            Err(_) => (false, template.render(&conversation()[1..])?),
        };
        let images = template.render(&[images_turn()])?;
        let axis = model.video_axis;
        let chats = rows.map(|format| Self::with(format, &asked, axis));
        let alike = chats.filter(|chat| chat.conversation_text(with_system) == whole);
        let image = model.placeholder();
        let found = alike
            .clone()
            .find(|chat| chat.images_text(image) == images)
            .or_else(|| alike.clone().next());
        Ok(match found {
            Some(chat) => (chat, true),
            None => (Self::with(first, &asked, axis), false),
        })
    }

    /// The same for a model that is to think, or not. One that is not to think and whose template opens a thought gets what the template writes
    /// in front of answers that were given without one, or else a thought without words.
    pub fn thinking(self, thinking: Thinking) -> Self {
        let thought = match thinking {
            Thinking::Always if self.thought.is_empty() => Thought::OPEN.into(),
            Thinking::Always if !self.thinks() => format!("{}\n", Thought::OPEN).into(),
            Thinking::Never if self.thinks() => match self.format.past_thought {
                "" => format!("{}{}", self.thought, Thought::CLOSED).into(),
                past => past.into(),
            },
            _ => self.thought,
        };
        Self { thought, ..self }
    }

    /// What a user should know of the checkpoint's template; `known`: a row of the table writes as it does.
    pub fn remarks(&self, model: &Mllm, known: bool) -> Vec<String> {
        let mut remarks = Vec::new();
        if !known {
            remarks.push(format!(
                "the checkpoint's chat template is none that is known of {}: the stream is written as {}",
                model.family.name, self.format.name
            ));
        }
        if self.thinks() {
            remarks.push(format!(
                "a thought is opened ({:?}) in front of every answer: it comes apart from the answer, but takes its share of \
                 max_new_tokens (max_thought_tokens limits it, thinking: never leaves it out)",
                self.thought.trim()
            ));
        }
        remarks
    }

    /// Whether every answer begins inside a thought.
    pub fn thinks(&self) -> bool {
        Thought::is_opened_by(&self.thought)
    }

    /// The row with what the template has around a lone text, if the row is in it at all.
    fn with(format: &'static ChatFormat, asked: &str, video_axis: Option<VideoAxis>) -> Self {
        let around = around(format, asked);
        let thought = around.as_ref().map_or("", |around| around.behind);
        Self {
            format,
            video_axis,
            no_system: around
                .map_or(format.no_system, |around| around.before)
                .into(),
            thought: match Thought::is_opened_by(thought) || Thought::is_skipped_by(thought) {
                true => thought.into(),
                false => "".into(),
            },
        }
    }

    /// What the template should make of [`images_turn`], if `image` is the text that stands for an image.
    fn images_text(&self, image: &str) -> String {
        let ChatFormat {
            open,
            user,
            before_frame,
            after_frame,
            text_after_frames,
            answer,
            ..
        } = self.format;
        let (no_system, thought) = (&self.no_system, &self.thought);
        let images = format!("{before_frame}{image}{after_frame}").repeat(2);
        let text = TURNS[1].1;
        format!("{open}{no_system}{user}{images}{text_after_frames}{text}{answer}{thought}")
    }

    /// What the template should make of [`conversation`], with its system turn or without.
    fn conversation_text(&self, with_system: bool) -> String {
        let ChatFormat {
            open,
            system: (before, after),
            user,
            text_alone,
            answer,
            template_answer,
            past_thought,
            template_end,
            after_answer,
            ..
        } = self.format;
        let [system, first, said, second] = TURNS.map(|(_, text)| text);
        let system = match with_system {
            true => format!("{before}{system}{after}"),
            false => self.no_system.to_string(),
        };
        let thought = &self.thought;
        format!(
            "{open}{system}{user}{text_alone}{first}{template_answer}{past_thought}{said}{template_end}{after_answer}{user}\
             {text_alone}{second}{answer}{thought}"
        )
    }
}

/// What stands around the row's text of the first user turn, behind what begins the stream.
fn around<'t>(format: &ChatFormat, asked: &'t str) -> Option<Around<'t>> {
    let ChatFormat {
        open,
        user,
        text_alone,
        answer,
        ..
    } = format;
    let text = TURNS[1].1;
    let asked = asked.strip_prefix(open)?;
    let (before, behind) = asked.split_once(&format!("{user}{text_alone}{text}{answer}"))?;
    Some(Around { before, behind })
}

/// Roles and texts of a conversation.
const TURNS: [(&str, &str); 4] = [
    ("system", "alpha"),
    ("user", "beta"),
    ("assistant", "gamma"),
    ("user", "delta"),
];

fn turn(at: usize) -> Message {
    let (role, text) = TURNS[at];
    let text = text.to_string();
    Message {
        role,
        content: vec![Content::Text { text }],
    }
}

fn conversation() -> Vec<Message> {
    (0..TURNS.len()).map(turn).collect()
}

/// The user's turn with two images in front.
fn images_turn() -> Message {
    let mut turn = turn(1);
    turn.content.splice(..0, [Content::Image, Content::Image]);
    turn
}
