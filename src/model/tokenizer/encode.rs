//! Text to ids: runs of plain text between the control tokens of the chat format.

use tokenizers::Tokenizer;

use super::{guarded, AddedToken, ChatTokenizer};
use crate::model::ModelError;

/// A Unicode noncharacter, put inside a control token that a user typed and taken out again before tokenising.
const GUARD: char = '\u{FDD0}';

impl ChatTokenizer {
    /// Ids of a whole prompt: what the tokenizer puts in front of every text (unless `text` begins with it), then `text`.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let (ids, opening) = &self.opening;
        let mut prompt = match !opening.is_empty() && text.starts_with(opening.as_str()) {
            true => Vec::new(),
            false => ids.clone(),
        };
        prompt.extend(self.encode(text)?);
        Ok(prompt)
    }

    /// Makes control tokens in a user's text inert, so that [`Self::encode`] takes them as the characters they are.
    pub fn guard(&self, user: &str) -> String {
        // Taken out first: between the characters of a control token it would hide the token here and be gone when it is tokenised.
        let user = user.replace(GUARD, "");
        let mut guarded = String::with_capacity(user.len());
        let mut rest = user.as_str();
        while let Some(first) = rest.chars().next() {
            guarded.push(first);
            if self.control_at(rest).is_some() {
                guarded.push(GUARD);
            }
            rest = &rest[first.len_utf8()..];
        }
        guarded
    }

    /// The control token that `text` begins with. One of a single character has the guard behind it where a user typed it; no guarded
    /// text begins with a guard, so that it is never that of what follows a control token of the chat format.
    fn control_at(&self, text: &str) -> Option<&AddedToken> {
        self.controls.iter().find(|control| {
            let behind = text.strip_prefix(control.content.as_str());
            behind.is_some_and(|behind| !behind.starts_with(GUARD))
        })
    }

    /// Ids of text in the chat format. User text inside it must have passed [`Self::guard`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_runs(text, &self.plain)
    }

    /// As [`Self::encode`], for text that follows the id `before` of a stream; none: no text has come yet.
    ///
    /// Piece by piece a text becomes the ids of the whole, if no piece ends where a token goes on.
    pub fn encode_after(&self, before: Option<u32>, text: &str) -> Result<Vec<u32>, ModelError> {
        let first = match before {
            None => &self.plain,
            Some(id) if self.is_control(id) => &self.inner,
            Some(_) => &self.continued,
        };
        self.encode_runs(text, first)
    }

    /// Whether `ids` are no more than what the tokenizer puts in front of every text.
    pub fn is_opening(&self, ids: &[u32]) -> bool {
        self.opening.0 == ids
    }

    /// `first` is for the run in front of the first control token.
    fn encode_runs(&self, text: &str, first: &Tokenizer) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        let mut run = 0;
        let mut at = 0;
        let mut plain = first;
        while let Some(next) = text[at..].chars().next() {
            let Some(control) = self.control_at(&text[at..]) else {
                at += next.len_utf8();
                continue;
            };
            let before = match control.lstrip {
                true => text[run..at].trim_end(),
                false => &text[run..at],
            };
            self.encode_plain(before, plain, &mut ids)?;
            plain = &self.inner;
            ids.push(control.id);
            at += control.content.len();
            if control.rstrip {
                at = text.len() - text[at..].trim_start().len();
            }
            run = at;
        }
        self.encode_plain(&text[run..], plain, &mut ids)?;
        Ok(ids)
    }

    /// Ids of text that is not in the chat format: every character is what it is.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        self.encode_plain(text, &self.plain, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(
        &self,
        text: &str,
        plain: &Tokenizer,
        ids: &mut Vec<u32>,
    ) -> Result<(), ModelError> {
        let text = text.replace(GUARD, "");
        if text.is_empty() {
            return Ok(());
        }
        let fail = |what: String| ModelError::File {
            file: self.file.clone(),
            what,
        };
        self.growth.check(text.len()).map_err(&fail)?;
        let encoding = guarded(|| plain.encode(text, false)).map_err(&fail)?;
        let mut ids_of_text = encoding.get_ids().iter();
        if let Some(id) = ids_of_text.find(|id| self.is_control(**id)) {
            return Err(fail(format!("plain text yields the control token {id}")));
        }
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}
