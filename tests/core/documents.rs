//! The commands of the documents: each is one that the command line, or the Makefile, takes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::commands::{run, succeeded};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and what lies in docs/.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = docs
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    files.sort();
    files.insert(0, root().join("README.md"));
    files
}

/// The lines of a document's code, fenced or indented by four; one that ends with a backslash goes on in the next.
fn code(text: &str) -> Vec<String> {
    let (mut lines, mut fenced) = (Vec::new(), false);
    for line in text.replace("\\\n", " ").lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            lines.push(line.trim().to_string());
        }
    }
    lines
}

/// The words of a shell's command, up to a comment or to what stands behind the command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            ('#' | '|' | '>' | '&' | ';', None) if word.is_none() => break,
            (_, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The commands of all documents that begin with one of these words, each with the place where it stands.
fn commands(first: &[&str]) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for line in code(&text) {
            let words = words(line.trim_start_matches("$ "));
            if words.first().is_some_and(|word| first.contains(&&**word)) {
                let place = format!("{}: {line}", file.display());
                found.push((place, words));
            }
        }
    }
    found
}

#[test]
fn the_command_line_takes_every_command_of_the_documents() {
    let names = [
        "inf_mllm",
        "target/release/inf_mllm",
        "target/cuda/release/inf_mllm",
    ];
    let commands = commands(&names);
    assert!(commands.len() > 30, "{} commands", commands.len());
    for (place, words) in commands {
        // What is asked for the help behind its options checks them all and does nothing.
        let mut args: Vec<_> = words[1..].iter().map(|word| &**word).collect();
        args.push("--help");
        let output = run(&args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}\n{error}");
        assert!(succeeded(&output).contains("Usage: inf_mllm"), "{place}");
    }
}

#[test]
fn an_option_that_is_not_there_does_not_pass_for_one_that_is() {
    for wrong in [
        ["inspect", "models/demo", "--memori", "8", "--help"],
        ["inspect", "models/demo", "--budget", "-8", "--help"],
        ["replay", "--model", "models/demo", "--watches-limit", "4"],
    ] {
        assert_eq!(run(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn the_makefile_has_every_target_of_the_documents() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: Vec<_> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.', ' ']))
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target)
        .collect();
    let commands = commands(&["make"]);
    assert!(commands.len() > 5, "{} commands", commands.len());
    for (place, words) in commands {
        for target in words[1..].iter().filter(|word| !word.contains('=')) {
            assert!(targets.contains(&&**target), "{place}");
        }
    }
}
