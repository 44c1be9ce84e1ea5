//! Jinja's filters of one value, and transformers' `tojson`. Those of lists are in `sequences`.

use super::given::Given;
use super::meter::{Error, Meter, Result};
use super::methods::items;
use super::strings::{capitalized, lines, padded, replaced, stripped};
use super::text::{JsonStyle, Writer};
use super::value::Value;
use super::{expressions, percent, sequences};

/// Deepest indent of JSON, and longest separator, bytes.
const WIDEST: usize = 1000;

pub fn apply(name: &str, value: Value, mut given: Given, meter: &Meter) -> Result<Value> {
    meter.step()?;
    let result = match name {
        "default" | "d" => {
            let default = given.take("default_value");
            let falsy_too = given.take_truth("boolean");
            let missing = value.is_undefined() || (falsy_too && !value.truth());
            match missing {
                true => default.unwrap_or_else(|| Value::Str("".into())),
                false => value,
            }
        }
        "safe" | "string" => as_text(value, meter)?,
        "trim" => {
            let text = as_text(value, meter)?;
            let chars = given.take_text("chars")?;
            let text = text.as_str().unwrap_or_default();
            meter.text(stripped(text, chars.as_deref(), true, true))?
        }
        "upper" => of_text(value, meter, |text| text.to_uppercase())?,
        "lower" => of_text(value, meter, |text| text.to_lowercase())?,
        "capitalize" => of_text(value, meter, capitalized)?,
        "title" => of_text(value, meter, title)?,
        "escape" | "e" | "forceescape" => escaped(value, meter)?,
        "urlencode" => urlencoded(value, meter)?,
        "wordcount" => {
            let text = as_text(value, meter)?;
            let is_border = |c: char| !(c.is_alphanumeric() || c == '_');
            let words = text.as_str().unwrap_or_default().split(is_border);
            Value::Int(words.filter(|word| !word.is_empty()).count() as i64)
        }
        "replace" => {
            let text = as_text(value, meter)?;
            let old = as_text(given.expect("old")?, meter)?;
            let new = as_text(given.expect("new")?, meter)?;
            let count = given.take_integer("count")?;
            let text = text.as_str().unwrap_or_default();
            let old = old.as_str().unwrap_or_default();
            let new = new.as_str().unwrap_or_default();
            meter.made(replaced(text, old, new, count, meter)?)?
        }
        "indent" => indented(&value, &mut given, meter)?,
        "center" => {
            let width = given.take_integer("width")?.unwrap_or(80);
            let text = as_text(value, meter)?;
            let text = text.as_str().unwrap_or_default();
            meter.made(padded(text, "center", width, " ", meter)?)?
        }
        "truncate" => truncated(value, &mut given, meter)?,
        "format" => {
            let Some(format) = value.as_str() else {
                return Err(Error::new(format!("{} as a format", value.kind())));
            };
            let values = match given.named.is_empty() {
                true => meter.tuple(std::mem::take(&mut given.positional))?,
                false => {
                    let named = std::mem::take(&mut given.named).into_iter();
                    meter.dict(named.map(|(name, value)| (Value::Str(name), value)))?
                }
            };
            percent::formatted(format, &values, meter)?
        }
        "abs" => match &value {
            Value::Float(number) => Value::Float(number.abs()),
            other => {
                let number = other.integer().and_then(i64::checked_abs);
                let wrong = || Error::new(format!("the size of {}", other.kind()));
                Value::Int(number.ok_or_else(wrong)?)
            }
        },
        "int" => integer(&value, &mut given)?,
        "float" => {
            let default = given.take("default").unwrap_or(Value::Float(0.0));
            parsed(&value).map_or(default, Value::Float)
        }
        "round" => rounded(&value, &mut given)?,
        "length" | "count" => Value::Int(value.length(meter)? as i64),
        "tojson" => json(&value, &mut given, meter)?,
        "items" => match &value {
            Value::Undefined(_) => meter.list(Vec::new())?,
            Value::Dict(dict) => items(dict, meter)?,
            other => return Err(Error::new(format!("the items of {}", other.kind()))),
        },
        "attr" => {
            let name = given.expect_text("name")?;
            expressions::attribute(&value, &name, meter)?
        }
        _ => return sequences::apply(name, &value, given, meter),
    };
    given.done()?;
    Ok(result)
}

/// What `str` says of it.
pub fn as_text(value: Value, meter: &Meter) -> Result<Value> {
    match value {
        Value::Str(_) => Ok(value),
        other => {
            let mut text = Writer::new(meter);
            text.plain(&other)?;
            text.value()
        }
    }
}

/// A text of about the same length.
fn of_text(value: Value, meter: &Meter, change: impl Fn(&str) -> String) -> Result<Value> {
    let text = as_text(value, meter)?;
    let text = text.as_str().unwrap_or_default();
    meter.spend_many(text.len(), 4)?;
    meter.made(change(text))
}

/// Every word with one large letter in front.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut starts = true;
    for c in text.chars() {
        match starts {
            true => titled.extend(c.to_uppercase()),
            false => titled.extend(c.to_lowercase()),
        }
        starts = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    titled
}

fn escaped(value: Value, meter: &Meter) -> Result<Value> {
    let text = as_text(value, meter)?;
    let mut out = Writer::new(meter);
    for c in text.as_str().unwrap_or_default().chars() {
        match c {
            '&' => out.push("&amp;")?,
            '<' => out.push("&lt;")?,
            '>' => out.push("&gt;")?,
            '\'' => out.push("&#39;")?,
            '"' => out.push("&#34;")?,
            c => out.push(c.encode_utf8(&mut [0; 4]))?,
        }
    }
    out.value()
}

fn urlencoded(value: Value, meter: &Meter) -> Result<Value> {
    let text = as_text(value, meter)?;
    let mut out = Writer::new(meter);
    for byte in text.as_str().unwrap_or_default().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                out.push(char::from(byte).encode_utf8(&mut [0; 4]))?;
            }
            other => out.push(&format!("%{other:02X}"))?,
        }
    }
    out.value()
}

fn indented(value: &Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let indent = match given.take("width") {
        Some(Value::Str(indent)) => indent.to_string(),
        Some(other) => {
            let width = other
                .integer()
                .and_then(|width| usize::try_from(width).ok());
            let width = width.unwrap_or(0);
            meter.spend_many(width, 1)?;
            " ".repeat(width)
        }
        None => "    ".to_string(),
    };
    let first = given.take_truth("first");
    let blank = given.take_truth("blank");
    let Some(text) = value.as_str() else {
        return Err(Error::new(format!("{} instead of a string", value.kind())));
    };
    meter.spend_many(text.len(), 32)?;
    let mut out = Writer::new(meter);
    // As in Jinja, a line end that stands at the end stays.
    let with_end = format!("{text}\n");
    for (i, (line, _)) in lines(&with_end).into_iter().enumerate() {
        if i > 0 {
            out.push("\n")?;
        }
        let indents = match i {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if indents {
            out.push(&indent)?;
        }
        out.push(line)?;
    }
    out.value()
}

fn truncated(value: Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let count = |number: Option<i64>, default: usize| match number {
        None => default,
        Some(number) => usize::try_from(number).unwrap_or(0),
    };
    let length = count(given.take_integer("length")?, 255);
    let cut_words = given.take_truth("killwords");
    let end = given.take_text("end")?.unwrap_or_else(|| "...".into());
    let leeway = count(given.take_integer("leeway")?, 5);
    let value = as_text(value, meter)?;
    let text = value.as_str().unwrap_or_default();
    if value.length(meter)? <= length.saturating_add(leeway) {
        return Ok(value);
    }
    meter.spend_many(text.len(), 4)?;
    let kept = length.saturating_sub(end.chars().count());
    let mut text = text.chars().take(kept).collect::<String>();
    if !cut_words {
        if let Some((before, _)) = text.rsplit_once(' ') {
            text = before.to_string();
        }
    }
    meter.spend_many(end.len(), 2)?;
    meter.made(text + &end)
}

fn parsed(value: &Value) -> Option<f64> {
    match value {
        Value::Str(text) => text.trim().replace('_', "").parse().ok(),
        other => other.number(),
    }
}

fn integer(value: &Value, given: &mut Given) -> Result<Value> {
    let default = given.take("default").unwrap_or(Value::Int(0));
    let base = given.take_integer("base")?.unwrap_or(10);
    let base = u32::try_from(base)
        .ok()
        .filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| Error::new("a base that is not between 2 and 36"))?;
    let whole = match value {
        Value::Str(text) => i64::from_str_radix(&text.trim().replace('_', ""), base).ok(),
        other => other.integer(),
    };
    let cut = |number: f64| (number.abs() < i64::MAX as f64).then_some(number as i64);
    let number = whole.or_else(|| parsed(value).and_then(cut));
    Ok(number.map_or(default, Value::Int))
}

fn rounded(value: &Value, given: &mut Given) -> Result<Value> {
    let precision = given.take_integer("precision")?.unwrap_or(0);
    let method = given.take_text("method")?;
    let wrong = || Error::new(format!("{} rounded", value.kind()));
    let number = value.number().ok_or_else(wrong)?;
    let scale = 10f64.powi(precision.clamp(-300, 300) as i32);
    Ok(match method.as_deref() {
        None | Some("common") => match (value, precision) {
            (Value::Float(number), 0..=300) => {
                let digits = format!("{number:.*}", precision as usize);
                Value::Float(digits.parse().unwrap_or(*number))
            }
            (Value::Float(number), _) => Value::Float((number * scale).round() / scale),
            (whole, _) => Value::Int(whole.integer().unwrap_or(0)),
        },
        Some("ceil") => Value::Float((number * scale).ceil() / scale),
        Some("floor") => Value::Float((number * scale).floor() / scale),
        Some(other) => return Err(Error::new(format!("the method {other:?}"))),
    })
}

/// JSON as `json.dumps` writes it, with nothing escaped for HTML and characters beyond ASCII as they are.
fn json(value: &Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let ascii = given.take_truth("ensure_ascii");
    let indent = match given.take("indent") {
        None | Some(Value::None) => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(other) => {
            let width = other
                .integer()
                .map(|width| usize::try_from(width).unwrap_or(0));
            let width = width.filter(|&width| width <= WIDEST);
            let wrong = || Error::new(format!("an indent, expected at most {WIDEST}"));
            Some(" ".repeat(width.ok_or_else(wrong)?))
        }
    };
    let (comma, colon) = match given.take("separators") {
        None | Some(Value::None) => {
            let comma = if indent.is_some() { "," } else { ", " };
            (comma.to_string(), ": ".to_string())
        }
        Some(separators) => match &separators.items(meter)?[..] {
            [Value::Str(comma), Value::Str(colon)] => (comma.to_string(), colon.to_string()),
            _ => return Err(Error::new("separators that are not two strings")),
        },
    };
    if [&comma, &colon]
        .iter()
        .any(|separator| separator.len() > WIDEST)
    {
        return Err(Error::new(format!("a separator longer than {WIDEST}")));
    }
    let style = JsonStyle {
        comma,
        colon,
        indent,
        ascii,
        sorted: given.take_truth("sort_keys"),
    };
    let mut out = Writer::new(meter);
    out.json(value, &style, 0)?;
    out.value()
}
