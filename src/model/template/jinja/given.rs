//! The arguments of a call.

use std::sync::Arc;

use super::meter::{Error, Result};
use super::value::Value;

/// Arguments that have not been taken yet.
#[derive(Default)]
pub struct Given {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// The next parameter, called `name`, if it is given.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        match self.positional.is_empty() {
            false => Some(self.positional.remove(0)),
            true => self.take_named(name),
        }
    }

    /// A parameter that is given by its name alone.
    pub fn take_named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(known, _)| &**known == name)?;
        Some(self.named.remove(at).1)
    }

    pub fn expect(&mut self, name: &str) -> Result<Value> {
        self.take(name)
            .ok_or_else(|| Error::new(format!("the argument {name} is missing")))
    }

    pub fn expect_text(&mut self, name: &str) -> Result<Arc<str>> {
        text(name, self.expect(name)?)
    }

    /// A string, or none.
    pub fn take_text(&mut self, name: &str) -> Result<Option<Arc<str>>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => text(name, value).map(Some),
        }
    }

    /// An integer, or none.
    pub fn take_integer(&mut self, name: &str) -> Result<Option<i64>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.integer() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(name, &value, "an integer")),
            },
        }
    }

    pub fn take_truth(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| value.truth())
    }

    /// Nothing may be left.
    pub fn done(self) -> Result<()> {
        match (self.positional.first(), self.named.first()) {
            (None, None) => Ok(()),
            (Some(_), _) => Err(Error::new("more arguments than it takes")),
            (None, Some((name, _))) => Err(Error::new(format!("it takes no argument {name}"))),
        }
    }
}

fn text(name: &str, value: Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) => Ok(text),
        other => Err(wrong(name, &other, "a string")),
    }
}

fn wrong(name: &str, value: &Value, expected: &str) -> Error {
    let kind = value.kind();
    Error::new(format!(
        "the argument {name} is {kind}, expected {expected}"
    ))
}
