//! Models by their names on a hub, in caches as huggingface_hub lays them out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::{write, WEIGHTS};
use crate::support::{golden, tiny_dir};

/// What may say where the cache is.
const VARIABLES: [&str; 4] = [
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HOME",
    "XDG_CACHE_HOME",
];
const NAME: &str = "org/tiny-VLM";
const COMMIT: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";

/// A user's home, with the cache below it.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn cache(&self) -> PathBuf {
        self.path().join(".cache/huggingface/hub")
    }

    fn root(&self) -> PathBuf {
        self.cache().join("models--org--tiny-VLM")
    }

    fn snapshot(&self) -> PathBuf {
        self.root().join("snapshots").join(COMMIT)
    }

    /// With the tiny model as the branch main.
    fn with_tiny() -> Self {
        let home = Self::new();
        download(&home.cache(), &tiny_dir());
        home
    }

    /// `inf_mllm inspect MODEL` in this home.
    fn inspect(&self, model: &str, variables: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
        for name in VARIABLES {
            command.env_remove(name);
        }
        command
            .args(["inspect", model])
            .current_dir(self.path())
            .env("HOME", self.path())
            .envs(variables.iter().copied());
        command.output().unwrap()
    }

    fn complete(&self, model: &str, variables: &[(&str, &Path)]) -> String {
        let output = self.inspect(model, variables);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains("complete              yes"), "{said}");
        said
    }

    fn refused(&self, model: &str, words: &[&str]) -> String {
        self.refused_with(model, &[], words)
    }

    fn refused_with(&self, model: &str, variables: &[(&str, &Path)], words: &[&str]) -> String {
        let output = self.inspect(model, variables);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let problem = said.lines().find(|line| line.starts_with("PROBLEM"));
        let problem = problem.unwrap_or_else(|| panic!("no problem in {said}"));
        for word in words {
            assert!(problem.contains(word), "{word:?} is not in: {problem}");
        }
        problem.to_string()
    }
}

/// Puts a model into a cache as huggingface_hub does: contents as blobs, and links to them as the files of a commit.
fn download(cache: &Path, model: &Path) {
    let root = cache.join("models--org--tiny-VLM");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("blobs")).unwrap();
    write(&root, "refs/main", COMMIT);
    for (i, entry) in fs::read_dir(model).unwrap().enumerate() {
        let entry = entry.unwrap();
        let blob = format!("{i:040x}");
        fs::copy(entry.path(), root.join("blobs").join(&blob)).unwrap();
        symlink(
            Path::new("../../blobs").join(&blob),
            snapshot.join(entry.file_name()),
        )
        .unwrap();
    }
}

#[test]
fn a_name_is_looked_up_in_the_cache_that_the_first_variable_names() {
    let home = Home::with_tiny();
    assert!(home.complete(NAME, &[]).contains("SmolVLM"));
    // Each counts before those behind it, which name caches without the model.
    let (full, empty) = (Home::new(), Home::new());
    for (i, (name, below)) in [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ]
    .into_iter()
    .enumerate()
    {
        let place = full.path().join(name);
        download(&place.join(below), &tiny_dir());
        let mut variables = vec![(name, place.as_path())];
        let behind = VARIABLES[i + 1..].iter();
        variables.extend(behind.map(|name| (*name, empty.path())));
        empty.complete(NAME, &variables);
        let looked_in = match below {
            "" => empty.path().to_path_buf(),
            below => empty.path().join(below),
        };
        let told = format!("in the hub's cache {} ({name})", looked_in.display());
        home.refused_with(NAME, &[(name, empty.path())], &[&told]);
    }
    // One that is empty is none, and a tilde in one is the home.
    home.complete(NAME, &[("HF_HOME", Path::new(""))]);
    home.complete(NAME, &[("HF_HOME", Path::new("~/.cache/huggingface"))]);
}

#[test]
fn a_model_that_is_not_there_is_named_with_the_cache_and_the_command() {
    let home = Home::new();
    let cache = home.cache().display().to_string();
    home.refused(
        "org/other",
        &[
            "org/other",
            "no such file or folder",
            &cache,
            "HF_HOME is not set",
            "`hf download org/other`",
        ],
    );
    let home = Home::with_tiny();
    home.refused(
        "org/other",
        &["which has org/tiny-VLM", "`hf download org/other`"],
    );
    home.refused("Org/Tiny-vlm", &["which has org/tiny-VLM"]);
    // What is no name of the hub is not looked for there.
    for path in ["other", "./org/other", "a/b/c", "org/other/", "/org/other"] {
        let problem = home.refused(path, &["no such file or folder"]);
        assert!(!problem.contains("hf download"), "{problem}");
    }
}

#[test]
fn a_folder_of_the_same_spelling_comes_first() {
    let home = Home::with_tiny();
    fs::create_dir_all(home.path().join(NAME)).unwrap();
    home.refused(NAME, &["config.json is missing", "it is empty"]);
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let home = Home::with_tiny();
    write(&home.root(), "refs/v1.0", COMMIT);
    write(&home.root(), "refs/refs/pr/1", COMMIT);
    for revision in ["main", "v1.0", "refs/pr/1", COMMIT] {
        home.complete(&format!("{NAME}@{revision}"), &[]);
    }
    home.refused(
        &format!("{NAME}@v2"),
        &[
            "revision v2 is not there",
            "main",
            "v1.0",
            "`hf download org/tiny-VLM --revision v2`",
        ],
    );
    home.refused(&format!("{NAME}@../v2"), &["no such file or folder"]);
    // No other commit is taken in the place of the branch main.
    fs::remove_file(home.root().join("refs/main")).unwrap();
    home.refused(NAME, &["revision main is not there", "v1.0", COMMIT]);
    // What a damaged cache says of a branch leads nowhere else.
    for commit in ["../../../models--org--tiny-VLM", "", "..", "/"] {
        write(&home.root(), "refs/main", commit);
        home.refused(
            NAME,
            &[
                "of its revision main was not begun",
                "`hf download org/tiny-VLM`",
            ],
        );
    }
    fs::remove_file(home.root().join("refs/main")).unwrap();
    fs::create_dir(home.root().join("refs/main")).unwrap();
    home.refused(NAME, &["refs/main", "a folder, expected a file"]);
}

#[test]
fn a_download_that_was_not_finished_is_told_with_all_that_is_missing() {
    let home = Home::with_tiny();
    for name in [WEIGHTS, "tokenizer.json"] {
        fs::remove_file(home.snapshot().join(name)).unwrap();
    }
    let missing = "model.safetensors, tokenizer.json are missing";
    let command = "`hf download org/tiny-VLM`";
    home.refused(NAME, &[missing, command]);
    fs::write(
        home.root().join("blobs/4d7a.incomplete"),
        vec![0; 1_500_000],
    )
    .unwrap();
    let words = [missing, "not finished", "1.5 MB", command];
    home.refused(NAME, &words);
    // Whatever way it is come upon.
    home.refused(home.root().to_str().unwrap(), &words);
    home.refused(home.snapshot().to_str().unwrap(), &words);
    fs::remove_dir_all(home.snapshot()).unwrap();
    home.refused(NAME, &["revision main was not begun", command]);

    let home = Home::with_tiny();
    fs::remove_file(home.snapshot().join(WEIGHTS)).unwrap();
    write(
        &home.snapshot(),
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
            "c": "model-00003-of-00003.safetensors"}}"#,
    );
    write(&home.snapshot(), "model-00002-of-00003.safetensors", "");
    home.refused(
        NAME,
        &[
            "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors are missing",
            command,
        ],
    );
    let home = Home::with_tiny();
    fs::remove_file(home.snapshot().join("preprocessor_config.json")).unwrap();
    home.refused(NAME, &["preprocessor_config.json is missing", command]);
    let home = Home::with_tiny();
    fs::remove_dir_all(home.root().join("blobs")).unwrap();
    home.refused(NAME, &["config.json is a link to ../../blobs/", command]);
}

#[test]
fn what_is_no_checkpoint_is_named_behind_a_name_of_the_hub_too() {
    let replaced = |file: &str, text: &str, words: &[&str]| {
        let home = Home::with_tiny();
        let file = home.snapshot().join(file);
        fs::remove_file(&file).unwrap();
        fs::write(&file, text).unwrap();
        home.refused(NAME, words)
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6650136\n";
    replaced(WEIGHTS, pointer, &[WEIGHTS, "git lfs pull"]);
    replaced(
        "config.json",
        "<!doctype html><html></html>",
        &["config.json", "web page"],
    );
    for (file, word) in [
        ("onnx/decoder_model_merged.onnx", "ONNX"),
        ("weights.npz", "MLX"),
        ("pytorch_model.bin", "pickles"),
    ] {
        let home = Home::with_tiny();
        fs::remove_file(home.snapshot().join(WEIGHTS)).unwrap();
        write(&home.snapshot(), file, "binary");
        let problem = home.refused(NAME, &[file, word]);
        // No download brings what the model does not have.
        assert!(!problem.contains("hf download"), "{problem}");
    }
}

#[test]
fn gguf_files_in_the_cache_are_a_model() {
    let home = Home::new();
    let files = TempDir::new().unwrap();
    fs::copy(
        golden("gguf/llama.gguf"),
        files.path().join("tiny-Q4_1.gguf"),
    )
    .unwrap();
    download(&home.cache(), files.path());
    assert!(home.complete(NAME, &[]).contains("decoder llama"));
    fs::remove_dir_all(home.root().join("blobs")).unwrap();
    home.refused(NAME, &["tiny-Q4_1.gguf", "a link to ../../blobs/"]);
}

#[test]
fn a_cache_is_only_read() {
    let home = Home::with_tiny();
    let listing = |home: &Home| {
        let output = Command::new("find")
            .args([".", "-printf", "%p %s %T@ %m\n"])
            .current_dir(home.path())
            .output();
        output.unwrap().stdout
    };
    let before = listing(&home);
    home.complete(NAME, &[]);
    home.refused("org/other", &["hf download"]);
    assert_eq!(listing(&home), before);
}
