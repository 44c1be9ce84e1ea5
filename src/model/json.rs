//! JSON files of a checkpoint, with errors that name the field, its value and what was expected.

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::decoder::Unsupported;

/// Numbers that Python's `json` writes and JSON does not have.
const NOT_JSON: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// What `text` says. An error says where it is no JSON, or which field is of another type.
pub fn of_text<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| match error.classify() {
        // Looked at again with a record of the way to the field, which a text without errors need not pay for.
        Category::Data => {
            match serde_json::from_str::<Value>(text).map(|json| of_value::<T>(&json)) {
                Ok(Err(unsupported)) => unsupported.to_string(),
                _ => error.to_string(),
            }
        }
        _ => no_json(text, &error),
    })
}

/// What `json` says. An error names the first field that is not as `T` has it.
pub fn of_value<T: DeserializeOwned>(json: &Value) -> Result<T, Unsupported> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let value = at(json, error.path());
        unsupported(&field(error.path()), value, &error.inner().to_string())
    })
}

/// The value at the end of `path`, if it goes that far.
fn at<'a>(json: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(json, |value, segment| match segment {
        Segment::Map { key } => value.get(key),
        Segment::Seq { index } => value.get(index),
        _ => Some(value),
    })
}

/// `path` as in `text_config.rope_scaling`; empty for the whole.
fn field(path: &Path) -> String {
    match path.iter().len() {
        0 => String::new(),
        _ => path.to_string(),
    }
}

/// What `message` of the JSON library says of `field`.
fn unsupported(field: &str, value: Option<&Value>, message: &str) -> Unsupported {
    if let Some(name) = between(message, "missing field `", "`") {
        let field = match field {
            "" => name.to_string(),
            within => format!("{within}.{name}"),
        };
        return Unsupported::new(field, "missing", "a value");
    }
    let field = match field {
        "" => "the whole",
        named => named,
    };
    let value = value.map_or_else(String::new, Value::to_string);
    let expected = match message.split_once(", expected ") {
        Some((_, expected)) => in_words(expected),
        None => format!("something else: {message}"),
    };
    Unsupported::new(field, value, expected)
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.split_once(after).map(|it| it.0)
}

/// What the JSON library calls by the names of this language.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
    .to_string()
}

/// Why `text` is no JSON: Python's numbers by name, else what the library says.
fn no_json(text: &str, error: &serde_json::Error) -> String {
    let line = text.lines().nth(error.line().saturating_sub(1));
    let number = line.and_then(|line| python_number(line, error.column()));
    match number {
        Some((Some(field), number)) => format!(
            "{field} is {number} in line {}, expected a number: JSON has no {number}, Python writes it all the same",
            error.line()
        ),
        Some((None, number)) => format!(
            "line {} has {number}, expected a number: JSON has no {number}, Python writes it all the same",
            error.line()
        ),
        None => format!("it is no JSON: {error}"),
    }
}

/// The number of Python's at the place where reading `line` ended, and the field that it stands in.
fn python_number(line: &str, column: usize) -> Option<(Option<&str>, &'static str)> {
    // The library stops at a number's first letter, or behind it.
    let from = column.saturating_sub(3);
    (from..=column).find_map(|at| {
        let (before, rest) = line.split_at_checked(at)?;
        let number = NOT_JSON.into_iter().find(|it| rest.starts_with(it))?;
        let key = before.trim_end().strip_suffix(':');
        let key = key.and_then(|key| key.trim_end().strip_suffix('"')?.rsplit('"').next());
        Some((key, number))
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[allow(dead_code)]
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        layers: usize,
        #[allow(dead_code)]
        factors: Vec<f64>,
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value() {
        for (json, told) in [
            (
                json!({"inner": {"layers": "two", "factors": []}}),
                "inner.layers is \"two\", expected a whole number that is not negative",
            ),
            (
                json!({"inner": {"layers": -3, "factors": []}}),
                "inner.layers is -3, expected a whole number that is not negative",
            ),
            (
                json!({"inner": {"layers": 2, "factors": [1.0, true]}}),
                "inner.factors[1] is true, expected a number",
            ),
            (
                json!({"inner": {"layers": 2}}),
                "inner.factors is missing, expected a value",
            ),
            (json!({"inner": 7}), "inner is 7, expected an object"),
            (json!([]), "the whole is [], expected an object"),
        ] {
            let error = of_text::<Outer>(&json.to_string()).unwrap_err();
            assert_eq!(error, told);
        }
    }

    #[test]
    fn numbers_that_only_python_has_are_told() {
        for number in NOT_JSON {
            for text in [
                format!("{{\n  \"a\": 1,\n  \"eps\": {number}\n}}"),
                format!("{{\"a\": 1,\n\"eps\":{number},\"b\": 2}}"),
            ] {
                let error = of_text::<Value>(&text).unwrap_err();
                assert!(
                    error.starts_with(&format!("eps is {number} in line ")),
                    "{error}"
                );
            }
            let error = of_text::<Value>(&format!("[1, {number}]")).unwrap_err();
            assert!(
                error.starts_with(&format!("line 1 has {number}")),
                "{error}"
            );
        }
        let error = of_text::<Value>("{\"a\": Nothing}").unwrap_err();
        assert!(error.starts_with("it is no JSON: "), "{error}");
    }
}
