//! The layout of the stream as one conversation in the checkpoint's chat format. docs/stream.md is the description.

use crate::model::smolvlm::control;
use crate::model::tokenizer::ChatTokenizer;

/// Where the conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// No user turn is open: at the start, or after an answer.
    Between,
    /// A user turn is open and holds frames.
    Frames,
    /// An instruction has been put and the answer is due.
    Assistant,
}

/// Writes the stream's text; it never looks at tokens.
#[derive(Debug, Clone)]
pub struct Grammar {
    turn: Turn,
    /// What the last answer still owes the conversation; goes in front of the next turn.
    owed: String,
}

impl Default for Grammar {
    fn default() -> Self {
        Self {
            turn: Turn::Between,
            owed: String::new(),
        }
    }
}

impl Grammar {
    /// The protected beginning of the stream.
    pub fn prefix(system_prompt: &str, tokenizer: &ChatTokenizer) -> String {
        let mut text = control::BOS.to_string();
        if !system_prompt.is_empty() {
            text.push_str(&format!(
                "System: {}{}\n",
                tokenizer.guard(system_prompt),
                control::END_OF_UTTERANCE
            ));
        }
        text
    }

    /// A frame: `image_text` stands for its image, `elapsed_ns` is its time since the epoch began.
    pub fn frame(&mut self, image_text: &str, elapsed_ns: i64) -> String {
        let mut text = std::mem::take(&mut self.owed);
        if self.turn != Turn::Frames {
            text.push_str("User:");
        }
        self.turn = Turn::Frames;
        text.push_str(&format!(
            "\nFrame from {}:{image_text}",
            time_label(elapsed_ns)
        ));
        text
    }

    /// An instruction, which closes the user turn and opens the answer.
    pub fn instruction(&mut self, text: &str, tokenizer: &ChatTokenizer) -> String {
        let opening = match self.turn {
            Turn::Frames => "\n\n".to_string(),
            Turn::Between | Turn::Assistant => format!("{}User: ", self.owed),
        };
        self.owed.clear();
        self.turn = Turn::Assistant;
        format!(
            "{opening}{}{}\nAssistant:",
            tokenizer.guard(text),
            control::END_OF_UTTERANCE
        )
    }

    /// The answer is over: all its text tokens have been fed to the model, its end token has not.
    pub fn answered(&mut self) {
        self.turn = Turn::Between;
        self.owed = format!("{}\n", control::END_OF_UTTERANCE);
    }
}

/// `MM:SS` in whole seconds, wrapping after 59:59 because no checkpoint has seen a larger label.
fn time_label(elapsed_ns: i64) -> String {
    let seconds = elapsed_ns.max(0) / 1_000_000_000;
    format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::time_label;

    #[test]
    fn the_time_label_counts_whole_seconds_and_wraps_after_an_hour() {
        let at = |seconds: f64| time_label((seconds * 1e9) as i64);
        assert_eq!(at(0.0), "00:00");
        assert_eq!(at(61.999), "01:01");
        assert_eq!(at(3599.0), "59:59");
        assert_eq!(at(3600.0), "00:00");
        assert_eq!(at(-5.0), "00:00");
    }
}
