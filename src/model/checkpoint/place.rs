//! From what a user gives as a model to the folder or the file that is meant.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::content::obstacle;
use super::hub::{commit_of, HubModel, MAIN, SNAPSHOTS};
use crate::model::ModelError;
use crate::paths;

const NOTHING: &str = "there is no such file or folder";

/// What lies at `path`: a file, or the folder of a model; of the root of a model in a hub's cache (`models--org--name`) the snapshot
/// that its branch `main` is. Where nothing lies there, the snapshot of the model that has this name on the hub.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, ModelError> {
    let path = paths::expand(path).map_err(|error| ModelError::File {
        file: path.to_path_buf(),
        what: error.to_string(),
    })?;
    let fail = |what: String| ModelError::File {
        file: path.clone(),
        what,
    };
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() && path.join(SNAPSHOTS).is_dir() => snapshot(&path),
        Ok(_) => Ok(path),
        Err(error) => match (obstacle(&path), HubModel::parse(&path)) {
            (Some(link), _) => Err(fail(link)),
            _ if error.kind() != ErrorKind::NotFound => Err(fail(error.to_string())),
            (None, None) => Err(fail(NOTHING.to_string())),
            (None, Some(model)) => model
                .find()
                .map_err(|why| fail(format!("{NOTHING}, and {why}"))),
        },
    }
}

fn snapshot(root: &Path) -> Result<PathBuf, ModelError> {
    let fail = |what: String| ModelError::Directory {
        dir: root.to_path_buf(),
        what,
    };
    let snapshots = root.join(SNAPSHOTS);
    let mut folders = Vec::new();
    for entry in fs::read_dir(&snapshots).map_err(|e| fail(e.to_string()))? {
        let path = entry.map_err(|e| fail(e.to_string()))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    let main = commit_of(root, MAIN).ok().flatten().unwrap_or_default();
    let of_main = folders.iter().find(|path| path.ends_with(&main));
    match (of_main, folders.as_slice()) {
        (Some(path), _) if !main.is_empty() => Ok(path.clone()),
        (_, [only]) => Ok(only.clone()),
        (_, []) => Err(fail(
            "the root of a model in a hub's cache, and no snapshot of it is there: the download was not finished".to_string(),
        )),
        (_, several) => {
            let names = several.iter().map(|path| path.display().to_string());
            Err(fail(format!(
                "the root of a model in a hub's cache with several snapshots, none of which is the branch main: give one of {}",
                names.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}
