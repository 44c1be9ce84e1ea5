//! Where the checkpoint is.

use std::path::{Path, PathBuf};

use crate::cache::parameter::ParameterError;
use crate::excerpt::excerpt_of_path;
use crate::model::checkpoint::HubModel;
use crate::node::{NodeError, NAME};
use crate::paths;

/// Finds the checkpoint, a folder or a `.gguf` file: an absolute path as it is, one in `~/` in the user's home, a relative one in the
/// package's share folders, then from the working directory, and `package://NAME/PATH` in another package's; where nothing is called so,
/// the model of this name in the hub's cache.
pub fn find_model(model: &Path) -> Result<PathBuf, NodeError> {
    let refusal = |expected: String| ParameterError::Value {
        name: "model",
        value: format!("\"{}\"", model.display()),
        expected: format!("an existing folder or .gguf file{expected}"),
    };
    if model.as_os_str().is_empty() {
        return Err(refusal(", or a model's name on the hub".to_string()).into());
    }
    let path = paths::expand(model).map_err(|error| refusal(format!(", but {error}")))?;
    let mut tried = Vec::new();
    if !path.is_absolute() {
        for prefix in paths::prefixes() {
            tried.push(prefix.join("share").join(NAME).join(model));
        }
    }
    tried.push(path);
    // A link to nothing is found too: opening it says where it leads.
    let there = |path: &&PathBuf| path.symlink_metadata().is_ok();
    if let Some(found) = tried.iter().find(there) {
        return Ok(found.clone());
    }
    let in_hub = match HubModel::parse(model).map(|model| model.find()) {
        Some(Ok(snapshot)) => return Ok(snapshot),
        Some(Err(why)) => format!("; and {why}"),
        None => String::new(),
    };
    let tried = tried.iter().map(|path| excerpt_of_path(path));
    let tried = tried.collect::<Vec<_>>().join(", ");
    Err(refusal(format!(", looked for: {tried}{in_hub}")).into())
}
