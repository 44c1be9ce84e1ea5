//! Bounds of numbers in JSON schemas: whatever an answer could be, it keeps to them.

use std::cell::Cell;

use inf_mllm::model::constraint::{Constraint, Constraints, GrammarKind, TextGrammar};
use inf_mllm::model::mllm::Mllm;
use proptest::prelude::*;
use serde_json::{json, Value};

use crate::support::{demo_dir, load};

/// The numbers that a part of a schema allows.
#[derive(Debug, Clone)]
struct Range {
    integer: bool,
    lower: Option<Bound>,
    upper: Option<Bound>,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    at: f64,
    /// The number itself is not allowed.
    excluded: bool,
    /// Written as draft 4 has it.
    boolean: bool,
}

impl Range {
    fn kind(&self) -> Value {
        let kind = match self.integer {
            true => "integer",
            false => "number",
        };
        json!({ "type": kind })
    }

    fn lower(&self) -> Value {
        keywords(self.lower, "minimum", "exclusiveMinimum")
    }

    fn upper(&self) -> Value {
        keywords(self.upper, "maximum", "exclusiveMaximum")
    }

    fn schema(&self) -> Value {
        joined([self.kind(), self.lower(), self.upper()])
    }

    fn holds(&self, number: f64) -> bool {
        let within = |bound: Option<Bound>, sign: f64| {
            bound.is_none_or(|bound| {
                let above = sign * (number - bound.at);
                above > 0.0 || above == 0.0 && !bound.excluded
            })
        };
        within(self.lower, 1.0)
            && within(self.upper, -1.0)
            && (!self.integer || number.fract() == 0.0)
    }

    /// Whether there is a number in it.
    fn has_any(&self) -> bool {
        let (Some(lower), Some(upper)) = (self.lower, self.upper) else {
            return true;
        };
        let first = lower.at.floor() as i64;
        match self.integer {
            true => (first..=first + 30).any(|number| self.holds(number as f64)),
            false => self.holds(lower.at) || self.holds((lower.at + upper.at) / 2.0),
        }
    }
}

fn keywords(bound: Option<Bound>, inclusive: &str, exclusive: &str) -> Value {
    match bound {
        None => json!({}),
        Some(Bound {
            at,
            excluded,
            boolean: true,
        }) => json!({ inclusive: at, exclusive: excluded }),
        Some(Bound {
            at, excluded: true, ..
        }) => json!({ exclusive: at }),
        Some(Bound { at, .. }) => json!({ inclusive: at }),
    }
}

fn joined(schemas: impl IntoIterator<Item = Value>) -> Value {
    let fields = schemas.into_iter().flat_map(|schema| match schema {
        Value::Object(fields) => fields,
        other => panic!("{other}"),
    });
    Value::Object(fields.collect())
}

/// Around the numbers in question: on them, and a little or much beside them.
fn bound() -> impl Strategy<Value = Bound> {
    let whole = prop::sample::select(vec![-11.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0, 10.0]);
    let beside = prop::sample::select(vec![0.0, 0.0, 0.0, 0.001, 0.25, 0.5, 0.75, 0.999]);
    (whole, beside, any::<bool>(), any::<bool>()).prop_map(|(whole, beside, excluded, boolean)| {
        Bound {
            at: whole + beside,
            excluded,
            boolean,
        }
    })
}

fn range() -> impl Strategy<Value = Range> {
    let bound = || prop::option::weighted(0.9, bound());
    // Bounds that are close to each other come more often than by chance.
    let near = prop::option::weighted(0.7, prop::sample::select(vec![0.25, 0.5, 0.999, 1.0]));
    let ranges = (any::<bool>(), bound(), bound(), near);
    ranges.prop_map(|(integer, lower, mut upper, near)| {
        if let (Some(lower), Some(upper), Some(near)) = (&lower, &mut upper, near) {
            upper.at = ((lower.at + near) * 1e3).round() / 1e3;
        }
        // Without a bound there are numbers such as 1e999.
        let least = Bound {
            at: -11.0,
            excluded: false,
            boolean: false,
        };
        Range {
            integer,
            lower: lower.or_else(|| upper.is_none().then_some(least)),
            upper,
        }
    })
}

/// How the parts of a schema come together.
const NESTINGS: [&str; 8] = [
    "alone",
    "anyOf",
    "$ref",
    "$ref with a bound beside",
    "allOf",
    "list",
    "property",
    "list of a property's anyOf",
];

/// A schema of numbers that are in one of the ranges, in the first alone unless several are named.
fn nested(nesting: &str, [one, other]: &[Range; 2]) -> Value {
    let any_of = || json!({ "anyOf": [one.schema(), other.schema()] });
    let list = |items| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": 2 });
    let property = |schema| {
        json!({
            "type": "object", "properties": { "minimum": schema }, "required": ["minimum"],
            "additionalProperties": false,
        })
    };
    match nesting {
        "alone" => one.schema(),
        "anyOf" => any_of(),
        "$ref" => json!({ "$ref": "#/$defs/one", "$defs": { "one": one.schema() } }),
        "$ref with a bound beside" => joined([
            json!({ "$ref": "#/$defs/one", "$defs": { "one": joined([one.kind(), one.lower()]) } }),
            one.upper(),
        ]),
        "allOf" => {
            json!({ "allOf": [joined([one.kind(), one.lower()]), joined([one.kind(), one.upper()])] })
        }
        "list" => list(one.schema()),
        "property" => property(one.schema()),
        _ => list(property(any_of())),
    }
}

/// The numbers of an answer.
fn numbers(answer: &Value) -> Vec<f64> {
    match answer {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        Value::Object(fields) => fields.values().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

struct Walker {
    model: Mllm,
    constraints: Constraints,
}

impl Walker {
    fn new() -> Self {
        let model = load(&demo_dir());
        let vocabulary = model.config.vocab_size();
        Self {
            constraints: Constraints::new(&model.tokenizer, &model.ends, vocabulary).unwrap(),
            model,
        }
    }

    fn compiled(&self, schema: &Value) -> Result<Constraint, String> {
        let grammar = TextGrammar {
            kind: GrammarKind::JsonSchema,
            text: schema.to_string(),
        };
        let compiled = self.constraints.compile(&grammar, "");
        compiled.map_err(|error| error.to_string())
    }

    /// An answer of tokens that are chosen by chance among those that are allowed; none where it does not end for long.
    fn walk(&self, schema: &Value, seed: u64) -> Option<String> {
        let mut constraint = self.compiled(schema).unwrap();
        let mut state = seed;
        let mut chance = |of: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % of
        };
        let vocabulary = self.model.config.vocab_size() as u32;
        let mut text = Vec::new();
        for _ in 0..100 {
            let allowed = constraint.allowed().unwrap();
            let goes_on = |id: &u32| allowed.contains(*id) && !self.model.ends.contains(*id);
            let mut tokens = (0..vocabulary).filter(goes_on).collect::<Vec<_>>();
            if constraint.is_complete().unwrap() && (tokens.is_empty() || chance(3) == 0) {
                return Some(String::from_utf8(text).unwrap());
            }
            let token = tokens.swap_remove(chance(tokens.len()));
            text.extend(constraint.take(token).unwrap());
        }
        None
    }
}

#[test]
fn no_answer_passes_a_bound_wherever_it_stands() {
    let walker = Walker::new();
    let answers = Cell::new(0);
    proptest!(ProptestConfig::with_cases(300), |(
        nesting in prop::sample::select(NESTINGS.to_vec()), ranges in [range(), range()], seed: u64,
    )| {
        let several = nesting.contains("anyOf");
        let allowed = &ranges[..if several { 2 } else { 1 }];
        let schema = nested(nesting, &ranges);
        let compiled = walker.compiled(&schema);
        prop_assert_eq!(compiled.is_ok(), allowed.iter().any(Range::has_any), "{}: {:?}", schema, compiled.err());
        if compiled.is_ok() {
            for walk in 0..8 {
                let Some(text) = walker.walk(&schema, seed.wrapping_add(walk)) else { continue };
                let answer = serde_json::from_str::<Value>(&text).unwrap();
                for number in numbers(&answer) {
                    let held = allowed.iter().any(|range| range.holds(number));
                    prop_assert!(held, "{} is an answer of {}", text, schema);
                }
                answers.set(answers.get() + 1);
            }
        }
    });
    assert!(answers.get() > 1000, "{} answers", answers.get());
}

#[test]
fn zero_and_whole_numbers_that_are_excluded_are_no_answers() {
    let walker = Walker::new();
    for (schema, excluded, included) in [
        (
            json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 0.5 }),
            "0",
            "0.5",
        ),
        (
            json!({ "type": "number", "minimum": -0.5, "exclusiveMaximum": 0 }),
            "-0",
            "-0.5",
        ),
        (
            json!({ "type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.5 }),
            "1.0",
            "1.25",
        ),
    ] {
        for (text, is_answer) in [(excluded, false), (included, true)] {
            let mut constraint = walker.compiled(&schema).unwrap();
            let ids = walker.model.tokenizer.encode_text(text).unwrap();
            let followed = ids.iter().all(|&id| {
                constraint.allowed().unwrap().contains(id) && constraint.take(id).is_ok()
            });
            let accepted = followed && constraint.is_complete().unwrap();
            assert_eq!(accepted, is_answer, "{text} as an answer of {schema}");
        }
    }
}

#[test]
fn a_bound_that_cannot_be_followed_to_the_last_digit_is_refused_with_its_place() {
    let walker = Walker::new();
    let schema = json!({ "properties": { "id": { "type": "integer", "maximum": 9_007_199_254_740_995i64 } } });
    let error = walker.compiled(&schema).err().unwrap();
    for part in ["#/properties/id", "9007199254740995", "-2^53 and 2^53"] {
        assert!(error.contains(part), "{error}");
    }
}
