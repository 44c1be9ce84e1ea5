//! The templates of checkpoints: where they and their tokens are found, and what the stream takes of them.

use std::fs;
use std::process::Command;

use inf_mllm::model::mllm::Mllm;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::{FinishReason, Session, SessionConfig, ThoughtEnd};
use serde_json::{json as object, Value};
use tempfile::TempDir;

use super::parse;
use crate::gguf::writer::{text, written, File};
use crate::support::{
    instruction, json, load, picture, root, tiny_config, tiny_copy, tiny_dir, try_load,
};

#[test]
fn a_template_in_a_gguf_file_is_bounded_and_tried_out_too() {
    for (source, words) in [
        ("{%}".to_string(), "line 1"),
        (
            "{{ ".to_string() + &"(".repeat(50_000) + &")".repeat(50_000) + " }}",
            "nested deeper",
        ),
        (
            "{{ messages[0].content.shout() }}".to_string(),
            "a string has no method shout",
        ),
    ] {
        let (_dir, file) = written(
            &File::decoder()
                .set("tokenizer.chat_template", text(&source))
                .bytes(),
        );
        let report = inspected(&file);
        assert!(report.contains(words), "{words:?} is not in: {report}");
    }
}

/// What `inf_mllm inspect` prints.
fn inspected(path: &std::path::Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
    let output = command
        .arg("inspect")
        .arg(path)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.code().is_some(),
        "inspect was ended: {:?}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn published() -> String {
    let json = json(&tiny_dir().join("chat_template.json"));
    json["chat_template"].as_str().unwrap().to_string()
}

/// The tiny checkpoint with a template.
fn with_template(source: &str) -> (TempDir, Mllm) {
    let dir = tiny_copy();
    let json = object!({ "chat_template": source });
    fs::write(dir.path().join("chat_template.json"), json.to_string()).unwrap();
    let model = load(dir.path());
    (dir, model)
}

#[test]
fn an_empty_template_hides_no_other_and_editors_leave_no_trace() {
    let rendered = |dir: &TempDir| {
        let messages =
            object!([{ "role": "user", "content": [{ "type": "text", "text": "hello" }] }]);
        load(dir.path())
            .template
            .render(messages.as_array().unwrap())
            .unwrap()
    };
    let dir = tiny_copy();
    let expected = rendered(&dir);
    let jinja = dir.path().join("chat_template.jinja");
    fs::write(&jinja, " \n").unwrap();
    assert_eq!(rendered(&dir), expected);
    fs::write(
        &jinja,
        format!("\u{FEFF}{}", published().replace('\n', "\r\n")),
    )
    .unwrap();
    assert_eq!(rendered(&dir), expected);
    fs::write(&jinja, "").unwrap();
    fs::remove_file(dir.path().join("chat_template.json")).unwrap();
    let error = try_load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("no chat template"), "{error}");
}

#[test]
fn templates_know_the_tokens_of_their_model_and_that_there_are_no_tools() {
    let dir = tiny_copy();
    let source = "{{ tools is defined and tools is none and documents is none }} {{ eos_token }} {{ cls_token }} {{ image_token }}";
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let file = dir.path().join("tokenizer_config.json");
    let mut config = match file.exists() {
        true => json(&file),
        false => object!({}),
    };
    config["eos_token"] = object!({ "content": "<end>" });
    config["cls_token"] = "<cls>".into();
    config["extra_special_tokens"] = object!({ "image_token": "<picture>" });
    fs::write(file, config.to_string()).unwrap();
    let messages: [Value; 0] = [];
    let template = load(dir.path()).template;
    assert_eq!(
        template.render(&messages).unwrap(),
        "True <end> <cls> <picture>"
    );
}

#[test]
fn a_template_that_fails_at_its_first_rendering_is_told_before_the_first_question() {
    for (source, word) in [
        ("{{ messages[0].text.upper() }}", "undefined"),
        (
            "{% for m in messages %}{{ m.content | shout }}{% endfor %}",
            "shout",
        ),
    ] {
        let error = parse(source)
            .unwrap()
            .try_out(true)
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{error}");
    }
    let no_system =
        "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}ok";
    parse(no_system).unwrap().try_out(true).unwrap();
    parse(&published()).unwrap().try_out(true).unwrap();
    parse("{% for m in messages %}{{ m.content.strip() }}{% endfor %}")
        .unwrap()
        .try_out(false)
        .unwrap();
}

/// A default system turn in front, where a conversation has none.
const DEFAULT: &str = "<|im_start|>{% if messages[0]['role'] != 'system' %}{{ 'System: You guard a gate.<end_of_utterance>\\n' }}{% endif %}";

#[test]
fn the_checkpoints_own_system_prompt_stands_where_the_user_gives_none() {
    let source = published().replacen("<|im_start|>", DEFAULT, 1);
    let (_dir, model) = with_template(&source);
    let prefix =
        |system: &str| Grammar::new(Chat::of(&model).unwrap()).prefix(system, &model.tokenizer);
    assert_eq!(
        prefix(""),
        "<|im_start|>System: You guard a gate.<end_of_utterance>\n"
    );
    assert_eq!(
        prefix("Be brief."),
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
    );
    let plain = load(&tiny_dir());
    let prefix = Grammar::new(Chat::of(&plain).unwrap()).prefix("", &plain.tokenizer);
    assert_eq!(prefix, "<|im_start|>");
}

/// The tiny checkpoint's template with a thought opened in front of every answer.
fn thinking() -> String {
    let source = published().replace("{{ 'Assistant:' }}", "{{ 'Assistant:<think>\\n' }}");
    assert_ne!(source, published());
    source
}

#[test]
fn a_template_that_opens_a_thought_has_it_opened_in_the_stream() {
    let (_dir, model) = with_template(&thinking());
    let chat = Chat::of(&model).unwrap();
    assert_eq!((chat.format.name, chat.thinks()), ("SmolVLM", true));
    let asked = Grammar::new(chat).instruction("What is it?", &model.tokenizer);
    assert!(
        asked.ends_with("What is it?<end_of_utterance>\nAssistant:<think>\n"),
        "{asked}"
    );
    assert!(!Chat::of(&load(&tiny_dir())).unwrap().thinks());
}

#[test]
fn what_comes_behind_an_opened_thought_is_no_answer_until_the_thought_ends() {
    let answer = |source: &str| {
        let (dir, _) = with_template(source);
        let mut session = Session::new(SessionConfig {
            model_dir: dir.path().into(),
            ..tiny_config()
        })
        .unwrap();
        session.push_frame(&picture(0, [200, 20, 20])).unwrap();
        let mut pieces = Vec::new();
        let question = instruction("1", "What is it?");
        let answer = session.ask(&question, &|| false, &mut |delta| pieces.push(delta));
        for (of_thought, whole) in [(false, &answer.text), (true, &answer.thought)] {
            let pieces = pieces.iter().filter(|piece| piece.thought == of_thought);
            let text = pieces.map(|piece| piece.text.as_str());
            assert_eq!(text.collect::<String>(), *whole);
        }
        assert!(pieces.last().unwrap().done);
        answer
    };
    let plain = answer(&published());
    assert!(!plain.text.is_empty() && plain.thought.is_empty());
    assert_eq!(plain.thought_end, ThoughtEnd::None);
    // The tiny model never ends its thought.
    let thought = answer(&thinking());
    assert_eq!(thought.text, "");
    assert!(!thought.thought.is_empty());
    assert_eq!(thought.thought_end, ThoughtEnd::Cut);
    assert_eq!(thought.finish, FinishReason::Length);
    assert_eq!(thought.output_tokens, tiny_config().max_new_tokens);
    assert_eq!(thought.token_ids.len(), thought.output_tokens);
}

#[test]
fn the_first_file_that_names_the_end_of_an_answer_counts() {
    let dir = tiny_copy();
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let file = dir.path().join(name);
        let mut value = json(&file);
        change(&mut value);
        fs::write(file, value.to_string()).unwrap();
    };
    let ends = |id: u32| load(dir.path()).ends.contains(id);
    edit("config.json", &|config| {
        config["text_config"]["eos_token_id"] = 50.into()
    });
    assert!(ends(301) && !ends(50), "the generation config counts");
    edit("generation_config.json", &|config| {
        config["eos_token_id"] = Value::Null
    });
    assert!(ends(50), "nothing above the text config names one");
    edit("config.json", &|config| {
        config["eos_token_id"] = object!([60, 5000])
    });
    assert!(
        ends(60) && !ends(50),
        "the top level counts, and an id that no token has does no harm"
    );
    assert!(
        ends(301),
        "the control token that ends a turn ends an answer"
    );
    edit("config.json", &|config| {
        config["eos_token_id"] = "end".into()
    });
    let error = try_load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("eos_token_id is \"end\""), "{error}");
}
