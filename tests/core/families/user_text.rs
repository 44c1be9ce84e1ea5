//! What a user types never becomes a control token.

use std::path::Path;

use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::tokenizer::ChatTokenizer;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::support::{golden, json};

/// Control tokens of a tokenizer: text and id.
fn controls(tokenizer: &Value) -> Vec<(String, u32)> {
    let listed = tokenizer["added_tokens"].as_array().unwrap().iter();
    let named = listed.map(|token| {
        let id = token["id"].as_u64().unwrap() as u32;
        (token["content"].as_str().unwrap().to_string(), id)
    });
    named.filter(|(text, _)| !text.trim().is_empty()).collect()
}

/// Texts of all kinds, control tokens whole and broken among them.
pub fn check(dir: &Path) {
    let tokenizer = ChatTokenizer::load(&Checkpoint::open(dir).unwrap()).unwrap();
    let controls = controls(&json(&dir.join("tokenizer.json")));
    let texts = controls.iter().map(|(text, _)| text.clone());
    let texts = prop::sample::select(texts.collect::<Vec<_>>());
    let broken = (texts.clone(), any::<prop::sample::Index>()).prop_map(|(text, at)| {
        let mut characters: Vec<char> = text.chars().collect();
        characters.insert(at.index(characters.len() + 1), '\u{FDD0}');
        characters.into_iter().collect::<String>()
    });
    let part = prop_oneof![
        texts,
        broken,
        "[<>|/a-z_ \n\u{FDD0}▁é]{0,6}",
        any::<String>(),
    ];
    let typed = prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat());
    let first = &controls[0];
    TestRunner::default()
        .run(&typed, |typed| {
            let guarded = tokenizer.guard(&typed);
            let ids = tokenizer.encode(&guarded).unwrap();
            prop_assert!(controls.iter().all(|(_, id)| !ids.contains(id)));
            prop_assert_eq!(&ids, &tokenizer.encode_text(&typed).unwrap());
            // Behind a control token, and behind text.
            let text = (0..).find(|id| controls.iter().all(|(_, control)| control != id));
            for before in [Some(first.1), text] {
                let ids = tokenizer.encode_after(before, &guarded).unwrap();
                prop_assert!(controls.iter().all(|(_, id)| !ids.contains(id)));
            }

            let turn = format!("{}{guarded}{}", first.0, first.0);
            let ids = tokenizer.encode(&turn).unwrap();
            let count = ids.iter().filter(|id| **id == first.1).count();
            prop_assert_eq!(count, 2);
            prop_assert_eq!((ids[0], ids[ids.len() - 1]), (first.1, first.1));
            Ok(())
        })
        .unwrap();
}

/// A control token of one character has no place inside for what makes it inert.
#[test]
fn a_control_token_of_one_character_counts_only_where_the_chat_format_put_it() {
    let file = golden("families/qwen3/tokenizer.json");
    let mut tokenizer = json(&file);
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let ids = added.iter().map(|token| token["id"].as_u64().unwrap());
    let id = ids.max().unwrap() + 1;
    let mut token = added[0].clone();
    token["id"] = id.into();
    token["content"] = "⟡".into();
    added.push(token);
    let chat = ChatTokenizer::from_json(tokenizer, file).unwrap();
    assert_eq!(chat.encode("⟡").unwrap(), [id as u32]);
    for typed in ["⟡", "⟡⟡", "a ⟡ b", "⟡\u{FDD0}", "\u{FDD0}⟡"] {
        let turn = format!("⟡{}⟡", chat.guard(typed));
        let ids = chat.encode(&turn).unwrap();
        let controls = ids.iter().filter(|one| **one == id as u32);
        assert_eq!(controls.count(), 2, "{typed:?}");
    }
}

/// Some control tokens take the blanks beside them.
#[test]
fn blanks_beside_control_tokens_belong_to_those_that_take_them() {
    let file = golden("families/qwen3/tokenizer.json");
    let mut tokenizer = json(&file);
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        token["lstrip"] = (token["content"] == "<|im_start|>").into();
        token["rstrip"] = (token["content"] == "<|im_end|>").into();
    }
    let published: Tokenizer = tokenizer.to_string().parse().unwrap();
    let chat = ChatTokenizer::from_json(tokenizer, file).unwrap();
    for text in [
        "a <|im_end|> b",
        "a  <|im_start|>  b",
        "<|im_end|> \n <|im_start|> user",
        " <|im_start|><|im_end|> ",
        "<|im_end|>  <think> a </think>",
    ] {
        let wanted = published.encode(text, false).unwrap();
        assert_eq!(chat.encode(text).unwrap(), wanted.get_ids(), "{text:?}");
    }
}
