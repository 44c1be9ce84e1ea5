//! Chat templates: what they make of conversations, held against transformers (tests/golden/make_templates.py), and what they may cost.
//!
//! - this file: the language
//! - `bounds`: what templates may cost
//! - `checkpoints`: where a checkpoint's template and its tokens are found, and what the stream takes of it

mod bounds;
mod checkpoints;

use std::fs;

use inf_mllm::model::template::ChatTemplate;
use serde::Deserialize;
use serde_yaml::Mapping;

use crate::support::{golden, json};

fn parse(source: &str) -> Result<ChatTemplate, String> {
    let template = ChatTemplate::parse(source, "chat_template.jinja".into());
    template.map_err(|error| error.to_string())
}

fn render(source: &str, variables: &Mapping) -> Result<String, String> {
    let messages = variables["messages"].as_sequence().unwrap();
    let rendered = parse(source)?.render_with(messages, variables);
    rendered.map_err(|error| error.to_string())
}

/// What the golden templates know, every field in its place.
fn variables() -> Mapping {
    #[derive(Deserialize)]
    struct Golden {
        variables: Mapping,
    }
    let text = fs::read_to_string(golden("templates.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().variables
}

#[test]
fn templates_make_what_they_make_in_transformers() {
    let cases = json(&golden("templates.json"))["cases"].clone();
    let cases = cases.as_array().unwrap();
    let variables = variables();
    let mut wrong = Vec::new();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        let rendered = render(source, &variables);
        if rendered.as_deref().ok() != case["text"].as_str() {
            wrong.push(format!("{source:?}\n  {rendered:?}\n  {:?}", case["text"]));
        }
    }
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} of {}:\n{}",
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_time_is_told_in_the_notation_of_strftime() {
    let text = render("{{ strftime_now('%Y') }}", &variables()).unwrap();
    assert!(
        text.len() == 4 && text.bytes().all(|c| c.is_ascii_digit()),
        "{text}"
    );
}

#[test]
fn errors_name_file_line_and_cause() {
    for (source, words) in [
        ("a\n{% if x %}", ["line 2", "endif"]),
        (
            "\n\n{{ raise_exception('no system turns') }}",
            ["line 3", "no system turns"],
        ),
        ("{{ word | shout }}", ["line 1", "shout"]),
        ("{{ nobody.name }}", ["line 1", "nobody is undefined"]),
        ("{% include 'other' %}", ["line 1", "include"]),
    ] {
        let error = render(source, &variables()).unwrap_err();
        for word in ["chat_template.jinja"].iter().chain(&words) {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}
