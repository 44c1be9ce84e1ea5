//! Instructions with their times, as YAML, for replay, the demo and evaluations.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::constraint::{GrammarKind, TextGrammar};

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
    /// Every instruction leaves no trace in the memory, so that none gives away another one's answer.
    #[serde(default)]
    pub aside: bool,
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
    #[serde(default)]
    pub max_thought_tokens: usize,
    /// The answer is one of these; none: any text.
    #[serde(default)]
    pub choices: Vec<String>,
    /// What grammar the answer is of, under the name of the grammar's kind: a JSON schema in YAML or as text, a regular expression, a Lark
    /// grammar. At most one of them.
    pub json_schema: Option<serde_json::Value>,
    pub regex: Option<String>,
    pub lark: Option<String>,
    /// Other answers that are right too.
    #[serde(default)]
    pub accept: Vec<String>,
    /// How long ago the answer was in view: a name for distances that are summed up together.
    pub cell: Option<String>,
    /// The same, seconds.
    pub age: Option<f64>,
    /// Times of the frames that show the answer, ascending.
    #[serde(default)]
    pub shown: Vec<f64>,
}

impl Entry {
    /// The grammar of the answer, if it has one: the first of several, which [`Script::load`] refuses.
    pub fn grammar(&self) -> Option<TextGrammar> {
        let schema = self.json_schema.as_ref().map(|schema| match schema {
            serde_json::Value::String(text) => text.clone(),
            schema => schema.to_string(),
        });
        let kinds = [
            (GrammarKind::JsonSchema, schema),
            (GrammarKind::Regex, self.regex.clone()),
            (GrammarKind::Lark, self.lark.clone()),
        ];
        let mut given = kinds.into_iter().filter_map(|(kind, text)| {
            let text = text?;
            Some(TextGrammar { kind, text })
        });
        given.next()
    }

    fn grammars(&self) -> usize {
        usize::from(self.json_schema.is_some())
            + usize::from(self.regex.is_some())
            + usize::from(self.lark.is_some())
    }

    /// Whether an answer is right: the text of the true one or of another that is accepted, but for case and outer spaces. None: the
    /// true one is not known.
    pub fn is_right(&self, answer: &str) -> Option<bool> {
        let given = answer.trim().to_lowercase();
        let right = |truth: &String| truth.trim().to_lowercase() == given;
        let truth = self.answer.as_ref()?;
        Some(right(truth) || self.accept.iter().any(right))
    }
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
            let mut seconds = entry.age.iter().chain(&entry.shown);
            if let Some(wrong) = seconds.find(|seconds| !(seconds.is_finite() && **seconds >= 0.0))
            {
                return Err(fail(format!(
                    "instruction {}: its answer was in view {wrong} s ago or at that time, expected seconds, 0 or more",
                    entry.id
                )));
            }
            if entry.grammars() > 1 {
                return Err(fail(format!(
                    "instruction {} has {} of json_schema, regex and lark, expected at most one",
                    entry.id,
                    entry.grammars()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(more: &str) -> Entry {
        serde_yaml::from_str(&format!("{{id: a, at: 1, text: When was it?{more}}}")).unwrap()
    }

    #[test]
    fn an_answer_is_right_in_any_of_its_forms() {
        let asked = entry(", answer: '00:07', accept: ['00:06', '00:07']");
        for (answer, right) in [
            (" 00:07\n", true),
            ("00:06", true),
            ("00:05", false),
            ("", false),
        ] {
            assert_eq!(asked.is_right(answer), Some(right), "{answer}");
        }
        assert_eq!(entry(", answer: Yes").is_right("yes "), Some(true));
        assert_eq!(entry("").is_right("yes"), None);
    }

    #[test]
    fn the_long_drive_loads_and_times_that_are_none_do_not() {
        let minutes = Path::new(env!("CARGO_MANIFEST_DIR")).join("bags/minutes/instructions.yaml");
        let script = Script::load(&minutes).unwrap();
        assert!(script.aside && script.instructions.len() > 100);
        let past = |entry: &&Entry| entry.memory.as_deref() == Some("past");
        for entry in script.instructions.iter().filter(past) {
            assert!(
                entry.cell.is_some() && !entry.shown.is_empty(),
                "{}",
                entry.id
            );
            assert!(
                entry.shown.iter().all(|&shown| shown <= entry.at),
                "{}",
                entry.id
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script.yaml");
        for wrong in ["age: -1", "shown: [2, .nan]", "shown: [.inf]"] {
            let text = format!("instructions: [{{id: a, at: 1, text: b, {wrong}}}]");
            std::fs::write(&file, text).unwrap();
            let error = Script::load(&file).unwrap_err().to_string();
            assert!(error.contains("instruction a: "), "{error}");
        }
    }
}
