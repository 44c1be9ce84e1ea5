//! Fields of configurations that stand in more than one form.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A part of a configuration without the fields that are null, which says no more than their absence, except for `kept`.
pub fn without_nulls(mut json: Value, kept: &[&str]) -> Value {
    if let Some(fields) = json.as_object_mut() {
        fields.retain(|name, value| !value.is_null() || kept.contains(&name.as_str()));
    }
    json
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number, or a list of equal numbers")]
enum Side {
    One(usize),
    Each(Vec<usize>),
}

/// The side of a square, in one number or in one for each of its sides.
pub fn side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match Side::deserialize(deserializer)? {
        Side::One(side) => Ok(side),
        Side::Each(sides) => match sides.as_slice() {
            [side, rest @ ..] if rest.iter().all(|other| other == side) => Ok(*side),
            _ => Err(serde::de::Error::custom(format!(
                "{sides:?}, expected a number, or a list of equal numbers"
            ))),
        },
    }
}

/// The same of a field that need not be there.
pub fn optional_side<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<usize>, D::Error> {
    side(deserializer).map(Some)
}
