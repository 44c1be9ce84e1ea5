//! Tokenizers as their files describe them: what trainers leave in them, and what they may cost.

use std::time::{Duration, Instant};

use inf_mllm::model::tokenizer::ChatTokenizer;
use proptest::prelude::*;
use serde_json::{json as object, Value};

use crate::support::{json, tiny_dir};

fn published() -> Value {
    json(&tiny_dir().join("tokenizer.json"))
}

fn made(json: Value) -> Result<ChatTokenizer, String> {
    let tokenizer = ChatTokenizer::from_json(json, "tokenizer.json".into());
    tokenizer.map_err(|error| error.to_string())
}

#[test]
fn cutting_and_filling_left_by_a_trainer_are_not_obeyed() {
    let text = "is there a red box in view? ".repeat(40);
    let expected = made(published()).unwrap().encode(&text).unwrap();
    let mut json = published();
    json["truncation"] = object!({
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
    });
    for length in [512_u64, 1 << 40] {
        json["padding"] = object!({
            "strategy": { "Fixed": length }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 2, "pad_type_id": 0,
            "pad_token": "<|im_end|>",
        });
        let tokenizer = made(json.clone()).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), expected);
        assert_eq!(tokenizer.encode_prompt("").unwrap(), [0; 0]);
    }
}

fn sequence(list: &str, steps: Vec<Value>) -> Value {
    let mut sequence = object!({ "type": "Sequence" });
    sequence[list] = steps.into();
    sequence
}

fn replace(pattern: Value, content: &str) -> Value {
    object!({ "type": "Replace", "pattern": pattern, "content": content })
}

#[test]
fn steps_that_make_too_much_of_a_text_are_refused_when_the_file_is_read() {
    let double = replace(object!({ "String": "a" }), "aa");
    let doubled = vec![double.clone(); 40];
    let mut nested = object!({ "type": "Lowercase" });
    for _ in 0..60 {
        nested = sequence("normalizers", vec![nested]);
    }
    let token = "x".repeat(40_000);
    for (field, value, word) in [
        (
            "normalizer",
            sequence("normalizers", doubled.clone()),
            "1024",
        ),
        (
            "normalizer",
            replace(object!({ "Regex": "a?" }), &token),
            "1024",
        ),
        (
            "normalizer",
            sequence("normalizers", vec![double; 100]),
            "64",
        ),
        ("normalizer", nested, "deeper"),
        (
            "normalizer",
            replace(object!({ "Regex": "a".repeat(20_000) }), ""),
            "pattern",
        ),
        ("decoder", sequence("decoders", doubled), "16"),
        (
            "added_tokens",
            object!([{ "id": 0, "content": "x".repeat(9 << 20) }]),
            "added_tokens",
        ),
    ] {
        let mut json = published();
        json[field] = value;
        let error = made(json).expect_err("it is made");
        assert!(
            error.contains("tokenizer.json") && error.contains(word),
            "{word}: {error}"
        );
    }
    let mut json = published();
    json["model"]["vocab"][token] = 302.into();
    assert!(made(json).unwrap_err().contains("token of 40000 bytes"));
}

#[test]
fn a_text_that_would_become_too_long_is_refused_and_others_are_not() {
    let mut json = published();
    json["normalizer"] = replace(object!({ "String": "a" }), &"a".repeat(1000));
    let tokenizer = made(json).unwrap();
    assert!(tokenizer.encode("a car").is_ok());
    let error = tokenizer
        .encode(&"a car ".repeat(10_000))
        .unwrap_err()
        .to_string();
    assert!(error.contains("60000 bytes"), "{error}");
    assert!(tokenizer.encode("a car").is_ok());
}

fn step() -> impl Strategy<Value = Value> {
    let size = || prop::sample::select(vec![0_u64, 1, 3, 1 << 20, u64::MAX]);
    let text = || {
        prop::sample::select(vec![
            "", "a", "▁", "ab", "(a*)*b", "(?=a)", "[", "\\p{N}", "é",
        ])
    };
    prop_oneof![
        prop::sample::select(vec![
            "NFC", "NFKD", "Lowercase", "ByteLevel", "Strip", "StripAccents", "Nmt", "BertNormalizer", "Digits", "Whitespace",
            "Punctuation", "ByteFallback", "Fuse", "CTC", "WordPiece", "BPEDecoder", "UnicodeScripts", "Unheard",
        ])
        .prop_map(|kind| object!({ "type": kind })),
        (text(), text()).prop_map(|(a, b)| replace(object!({ "String": a }), b)),
        (text(), text()).prop_map(|(a, b)| replace(object!({ "Regex": a }), b)),
        text().prop_map(|text| object!({ "type": "Prepend", "prepend": text })),
        text().prop_map(|text| object!({ "type": "Precompiled", "precompiled_charsmap": text })),
        (text(), size(), size()).prop_map(|(c, a, b)| object!({ "type": "Strip", "content": c, "start": a, "stop": b })),
        (size(), any::<bool>()).prop_map(|(n, b)| object!({ "type": "FixedLength", "length": n, "individual_digits": b })),
        (text(), any::<bool>()).prop_map(|(t, b)| {
            object!({ "type": "Split", "pattern": { "Regex": t }, "behavior": "Isolated", "invert": b })
        }),
        (text(), any::<bool>()).prop_map(|(t, b)| {
            object!({ "type": "Metaspace", "replacement": t, "prepend_scheme": if b { "always" } else { "first" }, "split": b })
        }),
        any::<bool>().prop_map(|b| {
            object!({ "type": "ByteLevel", "add_prefix_space": b, "trim_offsets": b, "use_regex": b })
        }),
        (text(), size()).prop_map(|(t, n)| {
            object!({
                "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": t, "type_id": 0 } }], "pair": [],
                "special_tokens": { "a": { "id": t, "ids": [n], "tokens": [t] } },
            })
        }),
        "[a-z\\[\\]{}\":0-9]{0,20}".prop_map(|text| serde_json::from_str(&text).unwrap_or(Value::Null)),
    ]
}

fn steps(list: &'static str) -> impl Strategy<Value = Value> {
    step().prop_recursive(3, 12, 4, move |inner| {
        prop::collection::vec(inner, 0..4).prop_map(move |steps| sequence(list, steps))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_tokenizer_file_says_ends_in_ids_or_an_error(
        normalizer in steps("normalizers"),
        cuts in steps("pretokenizers"),
        around in steps("processors"),
        decoder in steps("decoders"),
        which in 0..6_usize,
        model in prop::sample::select(vec!["BPE", "WordPiece", "WordLevel", "Unigram"]),
        text in "[ab ▁é1\n]{0,40}",
    ) {
        let mut json = published();
        let fields = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];
        for (i, (field, value)) in fields.iter().zip([normalizer, cuts, around, decoder]).enumerate() {
            if i == which || which == 4 {
                json[*field] = value;
            }
        }
        if which == 5 {
            json["model"]["type"] = model.into();
        }
        let began = Instant::now();
        if let Ok(tokenizer) = made(json) {
            for text in [text.as_str(), "", "a"] {
                if let Ok(ids) = tokenizer.encode_prompt(text) {
                    let _ = tokenizer.decode(&ids);
                    for id in ids {
                        let _ = tokenizer.decode(&[id]);
                    }
                }
            }
        }
        prop_assert!(began.elapsed() < Duration::from_secs(20));
    }
}
