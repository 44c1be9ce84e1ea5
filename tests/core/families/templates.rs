//! Conversations as the chat template writes them, and what the tokenizer makes of that.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::model::Model;
use crate::support::json;

/// Every conversation of `golden/templates.json` is rendered as transformers renders it, and becomes the ids of tokenizer.json.
pub fn check(model: &Model, dir: &Path) {
    let template = model.template().expect("a chat template");
    let published = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let cases = json(&dir.join("golden/templates.json"));
    let cases: Vec<Map<String, Value>> = serde_json::from_value(cases).unwrap();
    assert!(!cases.is_empty(), "no conversations");
    for mut case in cases {
        let messages = case.remove("messages").unwrap();
        let text = case.remove("text").unwrap();
        let text = text.as_str().unwrap();
        let rendered = template.render_with(messages.as_array().unwrap(), &case);
        assert_eq!(rendered.unwrap(), text, "{messages}, {case:?}");

        let wanted = published.encode(text, false).unwrap();
        let got = model.tokenizer().encode(text).unwrap();
        assert_eq!(got, wanted.get_ids(), "ids of {text:?}");
    }
}
