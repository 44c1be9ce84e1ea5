//! Thoughts that a model writes in front of an answer.

use crate::cache::parameter::choice;
use crate::model::tokenizer::ChatTokenizer;

/// Around a thought.
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Blanks at the end of a thought are none of it; of more than so many the first are handed out before it is known that they were the last.
const BLANKS: usize = 8;

/// Whether a model is made to think in front of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// As its chat template has it.
    Auto,
    /// A thought is opened in front of every answer, also where the template opens none.
    Always,
    /// A thought that the template opens is closed at once.
    Never,
}

impl Thinking {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

choice!(Thinking);

/// Parts the text of an answer from the thought in front of it while both are generated.
#[derive(Debug, Clone)]
pub struct Thought {
    state: State,
    /// Text of which it is not known yet what it belongs to.
    held: String,
    /// Words of the thought have come.
    begun: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but blanks and the beginning of a mark has come.
    Start,
    Inside,
    /// Between the thought and the first character of the answer.
    Behind,
    Answer,
}

/// A piece of what is generated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parted {
    /// What of it is thought.
    pub thought: String,
    /// What of it is the answer.
    pub answer: String,
}

impl Thought {
    /// Opens a thought where the template does not.
    pub const OPEN: &str = OPEN;
    /// Closes a thought, as the templates of all families that think do.
    pub const CLOSED: &str = "\n</think>\n\n";

    /// In front of an answer; `open`: the question ended with the mark that opens a thought.
    pub fn new(open: bool) -> Self {
        Self {
            state: match open {
                true => State::Inside,
                false => State::Start,
            },
            held: String::new(),
            begun: false,
            ended: false,
        }
    }

    /// Whether `text`, which a template writes in front of every answer, opens a thought.
    pub fn is_opened_by(text: &str) -> bool {
        text.trim() == OPEN
    }

    /// Marks of thoughts that are control tokens of a checkpoint, which have no text otherwise.
    pub fn control_marks(tokenizer: &ChatTokenizer) -> Vec<(u32, String)> {
        let controls = tokenizer.controls();
        let marks = controls.filter(|(content, _)| *content == OPEN || *content == CLOSE);
        marks
            .map(|(content, id)| (id, content.to_string()))
            .collect()
    }

    /// Whether `text`, which a template writes in front of every answer, is a thought without words.
    pub fn is_skipped_by(text: &str) -> bool {
        let within = text.trim().strip_prefix(OPEN);
        let within = within.and_then(|text| text.strip_suffix(CLOSE));
        within.is_some_and(|words| words.trim().is_empty())
    }

    /// Whether what comes next belongs to the thought.
    pub fn is_thinking(&self) -> bool {
        self.state == State::Inside
    }

    /// Whether there was a thought, which has been closed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The thought is closed before anything is thought.
    pub fn skip(&mut self) {
        self.state = State::Behind;
        self.ended = true;
    }

    /// What `piece`, the text that has been generated next, adds to the thought and to the answer.
    pub fn part(&mut self, piece: &str) -> Parted {
        let mut parted = Parted::default();
        self.held.push_str(piece);
        if self.state == State::Start {
            let begun = self.held.trim_start();
            if let Some(thought) = begun.strip_prefix(OPEN) {
                self.held = thought.to_string();
                self.state = State::Inside;
            } else if !OPEN.starts_with(begun) {
                self.state = State::Answer;
            } else {
                // Blanks in front of an answer are none of it, however many come.
                self.held = begun.to_string();
            }
        }
        if self.state == State::Inside {
            match self.held.split_once(CLOSE) {
                Some((thought, after)) => {
                    let after = after.to_string();
                    parted.thought = self.thought_of(thought.trim_end().to_string());
                    self.held = after;
                    self.state = State::Behind;
                    self.ended = true;
                }
                None => {
                    let rest = self.held.split_off(self.known_thought());
                    let known = std::mem::replace(&mut self.held, rest);
                    parted.thought = self.thought_of(known);
                }
            }
        }
        if self.state == State::Behind {
            self.held = self.held.trim_start().to_string();
            if !self.held.is_empty() {
                self.state = State::Answer;
            }
        }
        if self.state == State::Answer {
            parted.answer = std::mem::take(&mut self.held);
        }
        parted
    }

    /// What becomes of the text that was held back, now that nothing follows.
    pub fn rest(&mut self) -> Parted {
        let rest = std::mem::take(&mut self.held);
        let mut parted = Parted::default();
        match self.state {
            State::Start => parted.answer = rest,
            State::Inside => parted.thought = self.thought_of(rest.trim_end().to_string()),
            State::Behind | State::Answer => {}
        }
        parted
    }

    /// How many bytes of what is held are the thought's for sure: not those at the end that may be the beginning of the mark that closes it,
    /// and not the blanks in front of them.
    fn known_thought(&self) -> usize {
        let held = &self.held;
        let marks = (1..CLOSE.len()).rev();
        let mark = marks
            .map(|length| &CLOSE[..length])
            .find(|mark| held.ends_with(mark))
            .map_or(0, str::len);
        let before = &held[..held.len() - mark];
        let words = before.trim_end_matches([' ', '\n']).len();
        words.max(before.len().saturating_sub(BLANKS))
    }

    /// Text of the thought, without the blanks that it begins with.
    fn thought_of(&mut self, text: String) -> String {
        if self.begun {
            return text;
        }
        let text = text.trim_start().to_string();
        self.begun = !text.is_empty();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Parted, Thought};

    /// The thought and the answer in `text`, whatever the pieces that it comes in.
    fn parted(open: bool, text: &str) -> (String, String) {
        let mut all = (1..=text.len().max(1)).map(|size| {
            let mut thought = Thought::new(open);
            let chars = text.chars().collect::<Vec<_>>();
            let pieces = chars
                .chunks(size)
                .map(|piece| piece.iter().collect::<String>());
            let mut parts = pieces.map(|piece| thought.part(&piece)).collect::<Vec<_>>();
            parts.push(thought.rest());
            let joined = |of: fn(&Parted) -> &str| parts.iter().map(of).collect::<String>();
            (joined(|part| &part.thought), joined(|part| &part.answer))
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "{text:?}");
        first
    }

    #[test]
    fn what_stands_between_the_marks_is_thought_and_nothing_else() {
        for (text, thought, answer) in [
            (
                "<think>\nA box? </ Yes.\n</think>\n\nA red box.",
                "A box? </ Yes.",
                "A red box.",
            ),
            (" \n<think>é</think>A <think> box.", "é", "A <think> box."),
            ("<think>It never ends", "It never ends", ""),
            ("<think>It ends like </thin", "It ends like </thin", ""),
            ("<think>\n\n</think>\n\nA box.", "", "A box."),
            ("<think>a\n\n\nb\n</think>c", "a\n\n\nb", "c"),
            ("<thin ice", "", "<thin ice"),
            ("<thi", "", "<thi"),
            ("A box.", "", "A box."),
            ("", "", ""),
        ] {
            let expected = (thought.to_string(), answer.to_string());
            assert_eq!(parted(false, text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_held_back_does_not_grow_with_what_is_generated() {
        for (open, piece) in [
            (false, " \n"),
            (true, "hm "),
            (true, "\n "),
            (true, "</think"),
        ] {
            let mut thought = Thought::new(open);
            for _ in 0..1000 {
                assert_eq!(thought.part(piece).answer, "");
                assert!(thought.held.len() < 20, "{piece:?}: {:?}", thought.held);
            }
        }
    }

    #[test]
    fn a_thought_is_handed_out_while_it_is_written() {
        let mut thought = Thought::new(true);
        let mut said = String::new();
        for word in ["\nis ", "it ", "blue", "? ", "no"] {
            said.push_str(&thought.part(word).thought);
        }
        assert_eq!(said, "is it blue? no");
    }

    #[test]
    fn a_thought_that_the_question_opened_needs_no_mark_to_begin() {
        let of = |text| parted(true, text);
        assert_eq!(
            of("A box?\n</think>\n\nYes."),
            ("A box?".to_string(), "Yes.".to_string())
        );
        assert_eq!(of("A box? Yes"), ("A box? Yes".to_string(), String::new()));
    }
}
