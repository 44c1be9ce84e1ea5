//! The configurations and tensors of published checkpoints, without their numbers.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::eval::{parameter, EvalError};
use crate::model::checkpoint::Checkpoint;
use crate::model::family::{Family, FamilyConfig};

/// Configuration and tensors of a shape, as tests/golden/published has them.
macro_rules! published {
    ($name:literal) => {
        include_str!(concat!("../../../tests/golden/published/", $name, ".json"))
    };
}

/// The shapes by their names: published ones, and one for tests.
pub const SHAPES: [(&str, &str); 6] = [
    ("SmolVLM-500M", published!("SmolVLM-500M-Instruct")),
    ("SmolVLM2-2.2B", published!("SmolVLM2-2.2B-Instruct")),
    ("Qwen3-VL-2B", published!("Qwen3-VL-2B-Instruct")),
    ("LLaVA-1.5-7B", published!("llava-1.5-7b-hf")),
    ("Qwen2.5-VL-3B", published!("Qwen2.5-VL-3B-Instruct")),
    ("tiny", include_str!("tiny.json")),
];

/// What is known of a published checkpoint.
#[derive(Debug, Deserialize)]
struct Published {
    config: Value,
    preprocessor_config: Value,
    /// Shapes by name, in which `{first..last}` stands for the numbers of a run of layers.
    tensors: BTreeMap<String, Vec<usize>>,
    /// Tensors that hold the numbers of another one.
    copies: BTreeMap<String, String>,
}

/// A shape that a model can be built in.
pub struct Shape {
    pub name: &'static str,
    pub family: &'static Family,
    pub config: Box<dyn FamilyConfig>,
    pub checkpoint: Checkpoint,
    /// Shapes by name, in the hub's spelling.
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub copies: BTreeMap<String, String>,
    /// Where the checkpoint's files of configuration lie.
    _files: TempDir,
}

impl Shape {
    pub fn open(name: &str) -> Result<Self, EvalError> {
        let Some((name, text)) = SHAPES.into_iter().find(|(known, _)| *known == name) else {
            let known = SHAPES.map(|(known, _)| known).join(", ");
            return Err(parameter("shape", name, format!("one of {known}")));
        };
        let files = TempDir::new().map_err(|error| EvalError::File {
            file: std::env::temp_dir(),
            what: error.to_string(),
        })?;
        let broken = |what: String| EvalError::File {
            file: format!("{name}.json").into(),
            what,
        };
        let published: Published =
            serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
        for (file, value) in [
            ("config.json", &published.config),
            ("preprocessor_config.json", &published.preprocessor_config),
        ] {
            let file = files.path().join(file);
            fs::write(&file, value.to_string()).map_err(|error| EvalError::File {
                file,
                what: error.to_string(),
            })?;
        }
        let checkpoint = Checkpoint::open(files.path())?;
        let family = Family::find(&checkpoint)?;
        let config = (family.open)(&checkpoint)?;
        let hub = |name: &String| family.names.hub(name);
        let mut tensors = BTreeMap::new();
        for (pattern, dims) in &published.tensors {
            let names = expanded(pattern).ok_or_else(|| broken(format!("{pattern} is no run")))?;
            tensors.extend(names.iter().map(|name| (hub(name), dims.clone())));
        }
        let copies = published.copies.iter();
        Ok(Self {
            name,
            family,
            config,
            checkpoint,
            tensors,
            copies: copies.map(|(copy, of)| (hub(copy), hub(of))).collect(),
            _files: files,
        })
    }
}

/// The names of a pattern; none if what stands in its braces is no run of numbers.
fn expanded(pattern: &str) -> Option<Vec<String>> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return Some(vec![pattern.to_string()]);
    };
    let (run, after) = rest.split_once('}')?;
    let (first, last) = run.split_once("..")?;
    let numbers = first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?;
    Some(numbers.map(|i| format!("{before}{i}{after}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_the_tensors_of_all_its_layers() {
        for (name, _) in SHAPES {
            let shape = Shape::open(name).unwrap();
            let layers = shape.config.text().cache_shape().unwrap().layers;
            let path = shape.config.text_path();
            let query = |layer| format!("{path}.layers.{layer}.self_attn.q_proj.weight");
            for layer in 0..layers {
                assert!(shape.tensors.contains_key(&query(layer)), "{name}: {layer}");
            }
            assert!(!shape.tensors.contains_key(&query(layers)), "{name}");
        }
    }

    #[test]
    fn an_unknown_shape_is_told_the_known_ones() {
        let error = Shape::open("GPT-2").err().unwrap().to_string();
        assert!(
            error.contains("GPT-2") && error.contains("SmolVLM-500M"),
            "{error}"
        );
    }

    #[test]
    fn a_run_of_layers_is_written_out_and_a_broken_one_is_none() {
        let names = expanded("a.{9..11}.b").unwrap();
        assert_eq!(names, ["a.9.b", "a.10.b", "a.11.b"]);
        assert_eq!(expanded("a.b").unwrap(), ["a.b"]);
        assert!(expanded("a.{9-11}.b").is_none());
    }
}
