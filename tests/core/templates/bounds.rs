//! What templates may cost, whatever they say.

use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{render, variables};

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
        let test =
            "templates::bounds::greedy_templates_end_with_an_error_in_little_memory_and_time";
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
