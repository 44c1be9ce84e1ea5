//! Results as JSON lines, one per cell with all its parameters as the key: a rerun skips the cells that are there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{json, Value};

use super::EvalError;

/// A file of results. Every line is an object with `key` and `result`, and what else is worth knowing of the run.
pub struct Store {
    file: File,
    path: PathBuf,
    records: Vec<Value>,
}

impl Store {
    /// Reads what is there. A last line that a killed run left half written is cut off.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let fail = |what: String| EvalError::File {
            file: path.to_path_buf(),
            what,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| fail(e.to_string()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| fail(e.to_string()))?;
        let text = fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64)
                .map_err(|e| fail(e.to_string()))?;
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            records: parse(path, &text[..whole])?,
        })
    }

    /// The result of the cell with this key, if it is there.
    pub fn find<T: DeserializeOwned>(&self, key: &Value) -> Result<Option<T>, EvalError> {
        let Some(record) = self.records.iter().find(|record| record["key"] == *key) else {
            return Ok(None);
        };
        serde_json::from_value(record["result"].clone())
            .map(Some)
            .map_err(|e| self.fail(format!("the result of {key}: {e}")))
    }

    /// Writes a finished cell through to the disk; `about` holds what is not part of the key.
    pub fn add(
        &mut self,
        key: &Value,
        result: &impl Serialize,
        about: &Value,
    ) -> Result<(), EvalError> {
        let record = json!({ "key": key, "result": result, "about": about });
        self.file
            .write_all(format!("{record}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| self.fail(e.to_string()))?;
        self.records.push(record);
        Ok(())
    }

    fn fail(&self, what: String) -> EvalError {
        EvalError::File {
            file: self.path.clone(),
            what,
        }
    }
}

/// All records of a file of results.
pub fn read(path: &Path) -> Result<Vec<Value>, EvalError> {
    let text = fs::read_to_string(path).map_err(|e| EvalError::File {
        file: path.to_path_buf(),
        what: e.to_string(),
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Value>, EvalError> {
    text.lines()
        .enumerate()
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|e| EvalError::File {
                file: path.to_path_buf(),
                what: format!("line {}: {e}", number + 1),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rerun_finds_whole_records_and_drops_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/results.jsonl");
        let (a, b) = (json!({"budget": 64, "bias": 0.1}), json!({"budget": 128}));
        Store::open(&path)
            .unwrap()
            .add(&a, &vec![1.5], &Value::Null)
            .unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"key\": {\"bud");
        fs::write(&path, text).unwrap();
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.find::<Vec<f64>>(&a).unwrap(), Some(vec![1.5]));
        assert_eq!(store.find::<Vec<f64>>(&b).unwrap(), None);
        store.add(&b, &vec![2.5], &Value::Null).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        fs::write(&path, "no json\n").unwrap();
        let error = Store::open(&path).err().unwrap().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
