//! Thoughts that a model writes in front of an answer.

/// Around a thought.
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Cuts the thought off from the text of an answer while it is generated.
#[derive(Debug, Clone)]
pub struct Thought {
    state: State,
    /// Text of which it is not known yet whether it belongs to the answer.
    held: String,
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

impl Thought {
    /// Closes a thought of no words.
    pub const CLOSED: &str = "\n</think>\n\n";

    /// In front of an answer; `open`: the question ended with the mark that opens a thought.
    pub fn new(open: bool) -> Self {
        Self {
            state: match open {
                true => State::Inside,
                false => State::Start,
            },
            held: String::new(),
        }
    }

    /// Whether `text`, which a template writes in front of every answer, opens a thought.
    pub fn is_opened_by(text: &str) -> bool {
        text.trim() == OPEN
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

    /// What of `piece`, the text that has been generated next, belongs to the answer.
    pub fn answer_in(&mut self, piece: &str) -> String {
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
                Some((_, after)) => {
                    self.held = after.to_string();
                    self.state = State::Behind;
                }
                None => {
                    // No more than the beginning of the mark.
                    let mut from = self.held.len().saturating_sub(CLOSE.len() - 1);
                    while !self.held.is_char_boundary(from) {
                        from += 1;
                    }
                    self.held.drain(..from);
                }
            }
        }
        if self.state == State::Behind {
            self.held = self.held.trim_start().to_string();
            if !self.held.is_empty() {
                self.state = State::Answer;
            }
        }
        match self.state {
            State::Answer => std::mem::take(&mut self.held),
            _ => String::new(),
        }
    }

    /// What of the text that was held back belongs to the answer, now that nothing follows.
    pub fn rest(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Start => rest,
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Thought;

    /// The answer in `text`, whatever the pieces that it comes in.
    fn answer(open: bool, text: &str) -> String {
        let mut answers = (1..=text.len().max(1)).map(|size| {
            let mut thought = Thought::new(open);
            let chars = text.chars().collect::<Vec<_>>();
            let pieces = chars
                .chunks(size)
                .map(|piece| piece.iter().collect::<String>());
            let mut answer = pieces
                .map(|piece| thought.answer_in(&piece))
                .collect::<String>();
            answer.push_str(&thought.rest());
            answer
        });
        let first = answers.next().unwrap();
        assert!(answers.all(|other| other == first), "{text:?}");
        first
    }

    #[test]
    fn what_stands_between_the_marks_is_cut_off_and_nothing_else() {
        for (text, expected) in [
            (
                "<think>\nA box? </ Yes.\n</think>\n\nA red box.",
                "A red box.",
            ),
            (" \n<think>é</think>A <think> box.", "A <think> box."),
            ("<think>It never ends", ""),
            ("<thin ice", "<thin ice"),
            ("<thi", "<thi"),
            ("A box.", "A box."),
            ("", ""),
        ] {
            assert_eq!(answer(false, text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_held_back_does_not_grow_with_what_is_generated() {
        for (open, piece) in [(false, " \n"), (true, "hm ")] {
            let mut thought = Thought::new(open);
            for _ in 0..1000 {
                assert_eq!(thought.answer_in(piece), "");
                assert!(thought.held.len() < 16, "{piece:?}: {:?}", thought.held);
            }
        }
    }

    #[test]
    fn a_thought_that_the_question_opened_needs_no_mark_to_begin() {
        assert_eq!(answer(true, "A box?\n</think>\n\nYes."), "Yes.");
        assert_eq!(answer(true, "A box? Yes"), "");
    }
}
