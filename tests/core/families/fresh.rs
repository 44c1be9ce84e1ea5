//! A checkpoint as today's transformers saves it: other names of tensors, other spellings of the same configuration.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{json, weight_files};

/// The directory that `fresh/` describes, made of the weights and the tokenizer of the published one; `rename` has the last word on the
/// tensors' names.
pub fn checkpoint(published: &Path, rename: fn(&str) -> String) -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(published.join("fresh")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "names.json" {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let tokenizer = "tokenizer.json";
    fs::copy(published.join(tokenizer), dir.path().join(tokenizer)).unwrap();
    write_weights(published, rename, &dir.path().join("model.safetensors"));
    dir
}

/// All published weights in one file, under the names that `names.json` gives them; what it gives none is left out.
fn write_weights(published: &Path, rename: fn(&str) -> String, to: &Path) {
    let names: HashMap<String, Value> =
        serde_json::from_value(json(&published.join("fresh/names.json"))).unwrap();
    let shards = weight_files(published);
    let shards = shards.iter().map(|path| fs::read(path).unwrap());
    let shards = shards.collect::<Vec<_>>();
    let mut renamed: Vec<(String, TensorView)> = Vec::new();
    for shard in &shards {
        for (name, tensor) in SafeTensors::deserialize(shard).unwrap().tensors() {
            if let Some(name) = names[&name].as_str() {
                renamed.push((rename(name), tensor));
            }
        }
    }
    fs::write(to, safetensors::serialize(renamed, None).unwrap()).unwrap();
}
