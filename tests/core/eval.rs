//! The evaluation: what it counts must be what it says it counts.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::Device;
use candle_nn::ops::log_softmax;
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::ages::Ages;
use inf_mllm::eval::endless::{endless, EndlessOptions};
use inf_mllm::eval::facts::{Fact, Timeline, Values, Wording};
use inf_mllm::eval::model::EvalModel;
use inf_mllm::eval::ppl::{perplexity, recomputation, PplOptions, PplResult};
use inf_mllm::eval::recall::{hits, kept, outcomes, recall, RecallOptions};
use inf_mllm::eval::variant::{self, Recalling};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::archive::ArchiveConfig;
use serde_json::Value;

use crate::support::demo_dir;

const TEXT: &str = "The robot sees a red ball on the left and a blue box behind it. It turns to the door, waits, and \
    then drives along the wall until the green lamp is in view. What did it see first? The ball was red. ";

pub fn model() -> EvalModel {
    EvalModel::load(
        &demo_dir(),
        Quantization::None,
        Precision::F32,
        &Device::Cpu,
        1,
    )
    .unwrap()
}

fn ids(model: &EvalModel, count: usize) -> Vec<u32> {
    let ids = model.encode(TEXT).unwrap();
    ids.into_iter().cycle().take(count).collect()
}

fn config(policy: PolicyKind, budget: usize) -> CacheConfig {
    CacheConfig {
        policy,
        budget,
        ..CacheConfig::default()
    }
}

fn options(chunk: usize) -> PplOptions {
    PplOptions {
        chunk,
        block: 50,
        ages_every: 0,
    }
}

fn measure(model: &EvalModel, ids: &[u32], config: &CacheConfig, chunk: usize) -> PplResult {
    let configs = std::slice::from_ref(config);
    let mut results = perplexity(model, ids, configs, &options(chunk), &|_| ()).unwrap();
    results.remove(0)
}

fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{got} is not {want}");
}

/// Losses of tokens 1, 2, ... from one plain forward pass and candle's own log-softmax.
fn plain_losses(model: &EvalModel, ids: &[u32]) -> Vec<f64> {
    let mut caches = [model.cache(&config(PolicyKind::Full, 1000)).unwrap()];
    let hidden = model.append(None, ids, &mut caches).unwrap();
    let logits = model.decoder.logits(&hidden).unwrap();
    let logs = log_softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap();
    let pairs = logs.iter().zip(&ids[1..]);
    pairs
        .map(|(row, &id)| -f64::from(row[id as usize]))
        .collect()
}

#[test]
fn every_token_is_scored_by_the_state_before_it_for_any_chunk() {
    let model = model();
    let ids = ids(&model, 333);
    let plain = plain_losses(&model, &ids);
    for chunk in [1, 7, 64, 400] {
        let result = measure(&model, &ids, &config(PolicyKind::Full, 400), chunk);
        assert_eq!(result.blocks.counts, [49, 50, 50, 50, 50, 50, 33]);
        // Block i holds the losses of tokens 50 i to 50 i + 49; the loss of token t stands at t - 1.
        for (i, &sum) in result.blocks.sums.iter().enumerate() {
            let (from, to) = ((50 * i).max(1), (50 * i + 50).min(ids.len()));
            near(sum, plain[from - 1..to - 1].iter().sum(), 2e-3);
        }
        near(result.loss, plain.iter().sum::<f64>() / 332.0, 1e-4);
    }
}

#[test]
fn a_budget_larger_than_the_text_gives_full_attention() {
    let model = model();
    let ids = ids(&model, 300);
    let full = measure(&model, &ids, &config(PolicyKind::Full, 400), 32);
    for policy in PolicyKind::ALL {
        let result = measure(&model, &ids, &config(policy, 400), 32);
        near(result.perplexity / full.perplexity, 1.0, 1e-6);
        assert_eq!(result.compactions, 0);
    }
}

#[test]
fn streams_in_lock_step_are_what_they_are_alone() {
    let model = model();
    let ids = ids(&model, 300);
    let configs = [
        config(PolicyKind::StreamingLlm, 64),
        config(PolicyKind::InfMllm, 96),
        config(PolicyKind::Window, 64),
    ];
    for chunk in [1, 5] {
        let together = perplexity(&model, &ids, &configs, &options(chunk), &|_| ()).unwrap();
        for (config, result) in configs.iter().zip(together) {
            let alone = measure(&model, &ids, config, chunk);
            near(result.loss, alone.loss, 1e-4);
            assert_eq!(result.compactions, alone.compactions);
        }
    }
}

#[test]
fn recomputation_of_a_window_as_long_as_the_text_is_full_attention() {
    let model = model();
    let ids = ids(&model, 300);
    let full = measure(&model, &ids, &config(PolicyKind::Full, 400), 25);
    let same = recomputation(&model, &ids, 400, 1, &options(25), &|_| ()).unwrap();
    near(same.loss, full.loss, 1e-4);
    assert_eq!(same.blocks.counts, full.blocks.counts);
    // Every third block only, with a short window.
    let some = recomputation(&model, &ids, 60, 3, &options(25), &|_| ()).unwrap();
    assert_eq!(some.blocks.counts, [49, 0, 0, 50]);
    let shared = some.blocks.shared(&full.blocks);
    assert_eq!(
        shared.iter().map(|block| block.0).collect::<Vec<_>>(),
        [0, 3]
    );
    let last = plain_losses(&model, &ids[115..175]);
    let all = recomputation(&model, &ids[..175], 60, 1, &options(25), &|_| ()).unwrap();
    // The last chunk, tokens 150 to 174, is what block 3 holds: a fresh prefill of tokens 115 to 174.
    near(all.blocks.sums[3], last[34..].iter().sum(), 2e-3);
}

#[test]
fn a_fact_is_asked_for_at_its_exact_distance() {
    let model = model();
    let wording = Wording {
        statement: "\n[{key}: {value}]\n".to_string(),
        question: "\n[{key}:".to_string(),
        request: "\nWhat is the word of the {key}?".to_string(),
        values: Values::Words,
    };
    let facts = (0..3)
        .map(|i| Fact::new(i, &wording, &model))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let filler = ids(&model, 600);
    let timeline = Timeline::new(facts.clone(), &filler, 120, &[20, 200]).unwrap();
    assert_eq!(timeline.asks.len(), 9);
    assert!(timeline.asks.is_sorted_by_key(|ask| ask.at));
    for ask in &timeline.asks {
        let fact = &timeline.facts[ask.fact];
        let statement = fact.statement.as_slice();
        let seen = &timeline.ids[..ask.at];
        match ask.distance {
            Some(distance) => assert!(seen[..ask.at - distance].ends_with(statement)),
            None => assert!(timeline.ids[ask.at..].starts_with(statement)),
        }
        let value = model.decode(&fact.question[fact.question.len() - fact.value_ids..]);
        assert_eq!(value.unwrap().trim(), fact.value);
    }
    assert!(Timeline::new(facts.clone(), &filler[..100], 120, &[20]).is_err());

    // A question leaves no trace: asked twice, it has the same answer, and so have those after it.
    let config = config(PolicyKind::InfMllm, 192);
    // By the words alone, as the demo model knows no such sentences.
    let archive = ArchiveConfig {
        recall_layers: "0".to_string(),
        ..ArchiveConfig::default()
    };
    let options = RecallOptions {
        chunk: 16,
        standing: &[],
        archive: None,
    };
    let recalling = RecallOptions {
        archive: Some(&archive),
        ..options
    };
    let mut twice = timeline.clone();
    twice.asks = timeline.asks.iter().flat_map(|&ask| [ask, ask]).collect();
    let [once, recalled] = [options, recalling].map(|options| {
        let ask = |timeline| recall(&model, timeline, &config, 0, &options, &|_| ()).unwrap();
        let once = ask(&timeline);
        let doubled = once.iter().flat_map(|&answer| [answer, answer]);
        assert_eq!(ask(&twice), doubled.collect::<Vec<_>>());
        once
    });
    // With an archive beside it, the same is kept, and what is gone is found.
    for (plain, recalled) in once.iter().zip(&recalled) {
        assert_eq!(
            (plain.fact, plain.distance, plain.kept),
            (recalled.fact, recalled.distance, recalled.kept)
        );
        let found = recalled.recalled.unwrap();
        assert!(plain.recalled.is_none() && found.bytes <= archive.archive_bytes);
        assert!(found.tokens <= 192 && found.units <= archive.recall_units);
        match recalled.distance {
            Some(200) => assert!(found.hit && recalled.kept < 0.5),
            _ => assert!(!found.hit),
        }
    }
    let [hit, _] = hits(&recalled, 200);
    assert_eq!((hit.right, hit.of), (3, 3));
    assert_eq!(outcomes(&once, Some(200)).len(), 3);
    // Of 96 slots the newest 40 tokens stay in any case, and 200 tokens back streaming_llm has forgotten.
    assert_eq!(kept(&once, 20), 1.0);
    let config = crate::eval::config(PolicyKind::StreamingLlm, 96);
    let newest = recall(&model, &timeline, &config, 0, &options, &|_| ()).unwrap();
    assert_eq!((kept(&newest, 20), kept(&newest, 200)), (1.0, 0.0));
}

#[test]
fn ages_are_counted_from_the_slots() {
    let model = model();
    let ids = ids(&model, 400);
    let mut caches = [model.cache(&config(PolicyKind::StreamingLlm, 64)).unwrap()];
    assert!(Ages::of(&caches[0]).is_none());
    for chunk in ids.chunks(8) {
        model.append(None, chunk, &mut caches).unwrap();
        caches[0].reserve(8).unwrap();
    }
    // After the compaction: 4 sinks, which do not count, and the 52 newest tokens.
    let ages = Ages::of(&caches[0]).unwrap();
    assert_eq!(ages.at, 400);
    assert_eq!(ages.quantiles[3], 51);
    near(ages.mean, 25.5, 1e-9);
    near(ages.stale, 0.0, 0.0);
    near(ages.histogram.iter().sum(), 52.0, 1e-6);
}

#[test]
fn a_long_stream_repeats_its_text_and_compares_its_ends() {
    let model = model();
    let ids = ids(&model, 100);
    let options = EndlessOptions {
        tokens: 250,
        chunk: 10,
        block: 50,
        pairs: 2,
    };
    let config = config(PolicyKind::InfMllm, 64);
    let result = endless(&model, &ids, &config, &options, &|_| ()).unwrap();
    assert_eq!(result.tokens, 250);
    assert_eq!(result.blocks.len(), 5);
    let repeated = ids.iter().copied().cycle().take(251).collect::<Vec<_>>();
    let whole = measure(&model, &repeated, &config, 10);
    near(result.blocks[3].loss, whole.blocks.sums[3] / 50.0, 1e-6);
    assert!(result
        .blocks
        .iter()
        .all(|block| block.bytes == result.blocks[0].bytes));
    assert_eq!(
        result.blocks[2].attended_per_token,
        result.blocks[4].attended_per_token
    );
    assert_eq!(result.decode_step.unwrap().pairs, 2);
}

#[test]
fn variants_are_read_and_named() {
    let base = CacheConfig::default();
    let read = variant::parse("inf_mllm:bias=0.5,bias_form=range,n_recent=7", &base).unwrap();
    let described = variant::describe(&read);
    assert_eq!(described["bias"], 0.5);
    assert_eq!(described["bias_form"], "range");
    assert_eq!(described["n_recent"], 7);
    assert_eq!(described["budget"], base.budget);
    for (line, word) in [
        ("lru", "lru"),
        ("window:slack", "window:slack"),
        ("window:slack=x", "slack is x"),
        ("window:colour=1", "colour"),
        (
            "window:slak=1",
            "policy window: unknown parameter slak (is slack meant?), expected one of: budget, slack",
        ),
    ] {
        let error = variant::parse(line, &base).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    let read = Recalling::parse("inf_mllm+recall:recall_units=3,bias=0.5", &base).unwrap();
    assert_eq!(variant::describe(&read.cache)["bias"], 0.5);
    assert_eq!(read.describe_archive()["recall_units"], 3);
    let plain = Recalling::parse("inf_mllm:bias=0.5", &base).unwrap();
    assert!(plain.archive.is_none() && plain.describe_archive().is_null());
    for (line, word) in [
        ("full+recall", "full+recall"),
        ("inf_mllm+recall:recall_units=x", "recall_units is x"),
        ("inf_mllm+recall:colour=1", "colour"),
        ("inf_mllm:recall_units=3", "recall_units"),
    ] {
        let error = Recalling::parse(line, &base).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// Runs `inf_mllm eval`.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let text = folder.join("text.txt");
    std::fs::write(&text, TEXT.repeat(40)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .arg("eval")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_slip_in_a_policys_parameters_is_answered_with_the_name_that_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_dir();
    let model = model.to_str().unwrap();
    let output = run(
        folder.path(),
        &[
            "ppl",
            "--model",
            model,
            "--text",
            "text.txt",
            "--out",
            "all.jsonl",
            "--quick",
            "--policies",
            "inf_mllm:biass=1",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("policy inf_mllm: unknown parameter biass (is bias meant?)"),
        "{error}"
    );
}

/// Runs `inf_mllm eval` on the demo model and gives back what it printed.
fn eval(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The keys and results in a file of results, without times.
fn results(file: &Path) -> Vec<Value> {
    let mut records = inf_mllm::eval::store::read(file).unwrap();
    for record in &mut records {
        record["about"].take();
        record["result"]["ms_per_token"].take();
    }
    records
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo_dir();
    let run = |out: &str, policies: &[&str]| {
        let mut arguments = vec!["ppl", "--quick", "--model", demo.to_str().unwrap()];
        arguments.extend(["--text", "text.txt", "--budgets", "96", "128", "--out", out]);
        arguments.extend(["--reference-every", "2", "--chunks", "32", "--policies"]);
        arguments.extend(policies);
        eval(folder.path(), &arguments)
    };
    let both = ["streaming_llm", "inf_mllm"];
    run("whole.jsonl", &both);
    run("parts.jsonl", &both[..1]);
    // Killed while it wrote: the last record is half a line.
    let parts = folder.path().join("parts.jsonl");
    let text = std::fs::read_to_string(&parts).unwrap();
    std::fs::write(&parts, &text[..text.len() - 40]).unwrap();
    run("parts.jsonl", &both);
    let whole = results(&folder.path().join("whole.jsonl"));
    let resumed = results(&parts);
    assert_eq!(whole.len(), 6);
    assert_eq!(resumed.len(), whole.len());
    assert!(whole.iter().all(|record| resumed.contains(record)));
    // Nothing is left to do: the file stays as it is.
    let before = std::fs::read_to_string(&parts).unwrap();
    let printed = run("parts.jsonl", &both);
    assert_eq!(std::fs::read_to_string(&parts).unwrap(), before);
    assert!(printed.contains("recomputation"), "{printed}");
}

#[test]
fn every_command_runs_and_its_results_can_be_plotted() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo_dir();
    let model = demo.to_str().unwrap();
    let common = [
        "--quick",
        "--model",
        model,
        "--text",
        "text.txt",
        "--out",
        "all.jsonl",
    ];
    let run = |command: &str, more: &[&str]| {
        let arguments = [&[command], common.as_slice(), more].concat();
        eval(folder.path(), &arguments)
    };
    let policies = ["--policies", "streaming_llm", "inf_mllm", "--budgets", "64"];
    run("ppl", &policies);
    let with_recall = ["streaming_llm", "inf_mllm", "inf_mllm+recall"];
    let printed = run(
        "recall",
        &[
            &["--policies"],
            with_recall.as_slice(),
            &["--budgets", "64", "--distances", "50", "200"],
        ]
        .concat(),
    );
    for words in ["Difference from streaming_llm", "recalled or still kept"] {
        assert!(printed.contains(words), "{printed}");
    }
    run("stream", &policies);
    let printed = run(
        "sweep",
        &["--budget", "64", "--slopes", "0.01", "--ranges", "1"],
    );
    assert!(printed.contains("bias=0.01"), "{printed}");
    let printed = eval(
        folder.path(),
        &["plot", "--results", "all.jsonl", "--out", "plots"],
    );
    for figure in ["ppl", "cost", "ages", "recall", "bias", "kept"] {
        for end in [".svg", ".png"] {
            let found = printed
                .split([',', '\n'])
                .map(str::trim)
                .find(|name| name.starts_with(&format!("plots/{figure}")) && name.ends_with(end));
            let name = found.unwrap_or_else(|| panic!("no {figure}{end} in {printed}"));
            let size = folder.path().join(name).metadata().unwrap().len();
            assert!(size > 2000, "{name} has {size} bytes");
        }
    }
}
