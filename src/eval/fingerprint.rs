//! Short numbers that stand for contents in the keys of the results: FNV-1a, 64 bits.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::EvalError;

/// Endings of the files that make a difference to what a model answers.
const OF_A_MODEL: [&str; 5] = ["safetensors", "gguf", "json", "jinja", "txt"];

/// The number of what has been added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// Of a model: weights, configuration and tokenizer, from its file or its folder.
    pub fn of_model(path: &Path) -> Result<Self, EvalError> {
        let mut fingerprint = Self::default();
        for file in model_files(path).map_err(|error| at(path, &error))? {
            fingerprint
                .add_file(&file)
                .map_err(|error| at(&file, &error))?;
        }
        Ok(fingerprint)
    }

    fn add_file(&mut self, file: &Path) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(file)?);
        loop {
            let bytes = reader.fill_buf()?;
            let length = bytes.len();
            if length == 0 {
                return Ok(());
            }
            self.add(bytes);
            reader.consume(length);
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The files of a model by name.
fn model_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| OF_A_MODEL.contains(&ending)) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn at(path: &Path, error: &io::Error) -> EvalError {
    EvalError::File {
        file: path.to_path_buf(),
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_weight_is_another_model_and_another_readme_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            fs::write(folder.path().join(name), content).unwrap();
            Fingerprint::of_model(folder.path()).unwrap()
        };
        write("config.json", "{}");
        let first = write("model.safetensors", "weights");
        assert_eq!(write("README.md", "about"), first);
        assert_ne!(write("model.safetensors", "weightz"), first);
        assert_eq!(write("model.safetensors", "weights"), first);
        let missing = Fingerprint::of_model(&folder.path().join("none"));
        assert!(missing.unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the test vectors of the FNV reference (draft-eastlake-fnv, appendix C).
        let mut hash = Fingerprint::default();
        hash.add(b"foobar");
        assert_eq!(hash.to_string(), "85944171f73967e8");
    }
}
