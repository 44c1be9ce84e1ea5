//! Where the checkpoint is.

use std::path::{Path, PathBuf};

use crate::cache::parameter::ParameterError;
use crate::node::{NodeError, NAME};
use crate::paths;

/// Finds the checkpoint, a folder or a `.gguf` file: an absolute path as it is, one in `~/` in the user's home, a relative one in the
/// package's share folders, then from the working directory, and `package://NAME/PATH` in another package's.
pub fn find_model(model: &Path) -> Result<PathBuf, NodeError> {
    let path = paths::expand(model).map_err(|error| ParameterError::Value {
        name: "model",
        value: format!("\"{}\"", model.display()),
        expected: format!("an existing folder or .gguf file, but {error}"),
    })?;
    let mut tried = Vec::new();
    if !path.is_absolute() {
        for prefix in paths::prefixes() {
            tried.push(prefix.join("share").join(NAME).join(model));
        }
    }
    tried.push(path);
    tried
        .iter()
        // A link to nothing is found too: opening it says where it leads.
        .find(|path| path.symlink_metadata().is_ok())
        .cloned()
        .ok_or_else(|| {
            let tried = tried.iter().map(|path| path.display().to_string());
            NodeError::Parameter(ParameterError::Value {
                name: "model",
                value: format!("\"{}\"", model.display()),
                expected: format!(
                    "an existing folder or .gguf file, looked for: {}",
                    tried.collect::<Vec<_>>().join(", ")
                ),
            })
        })
}
