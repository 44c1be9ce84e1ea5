//! Jinja's tests: what may stand behind `is`.

use super::given::Given;
use super::meter::{Error, Meter, Result};
use super::value::Value;

pub fn holds(name: &str, value: &Value, mut given: Given, meter: &Meter) -> Result<bool> {
    let holds = match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.number().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_)
        ),
        "iterable" => matches!(
            value,
            Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_) | Value::Loop(_)
        ),
        "callable" => matches!(value, Value::Function(_) | Value::Macro(_)),
        "odd" => whole(value)?.rem_euclid(2) == 1,
        "even" => whole(value)?.rem_euclid(2) == 0,
        "divisibleby" => match whole(&given.expect("num")?)? {
            0 => return Err(Error::new("division by zero")),
            by => whole(value)?.checked_rem(by).unwrap_or(0) == 0,
        },
        "lower" => cased(value, |text| text.to_lowercase(), meter)?,
        "upper" => cased(value, |text| text.to_uppercase(), meter)?,
        "sameas" => {
            let other = given.expect("other")?;
            let alike = std::mem::discriminant(value) == std::mem::discriminant(&other);
            alike && value.equals(&other, meter)?
        }
        "eq" | "equalto" | "==" => value.equals(&given.expect("other")?, meter)?,
        "ne" | "!=" => !value.equals(&given.expect("other")?, meter)?,
        "lt" | "lessthan" | "<" => value.less(&given.expect("other")?, meter)?,
        "gt" | "greaterthan" | ">" => given.expect("other")?.less(value, meter)?,
        "le" | "<=" => !given.expect("other")?.less(value, meter)?,
        "ge" | ">=" => !value.less(&given.expect("other")?, meter)?,
        "in" => given.expect("seq")?.contains(value, meter)?,
        _ => return Err(Error::new("there is no such test")),
    };
    given.done()?;
    Ok(holds)
}

fn whole(value: &Value) -> Result<i64> {
    let wrong = || Error::new(format!("{} instead of an integer", value.kind()));
    value.integer().ok_or_else(wrong)
}

/// Whether there are letters, and all as `to` makes them.
fn cased(value: &Value, to: fn(&str) -> String, meter: &Meter) -> Result<bool> {
    let Some(text) = value.as_str() else {
        return Ok(false);
    };
    meter.spend_many(text.len(), 4)?;
    Ok(text.chars().any(char::is_alphabetic) && to(text) == text)
}
