//! The list of parameters as Markdown, as a parameter file, as JSON and as plain text.

use serde_json::json;

use super::NodeConfig;
use crate::cache::parameter::{Kind, Parameter, Parameters, Settable};

/// Columns of a comment in the parameter file.
const WIDTH: usize = 120;

/// The parameters of each section, in order.
fn sections() -> Vec<(&'static str, Vec<Parameter>)> {
    let mut sections: Vec<(_, Vec<_>)> = Vec::new();
    for parameter in NodeConfig::list() {
        match sections.last_mut() {
            Some((name, list)) if *name == parameter.section => list.push(parameter),
            _ => sections.push((parameter.section, vec![parameter])),
        }
    }
    sections
}

/// Tables for `docs/parameters.md`.
pub fn markdown() -> String {
    let mut text = String::new();
    for (section, list) in sections() {
        text += &format!(
            "### {section}\n\n| name | default | range | unit | settable | effect |\n|---|---|---|---|---|---|\n"
        );
        for parameter in list {
            let settable = match parameter.settable {
                Settable::Start => "at the start",
                Settable::Unconfigured => "while unconfigured",
                Settable::Running => "**at any time**",
                Settable::Reset => "**for the next reset**",
            };
            text += &format!(
                "| `{}` | `{}` | {} | {} | {settable} | {} |\n",
                parameter.name,
                parameter.default,
                parameter.kind,
                parameter.unit,
                parameter.effect()
            );
        }
        text += "\n";
    }
    text
}

/// `config/inf_mllm.yaml`: every parameter with its default.
pub fn yaml() -> String {
    let mut text = "# Every parameter of the node with its default, as `inf_mllm parameters --yaml` prints them; docs/parameters.md has them as\n\
                    # a table.\n/**:\n  ros__parameters:\n"
        .to_string();
    for (i, (section, list)) in sections().into_iter().enumerate() {
        if i > 0 {
            text += "\n";
        }
        text += &format!("    # ---- {section} ----\n\n");
        for parameter in list {
            for line in [parameter.effect(), limits(&parameter)]
                .iter()
                .flat_map(|line| wrapped(line))
            {
                text += &format!("    # {line}\n");
            }
            text += &format!("    {}: {}\n", parameter.name, parameter.default);
        }
    }
    text
}

/// A sentence of what the value may be and when it can be set, as far as that has to be said.
fn limits(parameter: &Parameter) -> String {
    let mut said = match parameter.kind {
        Kind::Text | Kind::Flag | Kind::Texts => String::new(),
        _ => format!("Expects {}", parameter.kind),
    };
    if !parameter.unit.is_empty() {
        said += &format!(" ({})", parameter.unit);
    }
    if !said.is_empty() {
        said += ". ";
    }
    if matches!(parameter.settable, Settable::Running | Settable::Reset) {
        said += &format!("Can be set {}.", parameter.settable.about());
    }
    said
}

/// One object per parameter, with everything that is known of it.
pub fn json() -> serde_json::Value {
    let described = NodeConfig::list().into_iter().map(|parameter| {
        let (kind, range, choices) = match &parameter.kind {
            Kind::Flag => ("bool", None, None),
            Kind::Text => ("string", None, None),
            Kind::Choice(names) => ("string", None, Some(json!(names))),
            Kind::Integer(range) => ("integer", Some(json!([range.start(), range.end()])), None),
            Kind::Number(range) => ("double", Some(json!([range.start(), range.end()])), None),
            Kind::Numbers(range) => (
                "double_array",
                Some(json!([range.start(), range.end()])),
                None,
            ),
            Kind::Texts => ("string_array", None, None),
        };
        json!({
            "name": parameter.name,
            "about": parameter.about,
            "section": parameter.section,
            "unit": parameter.unit,
            "type": kind,
            "range": range,
            "choices": choices,
            "expected": parameter.kind.to_string(),
            "default": serde_json::Value::from(&parameter.default),
            "read_by": parameter.readers,
            "settable": match parameter.settable {
                Settable::Start => "start",
                Settable::Unconfigured => "unconfigured",
                Settable::Running => "running",
                Settable::Reset => "reset",
            },
        })
    });
    described.collect()
}

/// For a terminal.
pub fn plain() -> String {
    let mut text = String::new();
    for (section, list) in sections() {
        text += &format!("{section}\n\n");
        for parameter in list {
            text += &format!("  {} = {}", parameter.name, parameter.default);
            if !parameter.unit.is_empty() {
                text += &format!(" ({})", parameter.unit);
            }
            let facts = format!("{}; set {}", parameter.kind, parameter.settable.about());
            text += &format!("\n      {facts}\n");
            for line in wrapped(&parameter.effect()) {
                text += &format!("      {line}\n");
            }
        }
        text += "\n";
    }
    text
}

/// A text in lines of at most [`WIDTH`] columns.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}
