//! Methods of Python's strings.

use super::given::Given;
use super::meter::{Error, Meter, Result};
use super::text::Writer;
use super::value::{Value, SLOT};

/// What the method says; nothing if there is none of this name.
pub fn call(text: &str, name: &str, mut given: Given, meter: &Meter) -> Result<Option<Value>> {
    let all = |holds: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(holds));
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = given.take_text("chars")?;
            let stripped = stripped(text, chars.as_deref(), name != "rstrip", name != "lstrip");
            meter.text(stripped)?
        }
        "upper" => meter.made(text.to_uppercase())?,
        "lower" | "casefold" => meter.made(text.to_lowercase())?,
        "title" => meter.made(title(text))?,
        "capitalize" => meter.made(capitalized(text))?,
        "swapcase" => meter.made(swapped(text))?,
        "startswith" | "endswith" => {
            let parts = match given.expect("prefix")? {
                Value::List(list) if list.is_tuple => list.items.clone(),
                one => vec![one],
            };
            let mut found = false;
            for part in &parts {
                let Some(part) = part.as_str() else {
                    return Err(Error::new(format!("{} instead of a string", part.kind())));
                };
                meter.spend_many(part.len(), 1)?;
                found |= match name {
                    "startswith" => text.starts_with(part),
                    _ => text.ends_with(part),
                };
            }
            Value::Bool(found)
        }
        "removeprefix" => {
            let part = given.expect_text("prefix")?;
            meter.text(text.strip_prefix(&*part).unwrap_or(text))?
        }
        "removesuffix" => {
            let part = given.expect_text("suffix")?;
            let rest = text.strip_suffix(&*part).filter(|_| !part.is_empty());
            meter.text(rest.unwrap_or(text))?
        }
        "replace" => {
            let old = given.expect_text("old")?;
            let new = given.expect_text("new")?;
            let count = given.take_integer("count")?;
            meter.made(replaced(text, &old, &new, count, meter)?)?
        }
        "split" | "rsplit" => {
            let separator = given.take_text("sep")?;
            let most = given.take_integer("maxsplit")?;
            split(text, separator.as_deref(), most, name == "rsplit", meter)?
        }
        "splitlines" => {
            let keep = given.take_truth("keepends");
            let lines = lines(text).into_iter();
            strings(
                lines.map(|(line, end)| if keep { end } else { line }),
                meter,
            )?
        }
        "partition" | "rpartition" => {
            let separator = given.expect_text("sep")?;
            let found = match name {
                "partition" => text.split_once(&*separator),
                _ => text.rsplit_once(&*separator),
            };
            let parts = match (found, name) {
                (Some((before, after)), _) => [before, &*separator, after],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            let parts = parts.map(|part| meter.text(part));
            meter.tuple(parts.into_iter().collect::<Result<Vec<_>>>()?)?
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let part = given.expect_text("sub")?;
            let at = match name {
                "find" | "index" => text.find(&*part),
                _ => text.rfind(&*part),
            };
            let place = at.map(|at| text[..at].chars().count() as i64);
            match (name, place) {
                ("count", _) => Value::Int(text.matches(&*part).count() as i64),
                (_, Some(place)) => Value::Int(place),
                ("find" | "rfind", None) => Value::Int(-1),
                (_, None) => return Err(Error::new("it is not in the string")),
            }
        }
        "join" => {
            let mut joined = Writer::new(meter);
            for (i, item) in given.expect("iterable")?.items(meter)?.iter().enumerate() {
                let Some(item) = item.as_str() else {
                    return Err(Error::new(format!("{} instead of a string", item.kind())));
                };
                joined.push(if i == 0 { "" } else { text })?;
                joined.push(item)?;
            }
            joined.value()?
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let width = given.take_integer("width")?.unwrap_or(0);
            let fill = given.take_text("fillchar")?.unwrap_or_else(|| " ".into());
            meter.made(padded(text, name, width, &fill, meter)?)?
        }
        "format" => {
            let formatted = formatted(text, &given, meter)?;
            return Ok(Some(formatted));
        }
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(char::is_whitespace),
        "isascii" => Value::Bool(text.is_ascii()),
        "isupper" => cased(text, char::is_uppercase, char::is_lowercase),
        "islower" => cased(text, char::is_lowercase, char::is_uppercase),
        _ => return Ok(None),
    };
    given.done()?;
    Ok(Some(result))
}

/// Whether there are letters of the wanted case and none of the other.
fn cased(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> Value {
    Value::Bool(text.chars().any(wanted) && !text.chars().any(other))
}

/// Without blanks, or without any of `chars`, at the ends that are named.
pub fn stripped<'t>(text: &'t str, chars: Option<&str>, start: bool, end: bool) -> &'t str {
    let goes = |c: char| match chars {
        None => c.is_whitespace(),
        Some(chars) => chars.contains(c),
    };
    let text = if start {
        text.trim_start_matches(goes)
    } else {
        text
    };
    if end {
        text.trim_end_matches(goes)
    } else {
        text
    }
}

/// Every run of letters with one large letter in front.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => titled.extend(c.to_lowercase()),
            false => titled.push_str(&large(c)),
        }
        inside = c.is_alphabetic();
    }
    titled
}

/// A letter as the first of a word: of several that stand for it, only the first is large.
pub fn large(letter: char) -> String {
    let mut letters = letter.to_uppercase();
    let first = letters.next().into_iter().collect::<String>();
    first + &letters.collect::<String>().to_lowercase()
}

/// One large letter in front, the others small.
pub fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => large(first) + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

fn swapped(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_uppercase() {
            true => swapped.extend(c.to_lowercase()),
            false => swapped.extend(c.to_uppercase()),
        }
    }
    swapped
}

/// With `new` in the place of the first `count` places of `old`; of all where there is none or it is negative.
pub fn replaced(
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
    meter: &Meter,
) -> Result<String> {
    meter.spend_many(text.len(), 2)?;
    let most = count.and_then(|count| usize::try_from(count).ok());
    let most = most.unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(most);
    meter.spend_many(found, 2 * new.len() as u64)?;
    Ok(text.replacen(old, new, most))
}

/// Lines without and with their ends.
pub fn lines(text: &str) -> Vec<(&str, &str)> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push((rest, rest));
            break;
        };
        let end = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push((&rest[..at], &rest[..at + end]));
        rest = &rest[at + end..];
    }
    lines
}

fn strings<'t>(parts: impl Iterator<Item = &'t str>, meter: &Meter) -> Result<Value> {
    let mut items = Vec::new();
    for part in parts {
        items.push(meter.text(part)?);
    }
    meter.list(items)
}

fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<i64>,
    from_end: bool,
    meter: &Meter,
) -> Result<Value> {
    let most = most.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX - 1);
    let Some(separator) = separator else {
        return split_at_blanks(text, most, from_end, meter);
    };
    if separator.is_empty() {
        return Err(Error::new("an empty separator"));
    }
    if !from_end {
        return strings(text.splitn(most + 1, separator), meter);
    }
    meter.spend_many(text.len(), SLOT)?;
    let mut parts = text.rsplitn(most + 1, separator).collect::<Vec<_>>();
    parts.reverse();
    strings(parts.into_iter(), meter)
}

/// Runs of blanks are one border, and none is kept at the ends, except at the end that is not reached.
fn split_at_blanks(text: &str, most: usize, from_end: bool, meter: &Meter) -> Result<Value> {
    meter.spend_many(text.len(), SLOT)?;
    let mut parts = Vec::new();
    let mut rest = match from_end {
        false => text.trim_start(),
        true => text.trim_end(),
    };
    while !rest.is_empty() {
        let border = match from_end {
            false => rest.find(char::is_whitespace),
            true => rest.rfind(char::is_whitespace),
        };
        match border {
            Some(at) if parts.len() < most => {
                let blank = rest[at..].chars().next().map_or(1, char::len_utf8);
                let (before, after) = (&rest[..at], &rest[at + blank..]);
                match from_end {
                    false => {
                        parts.push(before);
                        rest = after.trim_start();
                    }
                    true => {
                        parts.push(after);
                        rest = before.trim_end();
                    }
                }
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    strings(parts.into_iter(), meter)
}

/// Filled up to `width` characters.
pub fn padded(text: &str, how: &str, width: i64, fill: &str, meter: &Meter) -> Result<String> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    if fill.chars().count() != 1 {
        return Err(Error::new(
            "something to fill with that is not one character",
        ));
    }
    meter.spend_many(missing, 2 * fill.len() as u64)?;
    let filled = |count: usize| fill.repeat(count);
    Ok(match how {
        "ljust" => format!("{text}{}", filled(missing)),
        "rjust" => format!("{}{text}", filled(missing)),
        "zfill" => {
            let digits = text.trim_start_matches(['-', '+']);
            let sign = &text[..text.len() - digits.len()];
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", filled(left), filled(missing - left))
        }
    })
}

/// `str.format` with fields that are names or numbers alone.
fn formatted(text: &str, given: &Given, meter: &Meter) -> Result<Value> {
    let mut out = Writer::new(meter);
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push(&rest[..at])?;
        let doubled = rest[at..].starts_with("{{") || rest[at..].starts_with("}}");
        if doubled {
            out.push(&rest[at..at + 1])?;
            rest = &rest[at + 2..];
            continue;
        }
        let field = rest[at..]
            .strip_prefix('{')
            .and_then(|field| field.split_once('}'));
        let Some((field, after)) = field else {
            return Err(Error::new("a bracket that is not closed"));
        };
        rest = after;
        let value = match field.parse::<usize>() {
            Ok(number) => given.positional.get(number),
            Err(_) if field.is_empty() => {
                next += 1;
                given.positional.get(next - 1)
            }
            Err(_) => {
                let named = given.named.iter().find(|(name, _)| &**name == field);
                named.map(|(_, value)| value)
            }
        };
        let missing = || Error::new(format!("the field {{{field}}} cannot be filled"));
        out.plain(value.ok_or_else(missing)?)?;
    }
    out.push(rest)?;
    out.value()
}
