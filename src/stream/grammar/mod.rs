//! The layout of the stream as one conversation in the checkpoint's chat format. docs/stream.md is the description.
//!
//! - this file: what is written when
//! - `formats`: the texts of each family, in one table
//! - `chat`: which of them are a checkpoint's, and what its own template says differently
//! - `thought`: what a model writes in front of an answer and does not say
//! - `video`: frames that stand in one video

mod chat;
mod formats;
mod thought;
mod video;

pub use chat::Chat;
pub use formats::ChatFormat;
use formats::TimeLabel;
pub use thought::{Parted, Thinking, Thought};
pub use video::Shot;
use video::Videos;

use crate::cache::Video;
use crate::model::tokenizer::ChatTokenizer;

/// Where the conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// No user turn is open: at the start, or after an answer.
    Between,
    /// A user turn is open and holds pictures, so many frames of cameras among them.
    Frames(u64),
    /// An instruction has been put and the answer is due.
    Assistant,
}

/// Writes the stream's text; it never looks at tokens.
#[derive(Debug, Clone)]
pub struct Grammar {
    chat: Chat,
    turn: Turn,
    /// What is written with what comes next: the end of the last answer or of a video, and blanks, which may be part of the next token.
    owed: String,
    videos: Videos,
}

/// A frame as it stands in the stream.
#[derive(Debug)]
pub struct Written {
    pub text: String,
    /// The video that it is a part of, if it is of one.
    pub video: Option<Video>,
}

impl From<String> for Written {
    /// What is no part of a video.
    fn from(text: String) -> Self {
        Self { text, video: None }
    }
}

impl Grammar {
    pub fn new(chat: Chat) -> Self {
        Self {
            videos: Videos::new(chat.video_axis),
            chat,
            turn: Turn::Between,
            owed: String::new(),
        }
    }

    /// At the start of a conversation in the same format.
    pub fn fresh(&self) -> Self {
        Self::new(self.chat.clone())
    }

    pub fn format(&self) -> &'static ChatFormat {
        self.chat.format
    }

    /// What an answer to the last instruction may begin with.
    pub fn thought(&self) -> Thought {
        Thought::new(self.chat.thinks())
    }

    /// Whether something of a thought is written in front of every answer.
    pub fn writes_thought(&self) -> bool {
        !self.chat.thought.is_empty()
    }

    /// What ends the thought that the last instruction opened, before anything is thought; empty: it opened none.
    pub fn no_thought(&self) -> &'static str {
        match self.chat.thinks() {
            true => Thought::CLOSED,
            false => "",
        }
    }

    /// Ends a thought, and begins the answer behind it.
    pub fn end_of_thought(&self) -> &'static str {
        Thought::CLOSED
    }

    /// What an answer begins with in front of its first word.
    pub fn lead(&self) -> &'static str {
        let format = self.format();
        let lead = format.template_answer.strip_prefix(format.answer);
        lead.unwrap_or_default()
    }

    /// The protected beginning of the stream: the system prompt or, if that is empty, what the checkpoint's template puts there.
    pub fn prefix(&mut self, system_prompt: &str, tokenizer: &ChatTokenizer) -> String {
        let ChatFormat {
            open,
            system: (before, after),
            ..
        } = self.format();
        let mut prefix = match system_prompt {
            "" => format!("{open}{}", self.chat.no_system),
            prompt => format!("{open}{before}{}{after}", tokenizer.guard(prompt)),
        };
        self.owed = prefix.split_off(prefix.trim_end_matches(' ').len());
        prefix
    }

    /// A frame: `image_text` stands for its image.
    pub fn frame(&mut self, image_text: &str, shot: &Shot) -> Written {
        let part = self.videos.part(shot);
        let number = match self.turn {
            Turn::Frames(before) => before + 1,
            Turn::Between | Turn::Assistant => 1,
        };
        let text = match part {
            // The end of the video is owed still.
            Some(part) if !part.begins => image_text.to_string(),
            _ => {
                let (time, camera) = (self.format().time, shot.camera.1);
                let label = frame_label(time, number, shot.elapsed_ns, camera);
                self.picture(image_text, &label, part.is_some())
            }
        };
        self.turn = Turn::Frames(number);
        Written {
            text,
            video: part.map(|part| part.video),
        }
    }

    /// The time of two frames that are taken together, nanoseconds: of a video, whose parts are as far apart as their first frames, that of
    /// the first; else, as labels have it, the mean.
    pub fn time_of_pair(&self, from_ns: i64, to_ns: i64) -> i64 {
        match self.videos.any() {
            true => from_ns,
            false => from_ns + (to_ns - from_ns) / 2,
        }
    }

    /// What stands around a video of one frame; empty: frames are no videos.
    pub fn around_video(&self) -> String {
        let format = self.format();
        match self.videos.any() {
            true => format!("{}{}", format.before_frame, format.after_frame),
            false => String::new(),
        }
    }

    /// A picture that is no frame of a camera.
    pub fn sent_picture(&mut self, image_text: &str) -> String {
        let label = match self.format().time {
            TimeLabel::MinutesSeconds(_) => "\nA picture that was sent:",
            TimeLabel::Seconds(_) | TimeLabel::Number(_) | TimeLabel::None => {
                "A picture that was sent: "
            }
        };
        self.videos.end();
        self.picture(image_text, label, false)
    }

    /// `goes_on`: more of it may follow.
    fn picture(&mut self, image_text: &str, label: &str, goes_on: bool) -> String {
        let mut text = std::mem::take(&mut self.owed);
        let format = self.format();
        if !matches!(self.turn, Turn::Frames(_)) {
            text.push_str(format.user);
            self.turn = Turn::Frames(0);
        }
        text.push_str(label);
        text.push_str(format.before_frame);
        text.push_str(image_text);
        match goes_on || format.after_frame.trim().is_empty() {
            true => self.owed.push_str(format.after_frame),
            false => text.push_str(format.after_frame),
        }
        text
    }

    /// An instruction, which closes the user turn and opens the answer.
    pub fn instruction(&mut self, text: &str, tokenizer: &ChatTokenizer) -> String {
        let thought = self.chat.thought.clone();
        self.asked(text, &thought, tokenizer)
    }

    /// An instruction whose answer is known, as the chat template writes it when others have followed: without the thought.
    pub fn answered_instruction(&mut self, text: &str, tokenizer: &ChatTokenizer) -> String {
        self.asked(text, self.format().past_thought, tokenizer)
    }

    /// An instruction with what stands in front of its answer.
    fn asked(&mut self, text: &str, in_front: &str, tokenizer: &ChatTokenizer) -> String {
        let format = self.format();
        self.videos.end();
        let mut opening = std::mem::take(&mut self.owed);
        match self.turn {
            Turn::Frames(_) => opening.push_str(format.text_after_frames),
            Turn::Between | Turn::Assistant => {
                opening.push_str(format.user);
                opening.push_str(format.text_alone);
            }
        }
        self.turn = Turn::Assistant;
        let text = tokenizer.guard(text);
        format!("{opening}{text}{}{in_front}", format.answer)
    }

    /// The answer is over: all its text tokens have been fed to the model, its end token has not.
    pub fn answered(&mut self) {
        self.turn = Turn::Between;
        self.owed = format!("{}{}", self.format().end, self.format().after_answer);
    }
}

/// When a frame was taken, or which of its turn it is, as far as the format says it, and by which of several cameras.
fn frame_label(label: TimeLabel, number: u64, elapsed_ns: i64, camera: Option<&str>) -> String {
    let beside = camera.map_or_else(String::new, |camera| format!("{camera} camera: "));
    let within = camera.map_or_else(String::new, |camera| format!(", {camera} camera"));
    match label {
        TimeLabel::None => beside,
        TimeLabel::MinutesSeconds(text) => {
            text.replace("{}", &(minutes_seconds(elapsed_ns) + &within))
        }
        TimeLabel::Number(text) => text.replace("{}", &(number.to_string() + &within)),
        TimeLabel::Seconds(text) => {
            let seconds = elapsed_ns.max(0) as f64 * 1e-9;
            text.replace("{}", &format!("{seconds:.1}")) + &beside
        }
    }
}

/// `MM:SS` in whole seconds, wrapping after 59:59 because no checkpoint has seen a larger label.
fn minutes_seconds(elapsed_ns: i64) -> String {
    let seconds = elapsed_ns.max(0) / 1_000_000_000;
    format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_label_counts_whole_seconds_and_wraps_after_an_hour() {
        let at = |seconds: f64| minutes_seconds((seconds * 1e9) as i64);
        assert_eq!(at(0.0), "00:00");
        assert_eq!(at(61.999), "01:01");
        assert_eq!(at(3599.0), "59:59");
        assert_eq!(at(3600.0), "00:00");
        assert_eq!(at(-5.0), "00:00");
    }

    #[test]
    fn the_camera_s_label_stands_beside_the_time_and_nowhere_where_there_is_one_camera() {
        let label = |time, camera| frame_label(time, 7, 61_500_000_000, camera);
        let smolvlm = TimeLabel::MinutesSeconds("\nFrame from {}:");
        assert_eq!(label(smolvlm, None), "\nFrame from 01:01:");
        assert_eq!(
            label(smolvlm, Some("rear")),
            "\nFrame from 01:01, rear camera:"
        );
        let qwen = TimeLabel::Seconds("<{} seconds>");
        assert_eq!(label(qwen, None), "<61.5 seconds>");
        assert_eq!(label(qwen, Some("rear")), "<61.5 seconds>rear camera: ");
        let internvl = TimeLabel::Number("Frame{}: ");
        assert_eq!(label(internvl, None), "Frame7: ");
        assert_eq!(label(internvl, Some("rear")), "Frame7, rear camera: ");
        assert_eq!(label(TimeLabel::None, None), "");
        assert_eq!(label(TimeLabel::None, Some("rear")), "rear camera: ");
    }
}
