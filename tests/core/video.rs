//! The evaluation on drives: floor, oracle and policies are what they say they are, and a run goes on where it ended.

use std::fs;
use std::path::Path;
use std::process::Output;

use inf_mllm::eval::store;
use inf_mllm::stream::session::EncodedFrame;
use inf_mllm::stream::{Answer, Session};
use serde_json::Value;
use tempfile::TempDir;

use crate::cache_stream::Seen;
use crate::commands::{failed, path, replay, run, succeeded, write_bag};
use crate::support::{demo_dir, instruction, json, picture, tiny_config, tiny_dir};

const SCRIPT: &str = "
system_prompt: Be brief.
aside: true
resets: [0.0]
instructions:
  - {id: a, at: 1.05, text: What is in view?, answer: x, type: closest, cell: now, age: 0.05, shown: [1.0]}
  - {id: b, at: 3.0, text: Where was it seen?, answer: y, type: past_side, cell: 5s, age: 2.5, shown: [0.4, 0.5]}
  - {id: c, at: 3.9, text: Did you see it?, answer: z, accept: [w], type: past_seen, cell: 5s, age: 3.9, shown: [0.0]}
";

/// The bag of `write_bag` and its script.
fn drive(script: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_bag(dir.path(), 40, None, true);
    fs::write(dir.path().join("instructions.yaml"), script).unwrap();
    dir
}

fn video(bag: &Path, out: &Path, more: &[&str]) -> Output {
    let model = tiny_dir();
    let args = [
        "eval",
        "video",
        "--model",
        path(&model),
        "--bag",
        path(bag),
        "--out",
        path(out),
        "--budget",
        "200",
        "--threads",
        "1",
    ];
    run(&[&args, more].concat())
}

/// Texts of the answers of the lane whose key has these parameters.
fn answers(file: &Path, frames: &str, lane: &str) -> Vec<String> {
    let records = store::read(file).unwrap();
    let policy = lane.trim_end_matches("+recall");
    let found = records.iter().find(|record| {
        let parameters = &record["key"]["parameters"];
        let recalls = !parameters["archive"].is_null();
        parameters["frames"] == frames
            && parameters["cache"]["policy"] == policy
            && recalls == (policy != lane)
    });
    let found = found.unwrap_or_else(|| panic!("no lane {frames} {lane}"));
    texts(found["result"]["answers"].as_array().unwrap())
}

fn texts(answers: &[Value]) -> Vec<String> {
    let texts = answers.iter().filter_map(|answer| answer["text"].as_str());
    texts.map(str::to_string).collect()
}

#[test]
fn policies_and_floor_answer_as_a_replay_does() {
    let dir = drive(SCRIPT);
    let out = dir.path().join("out.jsonl");
    let policies = [
        "h2o",
        "inf_mllm",
        "inf_mllm+recall",
        "last_frames:last_frames=2",
    ];
    succeeded(&video(
        dir.path(),
        &out,
        &[&["--floor", "--oracle", "--policies"], policies.as_slice()].concat(),
    ));
    let script = dir.path().join("instructions.yaml");
    let replayed = |more: &str| {
        let file = dir.path().join("replay.jsonl");
        let more = ["--budget", "200"].into_iter().chain(more.split(' '));
        let more = more.collect::<Vec<_>>();
        succeeded(&replay(dir.path(), &script, &file, &more));
        let lines = fs::read_to_string(&file).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        texts(&lines.collect::<Vec<Value>>())
    };
    let black = replayed("--policy inf_mllm --archive-bytes 0 --black");
    for (frames, lane, as_replayed) in [
        ("drive", "h2o", "--policy h2o --archive-bytes 0"),
        ("drive", "inf_mllm", "--policy inf_mllm --archive-bytes 0"),
        ("drive", "inf_mllm+recall", "--policy inf_mllm"),
        (
            "drive",
            "last_frames",
            "--policy last_frames --last-frames 2",
        ),
        (
            "oracle",
            "inf_mllm",
            "--policy inf_mllm --nothing-new 1 --oracle",
        ),
    ] {
        let expected = replayed(as_replayed);
        assert_eq!(expected.len(), 3);
        assert_eq!(answers(&out, frames, lane), expected, "{frames} {lane}");
    }
    assert_eq!(answers(&out, "black", "inf_mllm"), black);
    assert_ne!(
        answers(&out, "drive", "inf_mllm"),
        black,
        "pictures make no difference"
    );
}

#[test]
fn a_run_goes_on_where_it_ended_and_its_results_can_be_plotted() {
    let dir = drive(SCRIPT);
    let at = |name: &str| dir.path().join(name);
    let all = ["--floor", "--oracle", "--policies", "h2o", "inf_mllm"];
    let whole = succeeded(&video(dir.path(), &at("whole.jsonl"), &all));
    succeeded(&video(
        dir.path(),
        &at("parts.jsonl"),
        &["--floor", "--policies", "inf_mllm"],
    ));
    // Killed while it wrote: the last record is half a line.
    let parts = fs::read_to_string(at("parts.jsonl")).unwrap();
    fs::write(at("parts.jsonl"), &parts[..parts.len() - 40]).unwrap();
    succeeded(&video(dir.path(), &at("parts.jsonl"), &all));
    let records = |name: &str| {
        let mut records = store::read(&at(name)).unwrap();
        records.iter_mut().for_each(|record| {
            record["about"].take();
        });
        records.sort_by_key(|record| record["key"].to_string());
        records
    };
    assert_eq!(records("parts.jsonl"), records("whole.jsonl"));
    assert_eq!(records("whole.jsonl").len(), 4);
    assert_eq!(
        json(&at("parts.summary.json")),
        json(&at("whole.summary.json"))
    );
    let row = whole
        .lines()
        .find(|line| line.starts_with("| questions | now (1) | 5s (2) |"));
    assert!(row.is_some(), "{whole}");
    // Nothing is left to do: the file stays as it is.
    let before = fs::read_to_string(at("parts.jsonl")).unwrap();
    let again = succeeded(&video(dir.path(), &at("parts.jsonl"), &all));
    assert_eq!(fs::read_to_string(at("parts.jsonl")).unwrap(), before);
    assert_eq!(again.replace("parts", "whole"), whole);
    // Other questions are another measurement.
    succeeded(&video(
        dir.path(),
        &at("parts.jsonl"),
        &["--limit", "2", "--policies", "h2o"],
    ));
    assert_eq!(records("parts.jsonl").len(), 5);

    let printed = succeeded(&run(&[
        "eval",
        "plot",
        "--results",
        path(&at("whole.jsonl")),
        "--out",
        path(&at("plots")),
    ]));
    for end in ["svg", "png"] {
        assert!(printed.contains(&format!("budget-200.{end}")), "{printed}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_was_expected() {
    let dir = drive(SCRIPT);
    let out = dir.path().join("out.jsonl");
    let with = |script: &str, more: &[&str]| {
        fs::write(dir.path().join("instructions.yaml"), script).unwrap();
        failed(&video(dir.path(), &out, &[more, &["--oracle"]].concat()))
    };
    for (from, to, said) in [
        ("aside: true", "aside: false", "aside is false, expected true"),
        ("resets: [0.0]", "resets: [2.0]", "a reset at 2 s, expected none behind 0"),
        ("cell: now, ", "", "instruction a has no cell, expected one of: now, 5s, 30s, "),
        ("cell: now", "cell: 7s", "instruction a: cell \"7s\", expected one of: now, 5s, 30s, "),
        ("type: closest, ", "", "instruction a has no type, expected"),
        ("age: 0.05, ", "", "instruction a has no age, expected seconds"),
        ("answer: x, ", "", "instruction a has no answer, expected"),
        (", shown: [1.0]", "", "instruction a (closest) has no shown, expected"),
        ("shown: [1.0]", "shown: [1.3]", "instruction a was shown at 1.3 s, but the nearest image before it is 0.300 s away"),
        ("shown: [0.4, 0.5]", "shown: [0.5, 0.4]", "expected ascending times"),
        ("at: 3.9,", "at: 9,", "its 40 images end 3.900 s after the first one, expected some up to the last instruction at 9 s"),
        ("at: 1.05", "at: -1", "instruction a is at -1 s, expected 0 or more"),
    ] {
        assert!(SCRIPT.contains(from), "{from}");
        let error = with(&SCRIPT.replace(from, to), &[]);
        assert!(error.contains("instructions.yaml: ") || error.contains("images end"), "{error}");
        assert!(error.contains(said), "{said}: {error}");
    }
    for (more, said) in [
        (
            &["--reference", "last_frames"][..],
            "reference is last_frames, expected a policy with a memory",
        ),
        (
            &["--policies", "full"],
            "policy is full, expected one that evicts",
        ),
        (
            &["--policies", "tova", "tova"],
            "policy tova is given twice",
        ),
        (
            &["--policies", "tova:n_recnt=3"],
            "unknown parameter n_recnt",
        ),
        (
            &["--policies", "last_frames+recall"],
            "policy is last_frames+recall, expected one with a memory",
        ),
        (
            &["--instructions", "a.yaml", "b.yaml"],
            "2 files of instructions, expected one for each of the 1 bags",
        ),
    ] {
        let error = with(SCRIPT, more);
        assert!(error.contains(said), "{said}: {error}");
    }
    let twice = dir.path().join("sub").join(dir.path().file_name().unwrap());
    fs::create_dir_all(&twice).unwrap();
    for name in ["bag.mcap", "instructions.yaml"] {
        fs::copy(dir.path().join(name), twice.join(name)).unwrap();
    }
    let error = with(SCRIPT, &["--bag", path(&twice)]);
    assert!(error.contains("two bags are named"), "{error}");
}

/// Frames of different colours, encoded; number `i` is of `i` half seconds.
fn encoded(session: &Session, count: i64) -> Vec<EncodedFrame> {
    let colour = |i: i64| [(i * 40 % 256) as u8, 90, (255 - i * 23 % 256) as u8];
    let frames = (0..count).map(|i| picture(i * 500, colour(i)));
    frames
        .map(|frame| session.encode_frame(&frame).unwrap())
        .collect()
}

/// Asks aside; the frames of these numbers are recalled.
fn ask(session: &mut Session, frames: &[EncodedFrame]) -> Answer {
    let mut asked = instruction("a", "What was seen before?");
    asked.ephemeral = true;
    asked.recall.stamps_ns = frames.iter().map(EncodedFrame::stamp_ns).collect();
    session.ask(&asked, &|| false, &mut |_| ())
}

#[test]
fn what_an_oracle_recalls_is_read_and_leaves_no_trace() {
    let mut config = tiny_config();
    config.archive.nothing_new = 1.0;
    let mut session = Session::new(config).unwrap();
    let frames = encoded(&session, 30);
    for frame in &frames {
        session.push_encoded(frame).unwrap();
    }
    assert!(session.usage().tokens_evicted > 0);
    let state = |session: &Session| {
        let state = session.state();
        (Seen::of(&state.cache), format!("{:?}", state.stream))
    };
    let before = state(&session);
    let answers = [2..4, 3..5].map(|shown| {
        let answer = ask(&mut session, &frames[shown.clone()]);
        assert_eq!(answer.error, None);
        let stamps = answer.recalled.iter().map(|unit| unit.stamp_ns);
        let wanted = frames[shown].iter().map(EncodedFrame::stamp_ns);
        assert!(stamps.eq(wanted));
        assert_eq!(state(&session), before);
        answer.mean_logprob
    });
    assert_ne!(answers[0], answers[1]);
}

/// Wide bounds around what was measured: 74 of 104 about the past with recall, 54 without, fewer with the last frames alone; all 21 about
/// now.
#[test]
fn over_five_minutes_recall_answers_what_has_left_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.jsonl");
    let minutes = Path::new(env!("CARGO_MANIFEST_DIR")).join("bags/minutes");
    let model = demo_dir();
    let args = ["eval", "video", "--model", path(&model), "--threads", "1"];
    let files = ["--bag", path(&minutes), "--out", path(&out)];
    let lanes = ["--policies", "last_frames", "inf_mllm", "inf_mllm+recall"];
    succeeded(&run(&[&args[..], &files, &lanes].concat()));
    let right = |policy: &str, recalls: bool, now: bool| {
        let records = store::read(&out).unwrap();
        let lane = records.iter().find(|record| {
            let parameters = &record["key"]["parameters"];
            let recalled = !parameters["archive"].is_null();
            parameters["cache"]["policy"] == policy && recalled == recalls
        });
        let answers = lane.unwrap()["result"]["answers"].as_array().unwrap();
        let asked = answers.iter().filter(|one| (one["cell"] == "now") == now);
        asked.filter(|answer| answer["right"] == true).count()
    };
    let recalled = right("inf_mllm", true, false);
    assert!(recalled >= right("last_frames", false, false) + 25);
    assert!(recalled >= right("inf_mllm", false, false) + 8);
    assert!(right("inf_mllm", true, true) >= 19);
}
