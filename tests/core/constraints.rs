//! Answers that are text of a grammar.

use inf_mllm::model::constraint::{Constraints, MAX_GRAMMAR_BYTES};
use inf_mllm::stream::{Answer, FinishReason, GrammarKind, Instruction, Session, TextGrammar};
use serde_json::{json, Value};

use crate::failures::{seen, show};
use crate::steps::kernels;
use crate::support::{demo_dir, instruction, load, tiny_config, tiny_dir, tiny_session};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::threads::thread_pool;

fn of(kind: GrammarKind, text: &str) -> Instruction {
    Instruction {
        grammar: Some(TextGrammar {
            kind,
            text: text.to_string(),
        }),
        max_new_tokens: 200,
        ephemeral: true,
        ..instruction("g", "What is in view?")
    }
}

fn schema(schema: &Value) -> Instruction {
    of(GrammarKind::JsonSchema, &schema.to_string())
}

fn ask(session: &mut Session, instruction: &Instruction) -> Answer {
    session.ask(instruction, &|| false, &mut |_| ())
}

/// What a grasp planner might want.
fn object() -> Value {
    json!({
        "type": "object",
        "properties": {
            "object": { "type": "string", "maxLength": 12 },
            "side": { "enum": ["left", "center", "right"] },
            "metres": { "type": "integer", "minimum": 0, "maximum": 99 },
            "seen": { "type": "array", "items": { "type": "boolean" }, "maxItems": 3 },
        },
        "required": ["object", "side", "metres", "seen"],
        "additionalProperties": false,
    })
}

fn assert_is_object(text: &str) {
    let answer: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let fields = answer.as_object().unwrap();
    assert_eq!(fields.len(), 4, "{text}");
    assert!(
        answer["object"].as_str().unwrap().chars().count() <= 12,
        "{text}"
    );
    assert!(["left", "center", "right"].contains(&answer["side"].as_str().unwrap()));
    assert!(answer["metres"].as_u64().unwrap() <= 99, "{text}");
    let seen = answer["seen"].as_array().unwrap();
    assert!(
        seen.len() <= 3 && seen.iter().all(Value::is_boolean),
        "{text}"
    );
}

#[test]
fn a_random_model_at_any_temperature_answers_what_the_schema_wants() {
    for (dir, temperature) in [
        (tiny_dir(), 0.0),
        (tiny_dir(), 1.0),
        (tiny_dir(), 100.0),
        (demo_dir(), 100.0),
    ] {
        let mut config = tiny_config();
        config.model_dir = dir;
        config.temperature = temperature;
        config.cache.budget = 512;
        let mut session = Session::new(config).unwrap();
        show(&mut session, 0, 2);
        // The random state of what is asked without a trace is put back: every time is another one only where it is not.
        let mut asked = schema(&object());
        asked.ephemeral = temperature == 0.0;
        let mut texts = Vec::new();
        for _ in 0..if temperature > 0.0 { 40 } else { 1 } {
            let answer = ask(&mut session, &asked);
            assert_eq!(
                answer.finish,
                FinishReason::Stop,
                "{:?} {}",
                answer.error,
                answer.text
            );
            assert_is_object(&answer.text);
            texts.push(answer.text);
        }
        texts.sort();
        texts.dedup();
        assert!(temperature < 100.0 || texts.len() > 30, "{texts:?}");
    }
}

#[test]
fn regular_expressions_and_lark_grammars_are_followed() {
    let mut config = tiny_config();
    config.temperature = 20.0;
    let mut session = Session::new(config).unwrap();
    show(&mut session, 0, 2);
    let lark = "start: verb \" \" NUMBER\nverb: \"turn\" | \"drive\"\nNUMBER: /[0-9]{1,3}/\n";
    for (kind, text, heads) in [
        (
            GrammarKind::Regex,
            "(left|right) [0-9]{1,3}",
            ["left", "right"],
        ),
        (GrammarKind::Lark, lark, ["turn", "drive"]),
    ] {
        let mut asked = of(kind, text);
        asked.ephemeral = false;
        for _ in 0..20 {
            let answer = ask(&mut session, &asked);
            assert_eq!(answer.finish, FinishReason::Stop, "{:?}", answer.error);
            let (head, number) = answer.text.split_once(' ').unwrap();
            assert!(heads.contains(&head), "{}", answer.text);
            assert!((1..=3).contains(&number.len()), "{}", answer.text);
            assert!(
                number.bytes().all(|byte| byte.is_ascii_digit()),
                "{}",
                answer.text
            );
        }
    }
}

#[test]
fn a_text_without_an_end_is_cut_off_and_the_answer_says_so() {
    let mut session = tiny_session();
    show(&mut session, 0, 2);
    let long = json!({ "type": "string", "minLength": 200 });
    for mut asked in [schema(&long), of(GrammarKind::Regex, "[a-z]{200,}")] {
        asked.max_new_tokens = 30;
        let answer = ask(&mut session, &asked);
        assert_eq!(answer.finish, FinishReason::Length);
        assert_eq!(answer.output_tokens, 30);
        let error = answer.error.unwrap();
        assert!(
            error.contains("cut off at 30 tokens (max_new_tokens)"),
            "{error}"
        );
    }
    // One that is whole there is none the worse for it.
    let mut asked = of(GrammarKind::Regex, "[a-z]+");
    asked.max_new_tokens = 3;
    let answer = ask(&mut session, &asked);
    assert!(answer.finish != FinishReason::Length || answer.error.is_none());
}

#[test]
fn no_grammar_brings_a_control_token_into_an_answer() {
    let mut session = tiny_session();
    show(&mut session, 0, 2);
    let model = load(&tiny_dir());
    let end = model.ends.ids()[0];
    let start = model.tokenizer.control("<|im_start|>").unwrap();
    for lark in [
        format!("start: \"a\" <[{start}]> \"b\""),
        format!("start: \"a\" <[{end}]> \"b\""),
        "start: \"a\" <|im_start|> \"b\"".to_string(),
    ] {
        let answer = ask(&mut session, &of(GrammarKind::Lark, &lark));
        assert_eq!(answer.finish, FinishReason::Error, "{lark}");
        assert!(answer.error.is_some());
        assert!(!answer.token_ids.contains(&start) && !answer.token_ids.contains(&end));
    }
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_refused_with_the_place_and_changes_nothing() {
    let mut session = tiny_session();
    show(&mut session, 0, 2);
    let before = format!("{:?}", seen(&mut session));
    let wrong = json!({ "type": "object", "properties": {
        "side": { "enum": ["left"] },
        "far": { "anyOf": [{ "type": "integer" }, { "type": "metres" }] },
    } });
    let endless = json!({ "$ref": "#/$defs/list", "$defs": {
        "list": { "type": "array", "items": { "$ref": "#/$defs/list" }, "minItems": 1 },
    } });
    let misspelt = json!({ "properties": { "name": { "type": "string", "maxlength": 3 } } });
    let long = format!("start: \"{}\"", "a".repeat(MAX_GRAMMAR_BYTES));
    let deep = "(".repeat(40_000);
    let chain = (0..4000)
        .map(|i| format!("r{i}: r{}\n", i + 1))
        .collect::<String>();
    let chain = format!("start: r0\n{chain}r4000: \"a\"\n");
    let (schema, regex, lark) = (
        GrammarKind::JsonSchema,
        GrammarKind::Regex,
        GrammarKind::Lark,
    );
    for (kind, text, parts) in [
        (
            schema,
            "{\"type\": \"object\",\n \"properties\" 3}",
            vec!["line 2", "json_schema"],
        ),
        (
            schema,
            &wrong.to_string(),
            vec!["#/properties/far/anyOf/1", "metres"],
        ),
        (schema, "{\"$ref\": \"#/$defs/none\"}", vec!["none"]),
        (
            schema,
            "{\"minimum\": 3, \"maximum\": 1, \"type\": \"integer\"}",
            vec!["json_schema"],
        ),
        (schema, "[]", vec!["json_schema"]),
        (regex, "(left|right", vec!["regex", "unclosed group"]),
        (regex, "[z-a]", vec!["regex"]),
        (
            regex,
            "left[^\\s\\S]",
            vec!["regex", "there is no text of it"],
        ),
        (
            lark,
            "start: start",
            vec!["lark", "no text of the rule start"],
        ),
        (
            lark,
            "start: \"turn \" side\nside: \"left\" side | \"right\" side\n",
            vec!["lark", "no text of the rule side"],
        ),
        (lark, "start: /[^\\s\\S]/", vec!["lark", "no text of"]),
        (
            schema,
            &endless.to_string(),
            vec!["#/$defs/list/items", "there is no text of it"],
        ),
        (
            schema,
            &misspelt.to_string(),
            vec![
                "#/properties/name",
                r#"keyword is "maxlength", expected "maxLength""#,
            ],
        ),
        (regex, " ", vec!["regex) is empty"]),
        (lark, "start: \"a\"\nother: (", vec!["lark", "2"]),
        (lark, "start: nothing", vec!["nothing"]),
        (
            lark,
            "start: <|im_end|>",
            vec!["control tokens cannot be named"],
        ),
        (lark, &long, vec!["bytes long, expected at most 65536"]),
        (
            lark,
            &deep,
            vec!["brackets within brackets 101 deep at byte 100"],
        ),
        (regex, &deep, vec!["brackets within brackets"]),
        (schema, &deep, vec!["brackets within brackets"]),
    ] {
        let mut asked = of(kind, text);
        asked.ephemeral = false;
        let answer = ask(&mut session, &asked);
        let error = answer.error.unwrap_or_default();
        assert_eq!(answer.finish, FinishReason::Error, "{text}");
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(format!("{:?}", seen(&mut session)), before, "{text}");
    }
    // Deep without brackets.
    let answer = ask(&mut session, &of(lark, &chain));
    assert!(answer.error.is_some() || answer.text == "a");
}

#[test]
fn rules_that_contain_themselves_and_keywords_of_one_s_own_do_no_harm() {
    let mut session = tiny_session();
    show(&mut session, 0, 2);
    let tree = json!({ "$ref": "#/$defs/tree", "$defs": { "tree": {
        "type": "object", "x-unit": "m", "description": "a tree",
        "properties": { "left": { "$ref": "#/$defs/tree" } }, "additionalProperties": false,
    } } });
    let lark = "start: list\nlist: \"(\" list* \")\"\n";
    for asked in [schema(&tree), of(GrammarKind::Lark, lark)] {
        let answer = ask(&mut session, &asked);
        assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    }
}

#[test]
fn the_text_of_an_answer_is_what_its_grammar_matched_to_the_last_blank() {
    let mut config = tiny_config();
    config.temperature = 50.0;
    let mut session = Session::new(config).unwrap();
    show(&mut session, 0, 2);
    for (kind, text, expected) in [
        (GrammarKind::Regex, "\n\n left \n", "\n\n left \n"),
        (
            GrammarKind::Regex,
            "  <think>a</think> b",
            "  <think>a</think> b",
        ),
        (
            GrammarKind::Lark,
            "start: \" \" \"Größe\" \"\\n\"",
            " Größe\n",
        ),
    ] {
        let mut pieces = String::new();
        let asked = of(kind, text);
        let answer = session.ask(&asked, &|| false, &mut |delta| pieces.push_str(&delta.text));
        assert_eq!((answer.error, answer.text.as_str()), (None, expected));
        assert_eq!(pieces, expected);
    }
    // So are choices, but for the blanks around them.
    let mut asked = instruction("c", "Which one?");
    asked.choices = vec!["<think>".to_string(), " <thin ice\n".to_string()];
    let mut pieces = String::new();
    let answer = session.ask(&asked, &|| false, &mut |delta| pieces.push_str(&delta.text));
    let chosen = answer.chosen.unwrap().index;
    assert_eq!(answer.text, asked.choices[chosen].trim());
    assert_eq!(pieces, answer.text);
}

#[test]
fn an_answer_of_a_grammar_is_the_same_in_a_device_s_kernels() {
    let mut answers = Vec::new();
    for gpu in [None, Some(kernels())] {
        let mut config = tiny_config();
        config.cache.budget = 512;
        let pool = thread_pool(1, &Checkpoint::open(&config.model_dir).unwrap()).unwrap();
        let model = load(&config.model_dir);
        let mut session = Session::with_kernels(model, pool, config, gpu).unwrap();
        show(&mut session, 0, 4);
        let mut asked = schema(&object());
        asked.ephemeral = false;
        let of_grammar = ask(&mut session, &asked);
        assert_is_object(&of_grammar.text);
        let free = ask(&mut session, &instruction("f", "And now?"));
        answers.push((of_grammar.token_ids, free.token_ids, session.usage()));
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn the_bytes_of_all_tokens_of_an_answer_are_its_text() {
    let model = load(&demo_dir());
    let bytes = model
        .tokenizer
        .token_bytes(model.config.vocab_size())
        .unwrap();
    for text in ["a red box, 3 m", "Größe: 7 °C 😀", "\n\t\"{}\""] {
        let ids = model.tokenizer.encode_text(text).unwrap();
        let joined = ids.iter().flat_map(|&id| bytes[id as usize].clone());
        assert_eq!(joined.collect::<Vec<_>>(), text.as_bytes());
    }
    for (_, id) in model.tokenizer.controls() {
        assert!(bytes[id as usize].is_empty());
    }
    Constraints::new(&model.tokenizer, &model.ends, model.config.vocab_size()).unwrap();
}
