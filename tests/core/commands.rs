//! The command line as a user runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use byteorder::LittleEndian;
use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::bags::{serialized, Header, RawImage};
use crate::support::{deviation, golden, json, tensors, tiny_dir};

pub fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(args)
        .output()
        .unwrap()
}

pub fn succeeded(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn failed(output: &Output) -> String {
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// A replay of the tiny model.
pub fn replay(bag: &Path, script: &Path, out: &Path, more: &[&str]) -> Output {
    let model = tiny_dir();
    let args = [
        "replay",
        "--bag",
        path(bag),
        "--instructions",
        path(script),
        "--model",
        path(&model),
        "--out",
        path(out),
    ];
    run(&[&args, more].concat())
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

#[test]
fn generate_prints_the_ids_of_transformers_and_writes_the_logits() {
    let dir = golden("tiny_forward");
    let about = json(&dir.join("forward.json"));
    let expected = tensors(&dir.join("expected.safetensors"));
    let out = tempfile::tempdir().unwrap();
    let logits = out.path().join("logits.safetensors");
    let images = about["images"].as_array().unwrap();
    let images = images
        .iter()
        .map(|name| dir.join(name.as_str().unwrap()))
        .collect::<Vec<_>>();
    let model = tiny_dir();
    let mut args = vec![
        "generate",
        "--model",
        path(&model),
        "--prompt",
        about["question"].as_str().unwrap(),
        "--logits-out",
        path(&logits),
        "--json",
    ];
    for image in &images {
        args.extend(["--image", path(image)]);
    }
    let answer: Value = serde_json::from_str(&succeeded(&run(&args))).unwrap();
    let list = |name: &str| -> Vec<u32> { serde_json::from_value(answer[name].clone()).unwrap() };
    let inputs = tensors(&dir.join("inputs.safetensors"));
    assert_eq!(list("prompt_ids"), ids(&inputs["input_ids"]));
    let written = &tensors(&logits)["logits"];
    let rows = list("prompt_ids").len();
    assert_eq!(written.dims(), [rows, expected["logits"].dim(2).unwrap()]);
    // The pictures pass through this crate's resizing, two grey levels from the reference's at most.
    let off = deviation(written, &expected["logits"].squeeze(0).unwrap());
    assert!(off < 0.5, "logits differ by {off}");
    assert!(answer["text"].is_string());
    assert!(!list("generated_ids").is_empty());
}

#[test]
fn forward_writes_the_numbers_of_transformers() {
    let dir = golden("tiny_forward");
    let expected = tensors(&dir.join("expected.safetensors"));
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("out.safetensors");
    let inputs = dir.join("inputs.safetensors");
    let model = tiny_dir();
    for (dtype, tolerance) in [("f32", 1e-4), ("f16", 0.1), ("bf16", 1.0)] {
        succeeded(&run(&[
            "forward",
            "--model",
            path(&model),
            "--inputs",
            path(&inputs),
            "--out",
            path(&file),
            "--dtype",
            dtype,
        ]));
        let got = tensors(&file);
        let rows = expected["image_features"].flatten_to(1).unwrap();
        for (name, expected) in [("image_features", &rows), ("logits", &expected["logits"])] {
            let off = deviation(&got[name], expected);
            assert!(off <= tolerance, "{dtype}: {name} differs by {off}");
        }
    }
}

/// A bag of `frames` raw images, ten per second from 100 s on or without a stamp, of which number `bad` holds too little data.
pub fn write_bag(dir: &Path, frames: u32, bad: Option<u32>, stamped: bool) {
    let file = fs::File::create(dir.join("bag.mcap")).unwrap();
    let mut writer = mcap::Writer::new(std::io::BufWriter::new(file)).unwrap();
    let schema = writer
        .add_schema("sensor_msgs/msg/Image", "ros2msg", b"")
        .unwrap();
    let channel = writer
        .add_channel(schema, "/camera/image", "cdr", &Default::default())
        .unwrap();
    for i in 0..frames {
        let pixel = [(i * 17 % 256) as u8, 90, (255 - i * 5 % 256) as u8];
        let message = RawImage {
            header: Header {
                sec: if stamped { 100 + (i / 10) as i32 } else { 0 },
                nanosec: if stamped { i % 10 * 100_000_000 } else { 0 },
                frame_id: "camera",
            },
            height: 10,
            width: 12,
            encoding: "rgb8",
            is_bigendian: 0,
            step: 36,
            data: pixel.repeat(if Some(i) == bad { 7 } else { 120 }),
        };
        let data = serialized::<LittleEndian>(&message, 1);
        let time = u64::from(i) * 100_000_000;
        let header = mcap::records::MessageHeader {
            channel_id: channel,
            sequence: i,
            log_time: time,
            publish_time: time,
        };
        writer.write_to_known_channel(&header, &data).unwrap();
    }
    writer.finish().unwrap();
}

const SCRIPT: &str = "
bag: test
system_prompt: Be brief.
resets: [0.0, 3.0, 4.5]
instructions:
  - {id: a, at: 1.0, text: What is in view?, answer: nothing, type: view, memory: view}
  - {id: b, at: 2.95, text: What was seen just before?, max_new_tokens: 3}
  - {id: c, at: 9.0, text: '', answer: x}
";

#[test]
fn replay_is_the_same_to_the_byte_and_counts_what_it_saw() {
    let dir = tempfile::tempdir().unwrap();
    write_bag(dir.path(), 40, Some(5), true);
    let script = dir.path().join("script.yaml");
    fs::write(&script, SCRIPT).unwrap();
    let answers = |name: &str, threads: &str| {
        let out = dir.path().join(name);
        let more = ["--budget", "200", "--repeat", "2", "--threads", threads];
        let done = replay(dir.path(), &script, &out, &more);
        // What lies behind the bag is said, once, and without colours where nobody looks on.
        let warned = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!warned.contains('\x1b'), "{warned}");
        let ends = "but the images of the bag end 3.900 s after the first one";
        for (said, times) in [
            ("instruction c is at 9 s, ", 1),
            ("a reset is at 4.5 s, ", 1),
            (ends, 2),
        ] {
            assert_eq!(warned.matches(said).count(), times, "{warned}");
        }
        let printed = succeeded(&done);
        for said in [
            "78 frames (2 rejected, 0 skipped)",
            "6 answers, 2 errors",
            "of    4",
        ] {
            assert!(printed.contains(said), "{printed}");
        }
        fs::read_to_string(&out).unwrap()
    };
    let first = answers("one.jsonl", "1");
    assert_eq!(first, answers("two.jsonl", "1"));
    assert_eq!(first, answers("three.jsonl", "3"));

    let lines = first
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .collect::<Vec<_>>();
    let ids = lines.iter().filter_map(|line| line["id"].as_str());
    assert_eq!(
        ids.collect::<Vec<_>>(),
        ["a", "b", "c", "a#1", "b#1", "c#1"]
    );
    // Eleven frames up to 1.0 s, one of them bad; the answer rests on the last.
    assert_eq!(lines[0]["frames_seen"], 10);
    assert_eq!(lines[0]["newest_frame_stamp_ns"], 101_000_000_000i64);
    assert_eq!(lines[0]["correct"], false);
    assert!(lines[1]["output_tokens"].as_u64().unwrap() <= 3);
    assert!(lines[1]["correct"].is_null());
    assert_eq!(
        lines[2]["frames_seen"], 10,
        "frames since the reset at 3.0 s"
    );
    assert_eq!(lines[2]["finish_reason"], "error");
    let summary = &lines[6]["summary"];
    assert_eq!(summary["frames"], 78);
    assert_eq!(summary["frames_rejected"], 2);
    assert_eq!(summary["errors"], 2);
    assert!(summary["most_used"].as_u64() <= summary["budget"].as_u64());
    assert!(summary["tokens_evicted"].as_u64().unwrap() > 0);
    assert_eq!(summary["all"]["of"], 4);
    assert!(dir.path().join("one.timings.jsonl").is_file());
}

#[test]
fn images_without_a_stamp_have_the_time_of_their_recording() {
    let dir = tempfile::tempdir().unwrap();
    write_bag(dir.path(), 40, None, false);
    let script = dir.path().join("script.yaml");
    fs::write(&script, SCRIPT).unwrap();
    let out = dir.path().join("out.jsonl");
    let done = replay(dir.path(), &script, &out, &["--frame-rate", "2"]);
    let warned = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(
        warned.matches("images without a stamp").count(),
        1,
        "{warned}"
    );
    let printed = succeeded(&done);
    // Two of each of the four seconds.
    assert!(
        printed.contains("8 frames (0 rejected, 32 skipped), "),
        "{printed}"
    );
    let answers = fs::read_to_string(&out).unwrap();
    let first: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    assert_eq!(first["newest_frame_stamp_ns"], 1_000_000_000);
    assert_eq!(first["frames_seen"], 3);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let model = tiny_dir();
    for args in [&["parameters"][..], &["inspect", path(&model), "--json"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        succeeded(&child.wait_with_output().unwrap());
    }
}

#[test]
fn wrong_arguments_and_files_are_named() {
    let model = tiny_dir();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("x.jsonl");
    let error = failed(&run(&[
        "generate", "--model", "no/model", "--prompt", "hello",
    ]));
    assert!(error.contains("no/model"), "{error}");
    let error = failed(&run(&[
        "generate",
        "--model",
        path(&model),
        "--prompt",
        "hello",
        "--policy",
        "lru",
    ]));
    assert!(
        error.contains("lru") && error.contains("inf_mllm"),
        "{error}"
    );
    let error = failed(&run(&[
        "generate",
        "--model",
        path(&model),
        "--prompt",
        "hello",
        "--budget",
        "9",
    ]));
    assert!(error.contains("budget") && error.contains('9'), "{error}");
    let error = failed(&run(&[
        "generate",
        "--model",
        path(&model),
        "--prompt",
        "hello",
        "--image",
        "no.png",
    ]));
    assert!(error.contains("no.png"), "{error}");
    // What the node would refuse of a camera is refused of a file.
    let deep = out.path().join("deep.png");
    image::ImageBuffer::<image::Luma<u16>, _>::new(8, 8)
        .save(&deep)
        .unwrap();
    let picture = ["--image", path(&deep)];
    let args = ["generate", "--model", path(&model), "--prompt", "hello"];
    let error = failed(&run(&[&args[..], &picture].concat()));
    assert!(
        error.contains("deep.png") && error.contains("16 bits a channel, expected 8"),
        "{error}"
    );
    let script = out.path().join("script.yaml");
    for (text, word) in [
        ("instructions: [{id: a, at: 1.0}]", "text"),
        (
            "instructions: [{id: a, at: .nan, text: hi}]",
            "expected seconds",
        ),
        (
            "instructions: [{id: a, at: 1, text: hi}, {id: a, at: 2, text: hi}]",
            "twice",
        ),
    ] {
        fs::write(&script, text).unwrap();
        let error = failed(&replay(out.path(), &script, &file, &[]));
        assert!(
            error.contains(word) && error.contains("script.yaml"),
            "{error}"
        );
    }
    let error = failed(&replay(out.path(), &golden("README.md"), &file, &[]));
    assert!(error.contains("README.md"), "{error}");
}

#[test]
fn pipes_in_the_place_of_bags_and_images_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("0.mcap");
    assert!(Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap()
        .success());
    let script = dir.path().join("script.yaml");
    fs::write(&script, SCRIPT).unwrap();
    let out = dir.path().join("out.jsonl");
    let model = tiny_dir();
    let model = path(&model);
    let image = [
        "generate",
        "--model",
        model,
        "--prompt",
        "hello",
        "--image",
        path(&pipe),
    ];
    let inputs = [
        "forward",
        "--model",
        model,
        "--out",
        path(&out),
        "--inputs",
        path(&pipe),
    ];
    for output in [
        replay(&pipe, &script, &out, &[]),
        replay(dir.path(), &script, &out, &[]),
        run(&image),
        run(&inputs),
    ] {
        let error = failed(&output);
        assert!(error.contains("0.mcap"), "{error}");
        assert!(error.contains("a named pipe, expected a file"), "{error}");
    }
}

#[test]
fn errors_are_one_line_where_backtraces_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    let inputs = dir.path().join("inputs.safetensors");
    let model = tiny_dir();
    let beyond = Tensor::new(&[[1_000_000u32]], &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("input_ids", beyond)].into(), &inputs).unwrap();
    let cut = dir.path().join("cut.safetensors");
    fs::write(&cut, b"cut").unwrap();
    let forward = |inputs: &Path, out: &Path| {
        Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
            .args([
                "forward",
                "--model",
                path(&model),
                "--inputs",
                path(inputs),
                "--out",
                path(out),
            ])
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap()
    };
    let nowhere = dir.path().join("no/folder/out.safetensors");
    let whole = golden("tiny_forward").join("inputs.safetensors");
    for (inputs, out) in [
        (&inputs, &out),
        (&cut, &out),
        (&dir.path().join("none"), &out),
        (&whole, &nowhere),
    ] {
        let error = failed(&forward(inputs, out));
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
