//! Where the checkpoint is.

use std::path::{Path, PathBuf};

use crate::model::checkpoint::expand_home;
use crate::node::{NodeError, NAME};

/// Finds the checkpoint, a folder or a `.gguf` file: an absolute path as it is, one in `~/` in the user's home, a relative one in the
/// package's share folders, then from the working directory.
pub fn find_model(model: &str) -> Result<PathBuf, NodeError> {
    let path = expand_home(Path::new(model));
    let mut tried = Vec::new();
    if !path.is_absolute() {
        let prefixes = std::env::var_os("AMENT_PREFIX_PATH").unwrap_or_default();
        for prefix in std::env::split_paths(&prefixes) {
            tried.push(prefix.join("share").join(NAME).join(model));
        }
        // Without a sourced environment: the program stands in lib/inf_mllm of its prefix.
        if let Some(prefix) = std::env::current_exe()
            .ok()
            .as_deref()
            .and_then(|exe| exe.ancestors().nth(3))
        {
            tried.push(prefix.join("share").join(NAME).join(model));
        }
    }
    tried.push(path);
    tried
        .iter()
        // A link to nothing is found too: opening it says where it leads.
        .find(|path| path.symlink_metadata().is_ok())
        .cloned()
        .ok_or_else(|| NodeError::Parameter {
            name: "model".into(),
            value: format!("\"{model}\""),
            expected: format!(
                "an existing folder or .gguf file, looked for: {}",
                tried
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })
}
