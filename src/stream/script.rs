//! Instructions with their times, as YAML, for replay, the demo and evaluations.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct ScriptError {
    pub file: PathBuf,
    pub what: String,
}

/// What is asked when. All times are seconds since the first image of the bag.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Name of the bag it belongs to, for the reader.
    #[serde(default)]
    pub bag: String,
    /// The run's system prompt; none: the default.
    pub system_prompt: Option<String>,
    /// When the memory is reset, ascending.
    #[serde(default)]
    pub resets: Vec<f64>,
    pub instructions: Vec<Entry>,
}

/// One instruction, asked after every frame whose time is at most `at`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub id: String,
    pub at: f64,
    pub text: String,
    /// The true answer.
    pub answer: Option<String>,
    /// Kind of question.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `view`: answerable from the frames in view; `past`: needs something seen before them.
    pub memory: Option<String>,
    #[serde(default)]
    pub max_new_tokens: usize,
}

impl Script {
    /// Reads and checks a script; instructions and resets come back in the order of time.
    pub fn load(file: &Path) -> Result<Self, ScriptError> {
        let fail = |what: String| ScriptError {
            file: file.to_path_buf(),
            what,
        };
        let text = std::fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
        let mut script: Self = serde_yaml::from_str(&text).map_err(|e| fail(e.to_string()))?;
        let mut ids = HashSet::new();
        for entry in &script.instructions {
            if !entry.at.is_finite() {
                return Err(fail(format!(
                    "instruction {} is at {}, expected seconds",
                    entry.id, entry.at
                )));
            }
            if !ids.insert(entry.id.as_str()) {
                return Err(fail(format!("instruction id {} occurs twice", entry.id)));
            }
        }
        if let Some(reset) = script.resets.iter().find(|reset| !reset.is_finite()) {
            return Err(fail(format!("reset at {reset}, expected seconds")));
        }
        script.instructions.sort_by(|a, b| a.at.total_cmp(&b.at));
        script.resets.sort_by(f64::total_cmp);
        Ok(script)
    }
}

/// Whether an answer is right: equal text, but for case and outer spaces.
pub fn is_right(answer: &str, truth: &str) -> bool {
    answer.trim().to_lowercase() == truth.trim().to_lowercase()
}
