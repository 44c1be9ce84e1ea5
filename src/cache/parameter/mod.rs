//! What a parameter is: one description, from which the node, the command line, the evaluation and the documents follow.
//!
//! - this file: a parameter's description, the configurations that have some, and what is said of a wrong value
//! - `value`: values, what they may be, and the Rust types they stand for
//! - `define`: the macro that makes a configuration's struct, defaults and descriptions from one list
//!
//! To add a parameter, add a line to the list of the configuration that it belongs to, and read the field where it is needed.

mod define;
mod value;

use std::fmt;

pub(crate) use define::parameters;
pub(crate) use value::choice;
pub use value::{Kind, Setting, Value, TOKENS};

use crate::excerpt::excerpt;

/// When a parameter can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settable {
    /// Before the start only.
    Start,
    /// Before the start, and while no model is loaded; it is read when one is.
    Unconfigured,
    /// At any time; takes effect with the next frame or instruction.
    Running,
    /// At any time; takes effect at the next reset.
    Reset,
}

impl Settable {
    /// As documents and messages say it.
    pub fn about(self) -> &'static str {
        match self {
            Self::Start => "at the start only",
            Self::Unconfigured => "at the start, and while the node is unconfigured",
            Self::Running => "at any time, for the next frame or instruction",
            Self::Reset => "at any time, for the next reset",
        }
    }
}

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: &'static str,
    /// What it is for, sentences in Markdown.
    pub about: &'static str,
    /// Unit of the value; empty: none.
    pub unit: &'static str,
    /// What the value may be.
    pub kind: Kind,
    pub default: Value,
    /// The names of the policies that read it; empty: all.
    pub readers: &'static [&'static str],
    pub settable: Settable,
    /// Heading under which documents list it.
    pub section: &'static str,
}

impl Parameter {
    /// Whether it makes a difference to the policy of this name.
    pub fn read_by(&self, policy: &str) -> bool {
        self.readers.is_empty() || self.readers.contains(&policy)
    }

    /// What it is for, and who reads it.
    pub fn effect(&self) -> String {
        match self.readers {
            [] => self.about.to_string(),
            _ => format!("{} Read by {}.", self.about, self.readers.join(", ")),
        }
    }

    /// The value as this parameter stores it: a whole number as a number where one is expected.
    pub fn checked(&self, value: Value) -> Result<Value, ParameterError> {
        let shown = value.to_string();
        self.kind.checked(value).ok_or_else(|| self.refusal(shown))
    }

    /// The value that a text stands for.
    pub fn parse(&self, text: &str) -> Result<Value, ParameterError> {
        self.kind
            .parse(text)
            .ok_or_else(|| self.refusal(text.to_string()))
    }

    /// What is wrong with a value.
    pub fn refusal(&self, value: String) -> ParameterError {
        ParameterError::Value {
            name: self.name,
            value,
            expected: self.kind.to_string(),
        }
    }
}

/// What can be wrong with a parameter that somebody gives.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParameterError {
    #[error("parameter {name} is {}, expected {expected}", excerpt(.value))]
    Value {
        name: &'static str,
        value: String,
        expected: String,
    },
    #[error("unknown parameter {}{}, expected one of: {known}", excerpt(.name), Nearest(.nearest))]
    Unknown {
        name: String,
        /// The known name that looks most like it, if one does.
        nearest: Option<&'static str>,
        known: String,
    },
}

impl ParameterError {
    /// That none of `all` is called `name`.
    pub fn unknown(name: &str, all: &[Parameter]) -> Self {
        let names = all.iter().map(|parameter| parameter.name);
        let alike = |known: &str| strsim::jaro_winkler(known, name);
        let nearest = names
            .clone()
            .filter(|known| alike(known) >= ALIKE)
            .max_by(|a, b| alike(a).total_cmp(&alike(b)));
        Self::Unknown {
            name: name.to_string(),
            nearest,
            known: names.collect::<Vec<_>>().join(", "),
        }
    }
}

/// The question after a name that may be a slip.
struct Nearest<'a>(&'a Option<&'static str>);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " (is {name} meant?)"),
            None => Ok(()),
        }
    }
}

/// How alike two names are, 0 to 1, from which on one may be a slip for the other.
const ALIKE: f64 = 0.85;

/// A configuration that has parameters.
pub trait Parameters: Clone + Default {
    /// All of them, in the order of documents.
    fn list() -> Vec<Parameter>;

    /// The value of one.
    fn get(&self, name: &str) -> Option<Value>;

    /// Stores a value of the right kind; false if there is no such parameter or the value is of another kind.
    fn put(&mut self, name: &str, value: &Value) -> bool;

    /// The description of one.
    fn find(name: &str) -> Result<Parameter, ParameterError> {
        let mut all = Self::list();
        if let Some(at) = all.iter().position(|parameter| parameter.name == name) {
            return Ok(all.swap_remove(at));
        }
        Err(ParameterError::unknown(name, &all))
    }

    /// Sets one, if the value is what it may be.
    fn set(&mut self, name: &str, value: Value) -> Result<(), ParameterError> {
        let parameter = Self::find(name)?;
        let value = parameter.checked(value)?;
        match self.put(name, &value) {
            true => Ok(()),
            false => Err(parameter.refusal(value.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;

    #[test]
    fn a_slip_in_a_name_is_answered_with_the_name_that_was_meant() {
        let said = |name| CacheConfig::find(name).unwrap_err().to_string();
        assert!(said("bugdet")
            .starts_with("unknown parameter bugdet (is budget meant?), expected one of: policy, "));
        assert!(said("robot_base_frame")
            .starts_with("unknown parameter robot_base_frame, expected one of: policy, "));
    }
}
