//! Where models lie: hub caches, links, pipes, GGUF files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{complete, path, refused, write, WEIGHTS};
use crate::support::{copy_tiny_to, golden, tiny_copy, tiny_dir};

/// A hub's cache with the tiny model: the folder that holds all models, and that of the model.
fn hub_cache() -> (TempDir, std::path::PathBuf) {
    let cache = TempDir::new().unwrap();
    let root = cache.path().join("models--org--tiny");
    copy_tiny_to(&root.join("snapshots/0a1b"));
    write(&root, "refs/main", "0a1b");
    (cache, root)
}

#[test]
fn the_root_of_a_hub_cache_is_its_snapshot() {
    let (cache, root) = hub_cache();
    assert_eq!(complete(&[path(&root)])["family"], "SmolVLM");
    refused(cache.path(), &["models--org--tiny", "a hub's cache"]);
    // Of several the one that the branch main is, else none.
    fs::create_dir(root.join("snapshots/ffff")).unwrap();
    complete(&[path(&root)]);
    fs::remove_file(root.join("refs/main")).unwrap();
    refused(
        &root,
        &["several snapshots", "snapshots/0a1b", "snapshots/ffff"],
    );
}

#[test]
fn links_to_nothing_are_told() {
    let (_cache, root) = hub_cache();
    let snapshot = root.join("snapshots/0a1b");
    for name in [WEIGHTS, "config.json", "tokenizer.json"] {
        let file = snapshot.join(name);
        let kept = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        symlink("../../blobs/4d7a", &file).unwrap();
        refused(&root, &[name, "a link to ../../blobs/4d7a", "not there"]);
        fs::remove_file(&file).unwrap();
        fs::write(&file, kept).unwrap();
    }
    complete(&[path(&root)]);
    let link = root.join("gone");
    symlink("elsewhere", &link).unwrap();
    refused(&link, &["gone", "a link to elsewhere"]);
}

#[test]
fn a_tilde_is_the_home() {
    let home = TempDir::new().unwrap();
    copy_tiny_to(&home.path().join("models/tiny"));
    let output = Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .args(["inspect", "~/models/tiny"])
        .env("HOME", home.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("complete"), "{said}");
}

/// Makes a named pipe that nobody writes to.
fn pipe(file: &Path) {
    assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
}

#[test]
fn pipes_and_folders_in_the_place_of_files_are_not_waited_for() {
    for name in [WEIGHTS, "config.json", "tokenizer.json"] {
        let dir = tiny_copy();
        let file = dir.path().join(name);
        fs::remove_file(&file).unwrap();
        pipe(&file);
        refused(dir.path(), &[name, "a named pipe, expected a file"]);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        refused(dir.path(), &[name, "a folder, expected a file"]);
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("model.gguf");
    pipe(&file);
    refused(&file, &["model.gguf", "a named pipe, expected a file"]);
    refused(dir.path(), &["model.gguf", "a named pipe, expected a file"]);
    let tower = dir.path().join("mmproj.gguf");
    fs::rename(&file, &tower).unwrap();
    fs::write(&file, gguf("llama")).unwrap();
    let report = complete(&[path(&file)]);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("mmproj.gguf: a named pipe"), "{note}");
    refused(
        Path::new("/dev/zero"),
        &["/dev/zero", "a device, expected a file"],
    );
}

fn gguf(name: &str) -> Vec<u8> {
    fs::read(golden("gguf").join(format!("{name}.gguf"))).unwrap()
}

#[test]
fn gguf_files_are_found_whatever_their_names_are_written_in() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("MODEL-Q8_0.GGUF"), gguf("llama")).unwrap();
    let report = complete(&[path(dir.path())]);
    assert_eq!(report["decoder"], "llama");
    // A folder of the same ending is none.
    fs::create_dir(dir.path().join("old.gguf")).unwrap();
    complete(&[path(dir.path())]);
    // Beside a config.json without weights it is the model.
    copy_tiny_to(dir.path());
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(complete(&[path(dir.path())])["family"], "text");
    // Beside published weights it is not, which is said.
    copy_tiny_to(dir.path());
    let report = complete(&[path(dir.path())]);
    assert_eq!(report["family"], "SmolVLM");
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("MODEL-Q8_0.GGUF is not used"), "{note}");
}

#[test]
fn several_decoders_are_listed_and_one_of_them_can_be_given() {
    let dir = TempDir::new().unwrap();
    for (name, model) in [("a-Q4_0.gguf", "llama"), ("b-Q8_0.gguf", "qwen3")] {
        fs::write(dir.path().join(name), gguf(model)).unwrap();
    }
    refused(
        dir.path(),
        &[
            "several decoders",
            "a-Q4_0.gguf (llama, 0.2 MB, ",
            "b-Q8_0.gguf (qwen3, ",
            "model_file",
        ],
    );
    let chosen = complete(&[path(dir.path()), "--model-file", "b-Q8_0.gguf"]);
    assert_eq!(chosen["decoder"], "qwen3");
    let one = dir.path().join("b-Q8_0.gguf");
    assert_eq!(complete(&[path(&one)])["decoder"], "qwen3");
    let towers = TempDir::new().unwrap();
    fs::write(towers.path().join("mmproj-f16.gguf"), gguf("mmproj-llava")).unwrap();
    refused(
        towers.path(),
        &["mmproj-f16.gguf (clip, ", "the decoder is missing"],
    );
    let tower = towers.path().join("mmproj-f16.gguf");
    refused(
        &tower,
        &[
            "mmproj-f16.gguf",
            "a vision tower",
            "expected the file of the decoder",
        ],
    );
    let weights = tiny_dir().join(WEIGHTS);
    refused(
        &weights,
        &[WEIGHTS, "expected the folder", path(&tiny_dir())],
    );
}
