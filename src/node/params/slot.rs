//! One parameter: where its value is, what it may be, and what to say when it is not.

use std::ops::RangeInclusive;

use r2r::ParameterValue;

/// One parameter of the struct: where its value is, and what it may be.
pub enum Slot<'a> {
    Flag(&'a mut bool),
    Text(&'a mut String),
    Choice(&'a mut String, &'static [&'static str]),
    Integer(&'a mut i64, RangeInclusive<i64>),
    Real(&'a mut f64, RangeInclusive<f64>),
}

/// A parameter by name.
pub struct Field<'a> {
    pub name: &'static str,
    pub about: &'static str,
    pub slot: Slot<'a>,
}

impl Slot<'_> {
    /// Stores `value`, or says what was expected.
    pub fn set(&mut self, value: &ParameterValue) -> Result<(), String> {
        match (self, value) {
            (Slot::Flag(slot), ParameterValue::Bool(value)) => **slot = *value,
            (Slot::Text(slot), ParameterValue::String(value)) => slot.clone_from(value),
            (Slot::Choice(slot, choices), ParameterValue::String(value))
                if choices.contains(&value.as_str()) =>
            {
                slot.clone_from(value)
            }
            (Slot::Integer(slot, range), ParameterValue::Integer(value))
                if range.contains(value) =>
            {
                **slot = *value
            }
            (Slot::Real(slot, range), ParameterValue::Double(value)) if range.contains(value) => {
                **slot = *value
            }
            // YAML writes 1.0 as 1 as well.
            (Slot::Real(slot, range), ParameterValue::Integer(value))
                if range.contains(&(*value as f64)) =>
            {
                **slot = *value as f64
            }
            (slot, _) => return Err(slot.expected()),
        }
        Ok(())
    }

    fn expected(&self) -> String {
        match self {
            Slot::Flag(_) => "true or false".into(),
            Slot::Text(_) => "a string".into(),
            Slot::Choice(_, choices) => format!("one of: {}", choices.join(", ")),
            Slot::Integer(_, range) => format!("an integer, {} to {}", range.start(), range.end()),
            Slot::Real(_, range) => format!("a number, {} to {}", range.start(), range.end()),
        }
    }

    /// The value that it has.
    pub fn value(&self) -> ParameterValue {
        match self {
            Slot::Flag(slot) => ParameterValue::Bool(**slot),
            Slot::Text(slot) | Slot::Choice(slot, _) => ParameterValue::String(slot.to_string()),
            Slot::Integer(slot, _) => ParameterValue::Integer(**slot),
            Slot::Real(slot, _) => ParameterValue::Double(**slot),
        }
    }
}

/// A value as a message shows it.
pub fn show(value: &ParameterValue) -> String {
    match value {
        ParameterValue::NotSet => "not set".into(),
        ParameterValue::Bool(value) => value.to_string(),
        ParameterValue::Integer(value) => value.to_string(),
        ParameterValue::Double(value) => value.to_string(),
        ParameterValue::String(value) => format!("\"{value}\""),
        array => format!("a {}", array.type_name()),
    }
}
