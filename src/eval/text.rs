//! A long text as ids.

use std::fs;
use std::path::Path;

use super::fingerprint::Fingerprint;
use super::model::EvalModel;
use super::{parameter, EvalError};

/// Characters of the file that are read for each token wanted; no text of a natural language has so long tokens on average.
const CHARACTERS_PER_TOKEN: usize = 8;

/// The first tokens of a file.
#[derive(Debug, Clone)]
pub struct Text {
    /// The file's name without its ending.
    pub name: String,
    pub ids: Vec<u32>,
}

impl Text {
    /// The first `tokens` tokens of a UTF-8 file, or all of it where it is shorter.
    pub fn load(file: &Path, tokens: usize, model: &EvalModel) -> Result<Self, EvalError> {
        let fail = |what: String| EvalError::File {
            file: file.to_path_buf(),
            what,
        };
        let whole = fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
        let wanted = tokens.saturating_mul(CHARACTERS_PER_TOKEN);
        let end = whole
            .char_indices()
            .nth(wanted)
            .map_or(whole.len(), |(byte, _)| byte);
        let mut ids = model.encode(&whole[..end])?;
        ids.truncate(tokens);
        if ids.len() < 2 {
            return Err(fail("a text of at least two tokens is needed".to_string()));
        }
        let name = file.file_stem().unwrap_or(file.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            ids,
        })
    }

    /// Tokens `start .. start + count`.
    pub fn part(&self, start: usize, count: usize) -> Result<&[u32], EvalError> {
        self.ids.get(start..start + count).ok_or_else(|| {
            parameter(
                "tokens",
                format!("{count} from token {start} on"),
                format!("at most the {} tokens of {}", self.ids.len(), self.name),
            )
        })
    }
}

/// A number that stands for these very ids, as a key in the results.
pub fn fingerprint(ids: &[u32]) -> String {
    let mut fingerprint = Fingerprint::default();
    for id in ids {
        fingerprint.add(&id.to_le_bytes());
    }
    fingerprint.to_string()
}
