//! Values as text: what Python's `str` and `repr` write, and JSON.

use super::meter::{Error, Meter, Result};
use super::value::Value;

/// How JSON is written.
pub struct JsonStyle {
    /// Between items.
    pub comma: String,
    /// Behind a key.
    pub colon: String,
    /// One level, where every item has its line.
    pub indent: Option<String>,
    pub ascii: bool,
    pub sorted: bool,
}

/// Text that is paid for while it grows.
pub struct Writer<'m> {
    pub text: String,
    meter: &'m Meter,
}

impl<'m> Writer<'m> {
    pub fn new(meter: &'m Meter) -> Self {
        Self {
            text: String::new(),
            meter,
        }
    }

    pub fn push(&mut self, text: &str) -> Result<()> {
        // A string that grows takes up to twice its length.
        self.meter.spend_many(text.len(), 2)?;
        self.text.push_str(text);
        Ok(())
    }

    /// The text as a value.
    pub fn value(self) -> Result<Value> {
        self.meter.made(self.text)
    }

    /// What Python's `str` says.
    pub fn plain(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Undefined(_) => Ok(()),
            Value::Str(text) => self.push(text),
            other => self.repr(other),
        }
    }

    /// What Python's `repr` says.
    pub fn repr(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Undefined(_) => self.push("Undefined"),
            Value::None => self.push("None"),
            Value::Bool(true) => self.push("True"),
            Value::Bool(false) => self.push("False"),
            Value::Int(number) => self.push(&number.to_string()),
            Value::Float(number) => self.push(&float(*number)),
            Value::Str(text) => self.quoted(text),
            Value::List(list) => {
                let (open, close) = match (list.is_tuple, list.items.len()) {
                    (true, 1) => ("(", ",)"),
                    (true, _) => ("(", ")"),
                    (false, _) => ("[", "]"),
                };
                self.push(open)?;
                self.meter.enter()?;
                for (i, item) in list.items.iter().enumerate() {
                    self.push(if i == 0 { "" } else { ", " })?;
                    self.repr(item)?;
                }
                self.meter.leave();
                self.push(close)
            }
            Value::Dict(dict) => {
                self.push("{")?;
                self.meter.enter()?;
                for (i, (key, item)) in dict.pairs.iter().enumerate() {
                    self.push(if i == 0 { "" } else { ", " })?;
                    self.repr(key)?;
                    self.push(": ")?;
                    self.repr(item)?;
                }
                self.meter.leave();
                self.push("}")
            }
            other => Err(Error::new(format!("{} as text", other.kind()))),
        }
    }

    fn quoted(&mut self, text: &str) -> Result<()> {
        let quote = match text.contains('\'') && !text.contains('"') {
            true => '"',
            false => '\'',
        };
        let mut buffer = [0; 4];
        self.push(quote.encode_utf8(&mut buffer))?;
        for c in text.chars() {
            match c {
                '\n' => self.push("\\n")?,
                '\r' => self.push("\\r")?,
                '\t' => self.push("\\t")?,
                '\\' => self.push("\\\\")?,
                c if c == quote => {
                    self.push("\\")?;
                    self.push(c.encode_utf8(&mut buffer))?;
                }
                c if u32::from(c) < 0x20 || (0x7f..0xa1).contains(&u32::from(c)) => {
                    self.push(&format!("\\x{:02x}", u32::from(c)))?;
                }
                c => self.push(c.encode_utf8(&mut buffer))?,
            }
        }
        self.push(quote.encode_utf8(&mut buffer))
    }

    /// What Python's `json.dumps` says; `level` is the number of lists and dicts around the value.
    pub fn json(&mut self, value: &Value, style: &JsonStyle, level: usize) -> Result<()> {
        match value {
            Value::None => self.push("null"),
            Value::Bool(true) => self.push("true"),
            Value::Bool(false) => self.push("false"),
            Value::Int(number) => self.push(&number.to_string()),
            Value::Float(number) => self.push(&json_float(*number)),
            Value::Str(text) => self.json_string(text, style.ascii),
            Value::List(list) if list.items.is_empty() => self.push("[]"),
            Value::Dict(dict) if dict.pairs.is_empty() => self.push("{}"),
            Value::List(list) => {
                self.push("[")?;
                self.meter.enter()?;
                for (i, item) in list.items.iter().enumerate() {
                    self.json_break(style, i, level + 1)?;
                    self.json(item, style, level + 1)?;
                }
                self.meter.leave();
                self.json_end(style, level)?;
                self.push("]")
            }
            Value::Dict(dict) => {
                let mut pairs = dict.pairs.iter().collect::<Vec<_>>();
                if style.sorted {
                    pairs = sorted(pairs, |a, b| a.0.less(&b.0, self.meter))?;
                }
                self.push("{")?;
                self.meter.enter()?;
                for (i, (key, item)) in pairs.into_iter().enumerate() {
                    self.json_break(style, i, level + 1)?;
                    self.json_key(key, style)?;
                    self.push(&style.colon)?;
                    self.json(item, style, level + 1)?;
                }
                self.meter.leave();
                self.json_end(style, level)?;
                self.push("}")
            }
            other => Err(Error::new(format!("{} as JSON", other.kind()))),
        }
    }

    /// Between the bracket or the item `i` - 1 and the item `i`.
    fn json_break(&mut self, style: &JsonStyle, i: usize, level: usize) -> Result<()> {
        if i > 0 {
            self.push(&style.comma)?;
        }
        self.json_line(style, level)
    }

    fn json_end(&mut self, style: &JsonStyle, level: usize) -> Result<()> {
        self.json_line(style, level)
    }

    fn json_line(&mut self, style: &JsonStyle, level: usize) -> Result<()> {
        if let Some(indent) = &style.indent {
            self.push("\n")?;
            for _ in 0..level {
                self.push(indent)?;
            }
        }
        Ok(())
    }

    /// Keys are strings in JSON.
    fn json_key(&mut self, key: &Value, style: &JsonStyle) -> Result<()> {
        if let Value::Str(text) = key {
            return self.json_string(text, style.ascii);
        }
        self.push("\"")?;
        self.json(key, style, 0)?;
        self.push("\"")
    }

    fn json_string(&mut self, text: &str, ascii: bool) -> Result<()> {
        self.push("\"")?;
        let mut buffer = [0; 4];
        for c in text.chars() {
            match c {
                '"' => self.push("\\\"")?,
                '\\' => self.push("\\\\")?,
                '\n' => self.push("\\n")?,
                '\r' => self.push("\\r")?,
                '\t' => self.push("\\t")?,
                '\u{8}' => self.push("\\b")?,
                '\u{c}' => self.push("\\f")?,
                c if u32::from(c) < 0x20 || (ascii && u32::from(c) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => self.push(c.encode_utf8(&mut buffer))?,
            }
        }
        self.push("\"")
    }
}

/// What Python's `repr` says of a float.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_string();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{number:e}");
    let exponent = scientific
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse::<i32>().ok());
    match (exponent, scientific.split_once('e')) {
        (Some(exponent), Some((digits, _))) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = number.to_string();
            match plain.contains('.') {
                true => plain,
                false => format!("{plain}.0"),
            }
        }
    }
}

fn json_float(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_string(),
        f64::INFINITY => "Infinity".to_string(),
        f64::NEG_INFINITY => "-Infinity".to_string(),
        _ => float(number),
    }
}

/// In order, equals as they came. The order may fail and need not be one.
pub fn sorted<T>(items: Vec<T>, mut less: impl FnMut(&T, &T) -> Result<bool>) -> Result<Vec<T>> {
    let mut runs = items.into_iter().map(|item| vec![item]).collect::<Vec<_>>();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(left) = pairs.next() {
            merged.push(match pairs.next() {
                Some(right) => merge(left, right, &mut less)?,
                None => left,
            });
        }
        runs = merged;
    }
    Ok(runs.pop().unwrap_or_default())
}

fn merge<T>(
    left: Vec<T>,
    right: Vec<T>,
    less: &mut impl FnMut(&T, &T) -> Result<bool>,
) -> Result<Vec<T>> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut left = left.into_iter().peekable();
    let mut right = right.into_iter().peekable();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = match less(b, a)? {
            true => right.next(),
            false => left.next(),
        };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}
