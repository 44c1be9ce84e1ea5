//! Chat templates: what they make of conversations, held against transformers (tests/golden/make_templates.py), and what they may cost.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::template::ChatTemplate;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::{FinishReason, Session, SessionConfig};
use proptest::prelude::*;
use serde_json::{json as object, Map, Value};
use tempfile::TempDir;

use crate::gguf::writer::{text, written, File};
use crate::support::{
    golden, instruction, json, load, picture, root, tiny_config, tiny_dir, try_load,
};

fn parse(source: &str) -> Result<ChatTemplate, String> {
    let template = ChatTemplate::parse(source, "chat_template.jinja".into());
    template.map_err(|error| error.to_string())
}

fn render(source: &str, variables: &Map<String, Value>) -> Result<String, String> {
    let messages = variables["messages"].as_array().unwrap();
    let rendered = parse(source)?.render_with(messages, variables);
    rendered.map_err(|error| error.to_string())
}

fn variables() -> Map<String, Value> {
    json(&golden("templates.json"))["variables"]
        .as_object()
        .unwrap()
        .clone()
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

/// Templates that want more than there is: of source, nesting, text, data, steps.
fn greedy() -> Vec<String> {
    let deep = |open: &str, close: &str| {
        format!("{{{{ {}1{} }}}}", open.repeat(20_000), close.repeat(20_000))
    };
    let doubling = |step: &str| {
        let begin = "{% set ns = namespace(t='ab', l=[1, 2], d={}) %}";
        format!("{begin}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.t|length }}}}{{{{ ns.l == ns.l }}}}{{{{ ns.l|tojson|length }}}}")
    };
    let mut templates = [
        "{% set ns.t = ns.t ~ ns.t %}",
        "{% set ns.t = ns.t + ns.t %}",
        "{% set ns.t = ns.t * 2 %}",
        "{% set ns.t = '%s%s' % (ns.t, ns.t) %}",
        "{% set ns.t = '{}{}'.format(ns.t, ns.t) %}",
        "{% set ns.t = ns.t|replace('a', ns.t) %}",
        "{% set ns.t = ns.t.replace('', 'ab') %}",
        "{% set ns.t = [ns.t, ns.t]|join(ns.t) %}",
        "{% set ns.t = ns.t.join([ns.t, ns.t]) %}",
        "{% set ns.t = (ns.t ~ '\\n')|indent(ns.t|length, true) %}",
        "{% set ns.t = ns.t|center(2 * ns.t|length) %}",
        "{% set ns.t = ns.t.ljust(2 * ns.t|length) %}",
        "{% set ns.t = ns.t|tojson|tojson %}",
        "{% set t %}{{ ns.t }}{{ ns.t }}{% endset %}{% set ns.t = t %}",
        "{% set ns.t = [ns.t, ns.t]|string %}",
        "{% set ns.l = ns.l + ns.l %}",
        "{% set ns.l = ns.l * 2 %}",
        "{% set ns.l = [ns.l, ns.l] %}",
        "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
        "{% set ns.l = [ns.l] + [ns.l]|map('list')|list %}",
        "{% set ns.l = ns.l|batch(1, ns.l)|list + ns.l %}",
        "{% set ns.l = (ns.t * i).split('') %}",
        "{{ ns.l|sort|unique|list }}{% set ns.l = ns.l + ns.l %}",
    ]
    .map(doubling)
    .to_vec();
    templates.extend([
        deep("(", ")"),
        deep("[", "]"),
        deep("{'a':", "}"),
        deep("-", ""),
        deep("not ", ""),
        deep("1 if 1 else ", ""),
        deep("f(", ")"),
        "{% if 1 %}".repeat(20_000),
        "{% for i in x %}".repeat(5_000) + &"{% endfor %}".repeat(5_000),
        "{% macro m() %}".repeat(5_000) + &"{% endmacro %}".repeat(5_000),
        "a".repeat(1 << 20),
        "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}".to_string(),
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}".to_string(),
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".to_string(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}".to_string(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_string(),
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}".to_string(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}".to_string(),
        "{{ 'a' * 10 ** 15 }}".to_string(),
        "{{ [0] * 10 ** 15 }}".to_string(),
        "{{ '' * 10 ** 15 }}".to_string(),
        "{{ range(10 ** 15) }}".to_string(),
        "{{ '%1000000000d' % 1 }}".to_string(),
        "{{ '%.1000000000f' % 1 }}".to_string(),
        "{{ ''.zfill(10 ** 12) }}".to_string(),
        "{{ [1, [2]]|tojson(indent=10 ** 9) }}".to_string(),
        "{{ raise_exception('a' * 10 ** 6) }}".to_string(),
        "{{ 9223372036854775807 + 1 }}{{ -9223372036854775807 - 2 }}".to_string(),
        "{{ (-9223372036854775807 - 1) // -1 }}".to_string(),
        "{{ (-9223372036854775807 - 1)|abs }}".to_string(),
    ]);
    templates
}

const CHILD: &str = "INF_MLLM_TEST_IN_LITTLE_MEMORY";

/// Address space of the process that renders greedy templates, KiB.
const LITTLE: usize = 1 << 20;

#[test]
fn greedy_templates_end_with_an_error_in_little_memory_and_time() {
    if std::env::var_os(CHILD).is_none() {
        let test = "templates::greedy_templates_end_with_an_error_in_little_memory_and_time";
        let line = format!(
            "ulimit -v {LITTLE} && exec \"$0\" --exact {test} --test-threads 1 --nocapture"
        );
        let child = Command::new("sh")
            .args(["-c", &line])
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    for source in greedy() {
        let began = Instant::now();
        let result = render(&source, &variables());
        let begin = source.chars().take(120).collect::<String>();
        assert!(result.is_err(), "{begin:?} is rendered");
        assert!(
            result.unwrap_err().len() < 1000,
            "a long message for {begin:?}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{begin:?} takes {:?}",
            began.elapsed()
        );
    }
}

/// Expressions of Jinja's grammar, with what makes texts and lists longer.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "word",
        "text",
        "n",
        "words",
        "nested",
        "about",
        "messages",
        "missing",
        "none",
        "true",
        "'ab'",
        "''",
        "-1",
        "3",
        "1e300",
        "[]",
        "{}",
        "loop",
        "ns.t",
        "ns.l",
        "ns",
        "range(40)",
        "100000000000",
    ]);
    leaf.prop_map(String::from)
        .prop_recursive(5, 40, 3, |inner| {
            let binary = prop::sample::select(vec![
                "+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or",
                ",", "if", "|",
            ]);
            let behind = prop::sample::select(vec![
                "|tojson",
                "|tojson(indent=3)",
                "|list",
                "|join(text)",
                "|replace('a', text)",
                "|indent(30)",
                "|batch(2, word)|list",
                "|sort",
                "|unique|list",
                "|sum",
                "|max",
                "|length",
                "|first",
                "|string",
                "|center(300)",
                "|map('string')|list",
                "|reverse",
                "|dictsort",
                "|items",
                "|int",
                "|round(2)",
                "|title",
                "|truncate(3)",
                "|select('in', words)|list",
                ".split('a')",
                ".split()",
                ".join(words)",
                ".replace('', text)",
                ".items()",
                ".format(text, word)",
                ".ljust(99)",
                ".splitlines()",
                "[1:]",
                "[::-1]",
                "[0]",
                ".role",
                "()",
                "(1)",
                " is string",
                " is divisibleby 0",
                "|e",
                "|abs",
            ]);
            prop_oneof![
                (inner.clone(), binary, inner.clone())
                    .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
                (inner.clone(), behind).prop_map(|(a, behind)| format!("({a}){behind}")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
                (inner.clone(), inner.clone())
                    .prop_map(|(a, b)| format!("{{'a': {a}, word: {b}}}")),
                (inner.clone(), inner.clone(), inner)
                    .prop_map(|(a, b, c)| format!("({a} if {b} else {c})")),
            ]
        })
}

/// Templates of Jinja's grammar; some of their tags are broken.
fn template() -> impl Strategy<Value = String> {
    let expr = expression().boxed();
    let leaf = prop_oneof![
        "[ a\n{}%#'-]{0,6}",
        expr.clone().prop_map(|e| format!("{{{{ {e} }}}}")),
        expr.clone()
            .prop_map(|e| format!("{{% set word = {e} -%}}")),
        expr.clone()
            .prop_map(|e| format!("{{% set ns.t = ns.t ~ {e} %}}")),
        expr.clone()
            .prop_map(|e| format!("{{% set ns.l = [ns.l, {e}] %}}")),
        prop::sample::select(vec![
            "{%}",
            "{%",
            "}}",
            "{#",
            "{% endif %}",
            "{% break %}",
            "{%- raw %}{{{% endraw %}"
        ])
        .prop_map(String::from),
    ];
    leaf.prop_recursive(4, 60, 4, move |inner| {
        let body = prop::collection::vec(inner, 1..4).prop_map(|parts| parts.concat());
        let e = expr.clone();
        prop_oneof![
            (e.clone(), body.clone())
                .prop_map(|(e, b)| format!("{{% if {e} %}}{b}{{% else %}}x{{% endif %}}")),
            (e.clone(), body.clone())
                .prop_map(|(e, b)| format!("{{% for item in {e} %}}{b}{{% endfor %}}")),
            (e.clone(), body.clone())
                .prop_map(|(e, b)| format!("{{% for i in range(50) if {e} %}}{b}{{% endfor %}}")),
            (e.clone(), body.clone()).prop_map(|(e, b)| {
                format!("{{% macro word(text) %}}{b}{{% endmacro %}}{{{{ word({e}) }}}}")
            }),
            body.clone()
                .prop_map(|b| format!("{{% set text %}}{b}{{% endset %}}")),
            body.clone()
                .prop_map(|b| format!("{{% filter indent(9)|upper %}}{b}{{% endfilter %}}")),
            (e, body.clone()).prop_map(|(e, b)| format!("{{% with n = {e} %}}{b}{{% endwith %}}")),
            body.prop_map(|b| format!("{{% generation %}}{b}{{% endgeneration %}}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_jinja_says_ends_in_bounds(body in template()) {
        let source = format!("{{% set ns = namespace(t='a', l=[]) %}}{body}");
        let began = Instant::now();
        if let Ok(text) = render(&source, &variables()) {
            prop_assert!(text.len() <= 32 << 20);
        }
        prop_assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn whatever_is_no_jinja_is_an_error_or_text(source in "[{}%#'\"\\\\()\\[\\]|.,:~*a-z0-9é \n-]{0,60}") {
        let _ = render(&source, &variables());
    }
}

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

/// A copy of the tiny checkpoint.
fn copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(tiny_dir()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn published() -> String {
    let json = json(&tiny_dir().join("chat_template.json"));
    json["chat_template"].as_str().unwrap().to_string()
}

/// The tiny checkpoint with a template.
fn with_template(source: &str) -> (TempDir, Mllm) {
    let dir = copy();
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
    let dir = copy();
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
    let dir = copy();
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
        let text = pieces.iter().map(|piece| piece.text.as_str());
        assert_eq!(text.collect::<String>(), answer.text);
        assert!(pieces.last().unwrap().done);
        answer
    };
    let plain = answer(&published());
    assert!(!plain.text.is_empty());
    // The tiny model never ends its thought.
    let thought = answer(&thinking());
    assert_eq!(thought.text, "");
    assert_eq!(thought.finish, FinishReason::Length);
    assert_eq!(thought.output_tokens, tiny_config().max_new_tokens);
    assert_eq!(thought.token_ids.len(), thought.output_tokens);
}

#[test]
fn the_first_file_that_names_the_end_of_an_answer_counts() {
    let dir = copy();
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
