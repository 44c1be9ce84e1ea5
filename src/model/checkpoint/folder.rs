//! What lies in a folder that is no checkpoint, or not a whole one: a table of what people point `model` at, and what is said of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::hub::MODELS;
use super::weight_files::is_published;
use super::{CONFIG, INDEX, SINGLE, WEIGHTS_ENDING};
use crate::files;

/// Names that a message lists before it only counts them.
const LISTED: usize = 8;

/// Where `hf download --local-dir` keeps what it has not finished.
const DOWNLOADS: &str = ".cache/huggingface/download";

/// The entries of a folder by name.
pub(super) struct Folder {
    dir: PathBuf,
    /// Links to nothing are among them.
    files: Vec<String>,
    folders: Vec<String>,
    /// `config.json`, if it is one.
    pub config: Option<Value>,
}

/// A kind of thing that is no checkpoint.
struct Kind {
    /// The entries that show it, if the folder is of the kind.
    marks: fn(&Folder) -> Vec<String>,
    /// What those are, and what to do.
    says: fn(&Folder) -> String,
}

/// The first that fits is told.
const KINDS: [Kind; 13] = [
    Kind {
        marks: |folder| folder.named(&["adapter_config.json"]),
        says: adapter,
    },
    Kind {
        marks: |folder| {
            folder.ending_within(
                DOWNLOADS,
                &[".incomplete", ".part", ".crdownload", ".aria2"],
            )
        },
        says: |_| "a download that was not finished: start it again".to_string(),
    },
    Kind {
        marks: Folder::pickles,
        says: |_| {
            "weights as Python pickles, which can run code when they are read and are never loaded: load them with transformers \
             where you trust them, and save_pretrained writes safetensors"
                .to_string()
        },
    },
    Kind {
        marks: |folder| folder.ending(&[".npz", ".mlx"]),
        says: |_| {
            "weights of MLX, which are not read: take the model that they were made from"
                .to_string()
        },
    },
    Kind {
        marks: |folder| folder.ending_within("onnx", &[".onnx", ".onnx_data", ".ort"]),
        says: |_| {
            "graphs of ONNX, which are not read: take the model that they were exported from, as safetensors or GGUF".to_string()
        },
    },
    Kind {
        marks: |folder| folder.named(&["openvino_model.xml", "openvino_language_model.xml"]),
        says: |_| {
            "an export to OpenVINO, which is not read: take the model that it was made from"
                .to_string()
        },
    },
    Kind {
        marks: |folder| folder.ending(&[".engine", ".plan", ".trt"]),
        says: |_| {
            "engines of TensorRT, which are not read: take the model that they were built from"
                .to_string()
        },
    },
    Kind {
        marks: |folder| {
            folder.ending(&[
                ".h5",
                ".msgpack",
                ".ckpt.index",
                ".tflite",
                ".task",
                ".litertlm",
            ])
        },
        says: |_| {
            "weights of TensorFlow, Flax or LiteRT, which are not read: take the model as safetensors, or load it with transformers \
             and save_pretrained"
                .to_string()
        },
    },
    Kind {
        marks: |folder| folder.named(&["model_index.json"]),
        says: |_| {
            "a pipeline of diffusers, which makes pictures; this needs a model that describes them"
                .to_string()
        },
    },
    Kind {
        marks: |folder| folder.named(&["params.json", "consolidated.safetensors"]),
        says: |_| {
            "a model in the layout of its maker: take the one for transformers, with a config.json and model.safetensors".to_string()
        },
    },
    Kind {
        marks: |folder| folder.ending(&[".safetensors"]),
        says: |_| {
            format!("safetensors under other names: expected {SINGLE}, or {INDEX} and the files that it names")
        },
    },
    Kind {
        marks: |folder| folder.hub_models(),
        says: |_| "models in a hub's cache: give the folder of one".to_string(),
    },
    Kind {
        marks: |folder| folder.checkpoints_below(),
        says: |_| {
            "a model's folder within this one: give that, or one of its files as model_file"
                .to_string()
        },
    },
];

impl Folder {
    pub fn look(dir: &Path) -> io::Result<Self> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.path().is_dir() {
                true => folders.push(name),
                false => files.push(name),
            }
        }
        files.sort();
        folders.sort();
        let config = files::text(&dir.join(CONFIG)).ok();
        let config = config.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Self {
            dir: dir.to_path_buf(),
            files,
            folders,
            config,
        })
    }

    /// Whether the file `name` is there; a link to nothing is.
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file == name)
    }

    /// Whether weights as safetensors are there, other than an adapter's.
    pub fn has_safetensors(&self) -> bool {
        let weights = |name: &String| is_published(name) && !name.starts_with("adapter_");
        self.files.iter().any(weights)
    }

    /// The files of weights, those of the folders in it too.
    pub fn weights(&self) -> Vec<String> {
        let ends = [".gguf", WEIGHTS_ENDING];
        let below = self.folders.iter();
        let below = below.flat_map(|name| {
            let inner = Self::look(&self.dir.join(name));
            let inner = inner.map_or(Vec::new(), |inner| inner.ending(&ends));
            inner.into_iter().map(move |file| format!("{name}/{file}"))
        });
        self.ending(&ends).into_iter().chain(below).collect()
    }

    /// What lies here in the place of what is missing.
    pub fn says(&self) -> String {
        match self.kind() {
            Some(found) => found,
            None if self.files.is_empty() && self.folders.is_empty() => "it is empty".to_string(),
            None => {
                let folders = self.folders.iter().map(|name| format!("{name}/"));
                let all = self
                    .files
                    .iter()
                    .cloned()
                    .chain(folders)
                    .collect::<Vec<_>>();
                format!("it holds {}", list(&all))
            }
        }
    }

    /// What it is, if it is of a kind that is known and no checkpoint, and what to do.
    pub fn kind(&self) -> Option<String> {
        KINDS.iter().find_map(|kind| {
            let marks = (kind.marks)(self);
            (!marks.is_empty()).then(|| format!("{}: {}", list(&marks), (kind.says)(self)))
        })
    }

    /// What is said of a folder whose `config.json` tells that it is nothing to be loaded, however whole it is.
    pub fn refusal(&self) -> Option<String> {
        let config = self.config.as_ref()?;
        is_lerobot(config).then(|| lerobot(config))
    }

    fn named(&self, names: &[&str]) -> Vec<String> {
        let found = self
            .files
            .iter()
            .filter(|file| names.contains(&file.as_str()));
        found.cloned().collect()
    }

    fn ending(&self, ends: &[&str]) -> Vec<String> {
        ending(&self.files, ends)
    }

    /// The same with those of the folder `below`, where exports of several kinds keep them.
    fn ending_within(&self, below: &str, ends: &[&str]) -> Vec<String> {
        let mut found = self.ending(ends);
        if let Ok(inner) = Self::look(&self.dir.join(below)) {
            let inner = inner.ending(ends).into_iter();
            found.extend(inner.map(|name| format!("{below}/{name}")));
        }
        found
    }

    fn pickles(&self) -> Vec<String> {
        let mut found = self.ending(&[".pt", ".pth", ".pkl", ".ckpt", ".bin.index.json"]);
        let bins = ending(&self.files, &[".bin"]).into_iter();
        // OpenVINO keeps its numbers in files of the same ending, beside its .xml; tokenizers and trainers have such files too.
        found.extend(bins.filter(|name| name.contains("model") && !name.starts_with("openvino")));
        found
    }

    fn hub_models(&self) -> Vec<String> {
        let models = self.folders.iter().filter(|name| name.starts_with(MODELS));
        models.cloned().collect()
    }

    fn checkpoints_below(&self) -> Vec<String> {
        let holds = |name: &&String| {
            let inner = Self::look(&self.dir.join(name));
            inner.is_ok_and(|inner| inner.has(CONFIG) || !inner.ending(&[".gguf"]).is_empty())
        };
        let found = self.folders.iter().filter(holds);
        found.map(|name| format!("{name}/")).collect()
    }
}

fn ending(names: &[String], ends: &[&str]) -> Vec<String> {
    let fits = |name: &&String| {
        let name = name.to_ascii_lowercase();
        ends.iter().any(|end| name.ends_with(end))
    };
    names.iter().filter(fits).cloned().collect()
}

/// The names, or the first of them and how many more there are.
pub fn list(names: &[String]) -> String {
    let listed = names.iter().take(LISTED).map(String::as_str);
    let listed = listed.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

/// A policy of LeRobot says its kind under another name than a model does, and what it takes and gives.
fn is_lerobot(config: &Value) -> bool {
    config["model_type"].is_null()
        && config["type"].is_string()
        && config["output_features"].is_object()
}

fn lerobot(config: &Value) -> String {
    let kind = config["type"].as_str().unwrap_or("unknown");
    let inner = match config["vlm_model_name"].as_str() {
        Some(name) => format!("; the model that it was made from can be taken: {name:?}"),
        None => String::new(),
    };
    format!(
        "a LeRobot policy of type {kind:?}, which turns pictures into a robot's movements and answers no questions; expected a \
         model that does{inner}"
    )
}

fn adapter(folder: &Folder) -> String {
    let text = files::text(&folder.dir.join("adapter_config.json")).unwrap_or_default();
    let json = serde_json::from_str::<Value>(&text).unwrap_or_default();
    let base = match json["base_model_name_or_path"].as_str() {
        Some(name) => format!(" of {name:?}"),
        None => String::new(),
    };
    format!(
        "an adapter (LoRA, PEFT){base} without the model: merge the two with PEFT (merge_and_unload, then save_pretrained) and give \
         the folder of the result"
    )
}
