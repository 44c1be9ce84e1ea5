//! The list of parameters: its documents, its checks, and what it says of the policies.

use std::process::Command;

use inf_mllm::cache::parameter::{Kind, Parameter, Parameters, Settable, Value};
use inf_mllm::cache::policy::{Candidates, Policy};
use inf_mllm::cache::{CacheConfig, Mark, Plan, PolicyKind, Token};
use inf_mllm::parameters::NodeConfig;
use proptest::prelude::*;
use proptest::sample::Index;

/// What `inf_mllm parameters` prints.
fn printed(format: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(["parameters", format])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn committed(path: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    std::fs::read_to_string(format!("{root}/{path}")).unwrap()
}

#[test]
fn the_parameter_file_is_what_the_command_prints() {
    let found = committed("config/inf_mllm.yaml");
    assert!(
        found == printed("--yaml"),
        "run: inf_mllm parameters --yaml > config/inf_mllm.yaml"
    );
    // And it is a file that says what the defaults are.
    let file: serde_yaml::Value = serde_yaml::from_str(&found).unwrap();
    let values = &file["/**"]["ros__parameters"];
    for parameter in NodeConfig::list() {
        let value = serde_json::to_value(&values[parameter.name]).unwrap();
        let default = serde_json::Value::from(&parameter.default);
        assert_eq!(value, default, "{}", parameter.name);
        assert_eq!(value.is_f64(), default.is_f64(), "{}", parameter.name);
    }
}

#[test]
fn the_tables_of_the_document_are_what_the_command_prints() {
    let document = committed("docs/parameters.md");
    let begin = "<!-- inf_mllm parameters --markdown -->\n\n";
    let end = "<!-- end -->";
    let (_, after) = document.split_once(begin).unwrap();
    let (tables, _) = after.split_once(end).unwrap();
    assert!(
        tables == printed("--markdown"),
        "put what `inf_mllm parameters --markdown` prints between {begin:?} and {end:?} of docs/parameters.md"
    );
}

/// A value of this kind, by a number.
fn some_value(kind: &Kind, index: Index) -> Value {
    let share = index.index(1 << 20) as f64 / f64::from(1 << 20);
    match kind {
        Kind::Flag => Value::Flag(share < 0.5),
        Kind::Text => Value::Text(format!("a text \"of {share}\"\nand more")),
        Kind::Choice(names) => Value::Text(index.get(names).to_string()),
        Kind::Integer(range) => {
            let span = (range.end() - range.start()) as f64;
            Value::Integer((range.start() + (share * span) as i64).min(*range.end()))
        }
        Kind::Number(range) => Value::Number(range.start() + share * (range.end() - range.start())),
        Kind::Numbers(range) => {
            let number = range.start() + share * (range.end() - range.start());
            Value::Numbers(vec![number; index.index(4)])
        }
        Kind::Texts => Value::Texts(vec![format!("a label \"{share}\""); index.index(4)]),
    }
}

/// Values of the types of ROS that a parameter of this kind cannot have.
fn wrong_values(kind: &Kind) -> Vec<Value> {
    let text = Value::Text("neither".to_string());
    match kind {
        Kind::Flag => vec![Value::Integer(1), text],
        Kind::Text => vec![Value::Integer(1), Value::Flag(true), Value::Number(1.5)],
        Kind::Choice(_) => vec![Value::Integer(1), Value::Flag(true), text],
        Kind::Integer(range) => {
            let mut wrong = vec![Value::Number(1.5), Value::Flag(true), text];
            wrong.extend(range.start().checked_sub(1).map(Value::Integer));
            wrong.extend(range.end().checked_add(1).map(Value::Integer));
            wrong
        }
        Kind::Number(range) => vec![
            Value::Flag(true),
            text,
            Value::Number(range.start() - 0.001),
            Value::Number(range.end() * 1.001),
            Value::Number(f64::NAN),
            Value::Number(f64::INFINITY),
        ],
        Kind::Numbers(range) => vec![
            Value::Number(*range.start()),
            text,
            Value::Texts(vec!["neither".to_string()]),
            Value::Numbers(vec![*range.start(), range.end() * 1.001]),
            Value::Numbers(vec![f64::NAN]),
        ],
        Kind::Texts => vec![text, Value::Flag(true), Value::Numbers(vec![1.0])],
    }
}

#[test]
fn every_default_is_allowed_and_what_the_configuration_has() {
    let config = NodeConfig::default();
    let mut names = Vec::new();
    for parameter in NodeConfig::list() {
        let name = parameter.name;
        assert_eq!(
            config.get(name).as_ref(),
            Some(&parameter.default),
            "{name}"
        );
        let checked = parameter.checked(parameter.default.clone());
        assert_eq!(checked.as_ref(), Ok(&parameter.default), "{name}");
        assert!(
            parameter.about.ends_with('.'),
            "{name}: {}",
            parameter.about
        );
        names.push(name);
    }
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a name is there twice");
}

#[test]
fn what_a_parameter_cannot_be_is_refused_with_name_value_and_what_was_expected() {
    let config = NodeConfig::default();
    for parameter in NodeConfig::list() {
        for wrong in wrong_values(&parameter.kind) {
            let mut changed = config.clone();
            let error = changed.set(parameter.name, wrong.clone()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "parameter {} is {wrong}, expected {}",
                    parameter.name, parameter.kind
                )
            );
            assert_eq!(changed.get(parameter.name), config.get(parameter.name));
        }
    }
}

#[test]
fn the_ends_of_a_range_are_allowed_and_a_whole_number_is_one() {
    let mut config = NodeConfig::default();
    for parameter in NodeConfig::list() {
        match &parameter.kind {
            Kind::Integer(range) => {
                for end in [*range.start(), *range.end()] {
                    config.set(parameter.name, Value::Integer(end)).unwrap();
                    assert_eq!(config.get(parameter.name), Some(Value::Integer(end)));
                }
            }
            Kind::Number(range) => {
                for end in [*range.start(), *range.end()] {
                    config.set(parameter.name, Value::Number(end)).unwrap();
                    assert_eq!(config.get(parameter.name), Some(Value::Number(end)));
                }
                config.set(parameter.name, Value::Integer(1)).unwrap();
                assert_eq!(config.get(parameter.name), Some(Value::Number(1.0)));
            }
            Kind::Numbers(range) => {
                let ends = Value::Numbers(vec![*range.start(), *range.end()]);
                config.set(parameter.name, ends.clone()).unwrap();
                assert_eq!(config.get(parameter.name), Some(ends));
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn what_is_set_is_what_is_there_and_nothing_else_changes(index: Index, which: Index) {
        let list = NodeConfig::list();
        let parameter = which.get(&list);
        let value = some_value(&parameter.kind, index);
        let mut config = NodeConfig::default();
        config.set(parameter.name, value.clone()).unwrap();
        for other in &list {
            let expected = if other.name == parameter.name { &value } else { &other.default };
            prop_assert_eq!(config.get(other.name), Some(expected.clone()));
        }
        // And as the command line writes it.
        let text = match &value {
            Value::Text(text) => text.clone(),
            other => other.to_string(),
        };
        prop_assert_eq!(parameter.parse(&text), Ok(value));
    }
}

/// Everything that a policy decides, on sets of candidates of which each evidence tells something else.
fn decisions(config: &CacheConfig) -> String {
    let policy = config.policy.build(config).unwrap();
    let tokens = (0..24)
        .map(|i| Token {
            index: 40 + 3 * i,
            unit: 40 + 12 * (i / 4),
            mark: Mark::default(),
        })
        .collect::<Vec<_>>();
    // Whole units may only be ranked: of many sets some are ranked otherwise by a value that counts.
    let values = (1..=20).map(|set| {
        let wave = |speed: f32| {
            let phase = |i: usize| (i * i) as f32 * speed * 0.1 * set as f32;
            (0..24).map(|i| phase(i).sin().abs()).collect::<Vec<_>>()
        };
        let (scores, standing, novelty, norms) = (wave(0.7), wave(1.3), wave(2.1), wave(0.3));
        let candidates = Candidates {
            tokens: &tokens,
            scores: &scores,
            standing: &standing,
            novelty: &novelty,
            value_norms: &norms,
            newest: 200,
            room: 12,
            protected: &[false; 24],
        };
        let mut values = vec![0.0; tokens.len()];
        policy.values(&candidates, &mut values);
        values
    });
    format!(
        "{:?} {:?} {:?} {:?}",
        decisions_of(policy.as_ref()),
        policy.evidence(),
        // Where nothing is evicted, nothing goes by the plan.
        policy
            .evicts()
            .then(|| Plan::new(config, policy.as_ref(), 2, 4096)),
        values.collect::<Vec<_>>()
    )
}

fn decisions_of(policy: &dyn Policy) -> (bool, usize, String) {
    (
        policy.evicts(),
        policy.sinks(),
        format!("{:?}", policy.scope()),
    )
}

/// Another allowed value, near enough that every policy can be built and has room.
fn other_value(parameter: &Parameter) -> Value {
    match (&parameter.default, &parameter.kind) {
        (Value::Flag(flag), _) => Value::Flag(!flag),
        // Odd where it has to be, and more than the prefix of the plan.
        (Value::Integer(value), _) => Value::Integer(value + 6),
        (Value::Number(value), _) => Value::Number(if *value > 0.3 {
            value * 0.5
        } else {
            value + 0.2
        }),
        (Value::Text(text), Kind::Choice(names)) => {
            let other = names.iter().find(|name| *name != text && **name != "model");
            Value::Text(other.unwrap().to_string())
        }
        (other, kind) => panic!("{other} of {kind}"),
    }
}

/// What the cache and the session read themselves, whatever the policy.
const NOT_THE_POLICYS: [&str; 6] = [
    "policy",
    "budget",
    "withdraw_layer",
    "last_frames",
    "kv_storage",
    // What policies that keep tokens by value have chosen is changed by the cache.
    "camera_shares",
];

#[test]
fn a_policy_reads_the_parameters_that_the_list_says_it_reads() {
    for policy in PolicyKind::ALL {
        let mut base = CacheConfig {
            policy,
            ..CacheConfig::default()
        };
        // Attention, novelty and the standing instruction all have a share.
        base.plus.novelty_weight = 0.7;
        let list = CacheConfig::list();
        for parameter in list.iter().filter(|p| !NOT_THE_POLICYS.contains(&p.name)) {
            let mut changed = base.clone();
            changed.set(parameter.name, other_value(parameter)).unwrap();
            let differs = decisions(&changed) != decisions(&base);
            // Borders are kept by the cache, for every policy that evicts; the plan only sees to their room.
            if parameter.name == "protect_boundaries" {
                continue;
            }
            assert_eq!(
                differs,
                parameter.read_by(policy.name()),
                "{policy}: {} as {}",
                parameter.name,
                other_value(parameter)
            );
        }
    }
}

#[test]
fn what_can_be_set_while_the_node_runs_is_documented_so() {
    let running = NodeConfig::list()
        .into_iter()
        .filter(|p| p.settable == Settable::Running);
    let names = running.map(|parameter| parameter.name).collect::<Vec<_>>();
    for name in ["max_new_tokens", "temperature", "frame_rate", "min_change"] {
        assert!(names.contains(&name), "{name}");
    }
    let document = committed("docs/parameters.md");
    for name in names {
        let row = document
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(row.unwrap().contains("**at any time**"), "{name}");
    }
}
