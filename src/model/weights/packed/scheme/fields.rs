//! What single fields may say; errors name the field, the value and what was expected.

use serde_json::Value;

use super::Scope;
use crate::model::decoder::Unsupported;

const GROUP_SIZE: &str = "a whole number from 1 on, or -1 for a group for each row";

pub const BLOCK: &str = "two whole numbers from 1 on";

/// Rows and columns of the blocks that `field` names, if it does.
pub fn block(config: &Value, field: &str) -> Result<Option<(usize, usize)>, Unsupported> {
    let value = &config[field];
    if value.is_null() {
        return Ok(None);
    }
    let side = |at: usize| {
        let side = value[at].as_u64().filter(|&side| side > 0)?;
        usize::try_from(side).ok()
    };
    match (value.as_array().map(Vec::len), side(0), side(1)) {
        (Some(2), Some(rows), Some(columns)) => Ok(Some((rows, columns))),
        _ => Err(Unsupported::new(field, value, BLOCK)),
    }
}

/// The first of `fields` that is there.
fn given<'a>(config: &'a Value, fields: &[&'static str]) -> Option<(&'static str, &'a Value)> {
    let mut all = fields.iter().map(|&field| (field, &config[field]));
    all.find(|(_, value)| !value.is_null())
}

/// One of `known` in lower case, or `default` where none of the fields is there.
pub fn expect_text(
    config: &Value,
    fields: &[&'static str],
    known: &[&str],
    default: &str,
) -> Result<String, Unsupported> {
    let expected = || known.join(", ");
    let Some((field, value)) = given(config, fields) else {
        return match default {
            "" => Err(Unsupported::new(fields[0], "missing", expected())),
            default => Ok(default.to_string()),
        };
    };
    let text = value.as_str().map(str::to_ascii_lowercase);
    match text.filter(|text| known.contains(&text.as_str())) {
        Some(text) => Ok(text),
        None => Err(Unsupported::new(field, value, expected())),
    }
}

pub fn expect_bits(
    config: &Value,
    fields: &[&'static str],
    known: &[usize],
) -> Result<usize, Unsupported> {
    let (field, value) = given(config, fields).unwrap_or((fields[0], &Value::Null));
    let bits = value.as_u64().and_then(|bits| usize::try_from(bits).ok());
    bits.filter(|bits| known.contains(bits)).ok_or_else(|| {
        let expected = known.iter().map(usize::to_string).collect::<Vec<_>>();
        Unsupported::new(field, value, expected.join(" or "))
    })
}

pub fn group(config: &Value, fields: &[&'static str]) -> Result<Scope, Unsupported> {
    let Some((field, value)) = given(config, fields) else {
        return Ok(Scope::Group(128));
    };
    match value.as_i64() {
        Some(-1) => Ok(Scope::Row),
        Some(size) if size > 0 => usize::try_from(size)
            .map(Scope::Group)
            .map_err(|_| Unsupported::new(field, value, GROUP_SIZE)),
        _ => Err(Unsupported::new(field, value, GROUP_SIZE)),
    }
}
