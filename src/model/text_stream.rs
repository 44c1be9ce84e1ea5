//! Text from ids as they come, a constant amount of work for each: joined, the pieces are what decoding all ids at once gives.
//!
//! A decoder is asked for the text of the newest tokens with and without the next one, and what the next one adds is handed out. That is
//! right under two conditions, which hold for byte-level and SentencePiece vocabularies alike:
//!
//! - A character whose bytes have not all come shows as one U+FFFD at the end. It is held back until something follows it. Bytes that
//!   have not become a character are 3 at most, and each token has at least one, so that [`CONTEXT`] tokens hold whatever the next
//!   one can go on from.
//! - A byte that a SentencePiece vocabulary spells `<0xNN>` counts together with those beside it: one that does not fit makes
//!   U+FFFD of the whole run. The text of a run is held back until it is over.

use super::tokenizer::ChatTokenizer;
use super::ModelError;

/// Tokens that are decoded again with the next one.
const CONTEXT: usize = 4;

/// What stands for bytes that are no character, or not yet one.
const HELD: char = char::REPLACEMENT_CHARACTER;

/// The text of a growing list of ids, control tokens left out.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// The newest ids whose text has been handed out, except for a [`HELD`] at its end.
    context: Vec<u32>,
    /// Text of `context` without that.
    known: String,
    /// Bytes of a run that is not over.
    run: Vec<u32>,
}

impl TextStream {
    /// Takes the next id; returns what the text grows by, which is nothing in the middle of a character.
    pub fn push(&mut self, id: u32, tokenizer: &ChatTokenizer) -> Result<String, ModelError> {
        let Some(token) = tokenizer.text_token(id) else {
            return Ok(String::new());
        };
        self.run.push(id);
        if is_byte(&token) {
            return Ok(String::new());
        }
        let text = self.settle(tokenizer)?;
        let whole = text.strip_suffix(HELD).unwrap_or(&text);
        let added = added(&self.known, whole);
        self.trim(tokenizer)?;
        Ok(added)
    }

    /// What is left when nothing follows: the beginning of a character shows as U+FFFD.
    pub fn finish(mut self, tokenizer: &ChatTokenizer) -> Result<String, ModelError> {
        let text = self.settle(tokenizer)?;
        Ok(added(&self.known, &text))
    }

    /// Text of all that is held, which becomes the context.
    fn settle(&mut self, tokenizer: &ChatTokenizer) -> Result<String, ModelError> {
        self.context.append(&mut self.run);
        tokenizer.decode(&self.context)
    }

    /// Lets go of the oldest ids.
    fn trim(&mut self, tokenizer: &ChatTokenizer) -> Result<(), ModelError> {
        let spare = self.context.len().saturating_sub(CONTEXT);
        self.context.drain(..spare);
        self.known = tokenizer.decode(&self.context)?;
        if self.known.ends_with(HELD) {
            self.known.pop();
        }
        Ok(())
    }
}

/// A byte in the spelling of SentencePiece.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What `text` has behind what it shares with `known`, with which it begins for any decoder that does not look ahead.
fn added(known: &str, text: &str) -> String {
    let pairs = known.chars().zip(text.chars());
    let same = pairs.take_while(|(a, b)| a == b);
    let shared = same.map(|(a, _)| a.len_utf8()).sum::<usize>();
    text[shared..].to_string()
}
