//! What chat templates expect of the Python that they were written for.

use std::io;

use jiff::Zoned;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Methods of Python's strings, lists and dicts, and the functions that transformers adds to Jinja's.
pub fn add_to(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(unknown_method_callback);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in the notation of strftime.
fn strftime_now(format: String) -> Result<String, Error> {
    let fail = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    jiff::fmt::strtime::format(&format, &Zoned::now()).map_err(fail)
}

/// JSON as Python's `json.dumps` spaces it, with nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = match indent {
        None => dump(&value, Spaced)?,
        Some(count) => {
            let indent = " ".repeat(count.min(LARGEST_INDENT));
            dump(&value, PrettyFormatter::with_indent(indent.as_bytes()))?
        }
    };
    Ok(Value::from_safe_string(match ascii {
        Some(true) => escaped(&json),
        _ => json,
    }))
}

const LARGEST_INDENT: usize = 16;

fn dump<F: Formatter>(value: &Value, formatter: F) -> Result<String, Error> {
    let fail = |what: String| Error::new(ErrorKind::BadSerialization, what);
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| fail(error.to_string()))
}

/// One line with spaces behind commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Every character beyond ASCII as its UTF-16 units.
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => ascii.push(c),
            false => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    ascii
}

/// A template without its tags `generation` and `endgeneration`, which mark for training what an assistant has said and render
/// as nothing: conditions that always hold take their place, so that the blanks around them are treated as before.
pub fn without_generation_tags(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let end = tag.find("%}").unwrap_or(tag.len());
        plain.push_str(before);
        let (name, instead) = match tag[2..end].trim_matches(['-', '+']).trim() {
            "generation" => ("generation", "if true"),
            "endgeneration" => ("endgeneration", "endif"),
            _ => ("", ""),
        };
        plain.push_str(&match name {
            "" => tag[..end].to_string(),
            name => tag[..end].replace(name, instead),
        });
        rest = &tag[end..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut env = Environment::new();
        add_to(&mut env);
        let source = without_generation_tags(source);
        env.render_str(&source, ()).unwrap()
    }

    #[test]
    fn json_is_spaced_as_python_does_it_and_not_escaped_for_html() {
        let value = "{'a': [1, 2.5, none, true], 'b': '<é>'}";
        assert_eq!(
            render(&format!("{{{{ {value} | tojson }}}}")),
            r#"{"a": [1, 2.5, null, true], "b": "<é>"}"#
        );
        assert_eq!(
            render("{{ {'a': [1]} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1\n  ]\n}"
        );
        assert_eq!(
            render("{{ 'é𝄞' | tojson(ensure_ascii=true) }}"),
            r#""\u00e9\ud834\udd1e""#
        );
    }

    #[test]
    fn tags_around_what_the_assistant_says_leave_nothing_behind() {
        assert_eq!(
            render("a {%- generation -%} b {%- endgeneration %} c {% if true %}d{% endif %}"),
            "ab c d"
        );
    }

    #[test]
    fn the_time_is_told_in_the_notation_of_strftime() {
        let year = Zoned::now().strftime("%Y").to_string();
        assert_eq!(render("{{ strftime_now('%Y') }}"), year);
    }
}
