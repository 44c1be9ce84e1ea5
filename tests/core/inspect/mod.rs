//! What `inspect` says of a checkpoint, and of everything that people take for one, as a user of the command line meets it.
//!
//! - this file: running it
//! - `foreign`: what is no checkpoint
//! - `damaged`: what is not whole or does not fit
//! - `places`: where models lie
//! - `hub`: models by their names on a hub
//! - `report`: the numbers, and what stands in the way of running

mod damaged;
mod foreign;
mod hub;
mod places;
mod report;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{json, tiny_copy};

const WEIGHTS: &str = "model.safetensors";

/// `inf_mllm inspect ARGS`, with backtraces asked for, as developers have it.
fn inspect(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .arg("inspect")
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is said of a checkpoint that is whole.
fn complete(args: &[&str]) -> Value {
    let output = inspect(&[args, &["--json"]].concat());
    let report = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert!(output.status.success(), "{}", report["problems"]);
    report
}

/// What is said of a checkpoint that is not, which holds all of `words`.
fn refused(model: &Path, words: &[&str]) -> String {
    let output = inspect(&[path(model)]);
    let said = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}{error}");
    let problem = said.lines().find(|line| line.starts_with("PROBLEM"));
    let problem = problem.unwrap_or_else(|| panic!("no problem in {said}"));
    for word in words {
        assert!(problem.contains(word), "{word:?} is not in: {problem}");
    }
    for word in ["panicked", "stack backtrace", " at src/", "Some(", ".rs:"] {
        let all = format!("{said}{error}");
        assert!(!all.contains(word), "{word:?} is in: {all}");
    }
    problem.to_string()
}

/// A copy of the tiny checkpoint without weights, with files in their place.
fn with_instead(files: &[&str]) -> TempDir {
    let dir = tiny_copy();
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    for name in files {
        write(dir.path(), name, "binary");
    }
    dir
}

/// A folder with these files and nothing else.
fn with_only(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    let file = dir.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = json(&dir.join(name));
    change(&mut value);
    write(dir, name, &value.to_string());
}
