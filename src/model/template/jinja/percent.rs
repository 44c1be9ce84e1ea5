//! Python's formatting with `%`.

use super::meter::{Error, Meter, Result};
use super::text::Writer;
use super::value::Value;

/// Widest field and longest fraction.
const WIDEST: usize = 1000;

/// How one value is put.
#[derive(Default)]
struct Field {
    left: bool,
    zeros: bool,
    plus: bool,
    blank: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`, where a tuple holds several.
pub fn formatted(format: &str, values: &Value, meter: &Meter) -> Result<Value> {
    let mut positional = match values {
        Value::List(list) if list.is_tuple => list.items.iter().collect::<Vec<_>>(),
        one => vec![one],
    }
    .into_iter();
    let mut by_name = false;
    let mut out = Writer::new(meter);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        meter.step()?;
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push("%")?;
            rest = after;
            continue;
        }
        let mut named = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            named = Some(name);
            rest = after;
        }
        let (field, kind, after) = field(rest)?;
        rest = after;
        let value = match (named, values) {
            (Some(name), Value::Dict(dict)) => {
                by_name = true;
                let missing = || Error::new(format!("the format wants {name:?}"));
                dict.get_name(name, meter)?.ok_or_else(missing)?
            }
            (Some(_), _) => return Err(Error::new("the format wants a dict")),
            (None, _) => positional
                .next()
                .ok_or_else(|| Error::new("not enough values for the format"))?,
        };
        put(&mut out, &field, kind, value, meter)?;
    }
    out.push(rest)?;
    let is_mapping = matches!(values, Value::Dict(_) | Value::List(_));
    let all_used = positional.next().is_none() || by_name;
    let unused_may_be = is_mapping && !matches!(values, Value::List(list) if list.is_tuple);
    if !all_used && !unused_may_be {
        return Err(Error::new("more values than the format wants"));
    }
    out.value()
}

/// What stands between the percent sign and the kind, the kind, and what follows.
fn field(text: &str) -> Result<(Field, char, &str)> {
    let mut field = Field::default();
    let mut rest = text;
    loop {
        match rest.as_bytes().first() {
            Some(b'-') => field.left = true,
            Some(b'0') => field.zeros = true,
            Some(b'+') => field.plus = true,
            Some(b' ') => field.blank = true,
            Some(b'#') => {}
            _ => break,
        }
        rest = &rest[1..];
    }
    let number = |rest: &mut &str| -> Result<usize> {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let (digits, after) = rest.split_at(end.unwrap_or(rest.len()));
        *rest = after;
        match digits {
            "" => Ok(0),
            digits => digits
                .parse()
                .ok()
                .filter(|&size| size <= WIDEST)
                .ok_or_else(|| {
                    Error::new(format!("a width of {digits}, expected at most {WIDEST}"))
                }),
        }
    };
    field.width = number(&mut rest)?;
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        field.precision = Some(number(&mut rest)?);
    }
    let Some(kind) = rest.chars().next() else {
        return Err(Error::new("a format that ends in a percent sign"));
    };
    Ok((field, kind, &rest[kind.len_utf8()..]))
}

fn put(out: &mut Writer, field: &Field, kind: char, value: &Value, meter: &Meter) -> Result<()> {
    let mut text = Writer::new(meter);
    let mut is_number = true;
    match kind {
        's' | 'r' | 'a' => {
            is_number = false;
            match kind {
                's' => text.plain(value)?,
                _ => text.repr(value)?,
            }
            if let Some(longest) = field.precision {
                text.text = text.text.chars().take(longest).collect();
            }
        }
        'c' => {
            is_number = false;
            let code = value.integer().and_then(|code| u32::try_from(code).ok());
            match (value, code.and_then(char::from_u32)) {
                (Value::Str(one), _) if one.chars().count() == 1 => text.push(one)?,
                (_, Some(c)) => text.push(c.encode_utf8(&mut [0; 4]))?,
                _ => return Err(Error::new("%c wants a character")),
            }
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let whole = match value {
                Value::Float(number) if kind != 'x' && kind != 'X' && kind != 'o' => {
                    (number.abs() < i64::MAX as f64).then_some(*number as i64)
                }
                other => other.integer(),
            };
            let wrong = || Error::new(format!("%{kind} wants a number, not {}", value.kind()));
            let number = whole.ok_or_else(wrong)?;
            let digits = match kind {
                'x' => format!("{:x}", number.unsigned_abs()),
                'X' => format!("{:X}", number.unsigned_abs()),
                'o' => format!("{:o}", number.unsigned_abs()),
                _ => number.unsigned_abs().to_string(),
            };
            let least = field.precision.unwrap_or(0);
            let zeros = "0".repeat(least.saturating_sub(digits.len()));
            text.push(&format!("{}{zeros}{digits}", sign(number < 0, field)))?;
        }
        'f' | 'F' | 'e' | 'E' => {
            let wrong = || Error::new(format!("%{kind} wants a number, not {}", value.kind()));
            let number = value.number().ok_or_else(wrong)?;
            let precision = field.precision.unwrap_or(6);
            let digits = match kind {
                _ if !number.is_finite() => super::text::float(number.abs()),
                'f' | 'F' => format!("{:.precision$}", number.abs()),
                _ => exponential(number.abs(), precision),
            };
            let negative = number.is_sign_negative() && !number.is_nan();
            text.push(&format!("{}{digits}", sign(negative, field)))?;
        }
        other => return Err(Error::new(format!("%{other} is no format that is read"))),
    }
    let text = text.text;
    let missing = field.width.saturating_sub(text.chars().count());
    match (field.left, field.zeros && is_number) {
        (true, _) => {
            out.push(&text)?;
            out.push(&" ".repeat(missing))
        }
        (false, true) => {
            let digits = text.trim_start_matches(['-', '+', ' ']);
            out.push(&text[..text.len() - digits.len()])?;
            out.push(&"0".repeat(missing))?;
            out.push(digits)
        }
        (false, false) => {
            out.push(&" ".repeat(missing))?;
            out.push(&text)
        }
    }
}

fn sign(negative: bool, field: &Field) -> &'static str {
    match (negative, field.plus, field.blank) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (_, _, true) => " ",
        _ => "",
    }
}

/// With an exponent of at least two digits.
fn exponential(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}
