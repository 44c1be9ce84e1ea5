//! Bounds of numbers in JSON schemas, where llguidance (1.9.1) does not keep to them.
//!
//! - A whole number that is excluded passes all the same where the other bound is less than 1 farther from zero (`exclusiveMinimum: 0,
//!   maximum: 0.5` lets 0 pass). It is written as the next number that is not excluded.
//! - Bounds of integers are rounded to floats, and some come to lie outside of what was asked for. These are refused.

use serde_json::{Number, Value};

use super::schema::{parts, parts_mut};
use crate::excerpt::excerpt;

/// What takes the place of 0 where it is excluded and the other bound is nearer than 1: no answer has a number that is nearer to 0.
const NEAREST: f64 = 1e-38;

/// One of the two ends of a range.
struct End {
    inclusive: &'static str,
    exclusive: &'static str,
    /// 1 where larger numbers are within, else -1.
    inwards: f64,
}

const LOWER: End = End {
    inclusive: "minimum",
    exclusive: "exclusiveMinimum",
    inwards: 1.0,
};
const UPPER: End = End {
    inclusive: "maximum",
    exclusive: "exclusiveMaximum",
    inwards: -1.0,
};

impl End {
    /// The number that this end of `schema` excludes; in draft 4 the keyword only says that the inclusive one does.
    fn excluded(&self, schema: &Value) -> Option<Number> {
        let bound = match &schema[self.exclusive] {
            Value::Bool(true) => &schema[self.inclusive],
            bound => bound,
        };
        bound.as_number().cloned()
    }

    /// All bounds at this end, in `schema` and the schemas that it is made of.
    fn collect(&self, schema: &Value, bounds: &mut Vec<f64>) {
        for keyword in [self.inclusive, self.exclusive] {
            bounds.extend(schema[keyword].as_f64());
        }
        for (_, part) in parts(schema) {
            self.collect(part, bounds);
        }
    }

    /// Excludes whole numbers by the next one within, wherever a bound of `others`, those at the other end, is less than 1 farther from zero:
    /// schemas that refer to each other have their bounds together.
    fn exclude_by_next(&self, schema: &mut Value, others: &[f64]) {
        let excluded = self.excluded(schema).and_then(|bound| bound.as_f64());
        // As seen from zero.
        let outwards = |bound: f64| bound * self.inwards;
        let close = |bound: f64| {
            let away = others.iter().map(|&other| outwards(other - bound));
            away.into_iter().any(|away| away > 0.0 && away < 1.0)
        };
        let passes = |bound: &f64| bound.fract() == 0.0 && outwards(*bound) >= 0.0 && close(*bound);
        if let (Some(bound), Some(fields)) = (excluded.filter(passes), schema.as_object_mut()) {
            let next = match outwards(bound) {
                0.0 => NEAREST,
                whole => whole.next_up(),
            };
            let given = fields.get(self.inclusive).and_then(Value::as_f64);
            let next = given.map_or(next, |given| next.max(outwards(given)));
            fields.remove(self.exclusive);
            fields.insert(self.inclusive.to_string(), outwards(next).into());
        }
        for part in parts_mut(schema) {
            self.exclude_by_next(part, others);
        }
    }

    /// A bound of `schema` at this end that lets integers pass which it should not.
    fn inexact(&self, schema: &Value) -> Option<String> {
        let inclusive = schema[self.inclusive].as_number().cloned();
        let bounds = [inclusive.zip(Some(0)), self.excluded(schema).zip(Some(1))];
        let mut bounds = bounds.into_iter().flatten();
        let wrong = bounds.find(|(bound, steps)| {
            let whole = bound.as_f64().filter(|bound| bound.fract() == 0.0);
            let Some(float) = whole else { return false };
            let exact = bound.as_i128().unwrap_or(float as i128);
            let first = exact.saturating_add(self.inwards as i128 * steps);
            let followed = i128::from((float + self.inwards * *steps as f64) as i64);
            match self.inwards > 0.0 {
                true => followed < first,
                false => followed > first,
            }
        });
        wrong.map(|(bound, _)| {
            format!(
                "the bound {} cannot be followed to the last digit, expected one between -2^53 and 2^53",
                excerpt(&bound.to_string())
            )
        })
    }
}

/// Writes the bounds of a schema so that none is passed.
pub fn exclude(schema: &mut Value) {
    for (end, other) in [(LOWER, UPPER), (UPPER, LOWER)] {
        let mut others = Vec::new();
        other.collect(schema, &mut others);
        end.exclude_by_next(schema, &others);
    }
}

/// What is wrong with a bound of a schema itself, not of its parts.
pub fn inexact(schema: &Value) -> Option<String> {
    [LOWER, UPPER].iter().find_map(|end| end.inexact(schema))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn excluded(mut schema: Value) -> Value {
        exclude(&mut schema);
        schema
    }

    #[test]
    fn only_whole_numbers_that_would_pass_are_written_otherwise() {
        for (given, written) in [
            (
                json!({ "exclusiveMinimum": 0, "maximum": 0.5 }),
                json!({ "minimum": 1e-38, "maximum": 0.5 }),
            ),
            (
                json!({ "minimum": 1, "exclusiveMinimum": true, "exclusiveMaximum": 1.5 }),
                json!({ "minimum": 1.000_000_000_000_000_2, "exclusiveMaximum": 1.5 }),
            ),
            (
                json!({ "minimum": -2.5, "exclusiveMaximum": -2.0 }),
                json!({ "minimum": -2.5, "maximum": -2.000_000_000_000_000_4 }),
            ),
        ] {
            assert_eq!(excluded(given), written);
        }
        for same in [
            json!({ "exclusiveMinimum": 0 }),
            json!({ "exclusiveMinimum": 0, "maximum": 1 }),
            json!({ "exclusiveMinimum": 0.25, "maximum": 0.5 }),
            json!({ "exclusiveMinimum": -1, "maximum": -0.5 }),
            json!({ "minimum": 0, "exclusiveMinimum": false, "maximum": 0.5 }),
            json!({ "const": { "exclusiveMinimum": 0, "maximum": 0.5 } }),
        ] {
            assert_eq!(excluded(same.clone()), same);
        }
    }

    #[test]
    fn bounds_meet_in_schemas_that_refer_to_each_other() {
        let schema = json!({
            "$ref": "#/$defs/positive", "maximum": 0.5,
            "$defs": { "positive": { "type": "number", "exclusiveMinimum": 0 } },
        });
        assert_eq!(excluded(schema)["$defs"]["positive"]["minimum"], 1e-38);
    }

    #[test]
    fn bounds_of_integers_that_floats_do_not_have_are_refused() {
        let largest = 1i64 << 53;
        for (bounds, fits) in [
            (json!({ "minimum": largest, "maximum": i64::MAX }), true),
            (json!({ "minimum": i64::MIN, "maximum": u64::MAX }), true),
            (json!({ "exclusiveMinimum": largest }), false),
            (json!({ "minimum": largest + 1 }), false),
            (json!({ "maximum": largest + 3 }), false),
            (json!({ "maximum": -largest - 1 }), false),
            (json!({ "minimum": 1e30 }), false),
            (json!({ "minimum": 0.5, "exclusiveMaximum": 1e3 }), true),
        ] {
            assert_eq!(inexact(&bounds).is_none(), fits, "{bounds}");
        }
    }
}
