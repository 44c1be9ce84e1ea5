//! Which files of a place are meant, where it holds several.

use std::path::{Path, PathBuf};

use super::content::obstacle;
use super::folder::{list, Folder};
use super::weight_files::{is_name, is_within};
use crate::cache::parameter::ParameterError;
use crate::files;
use crate::model::ModelError;

/// The parameters that choose.
pub const MODEL_FILE: &str = "model_file";
pub const PROJECTOR_FILE: &str = "projector_file";

/// Files of a place by their names in it; an empty name: what is found there.
#[derive(Debug, Clone, Default)]
pub struct ChosenFiles {
    /// The weights, of a GGUF model its decoder's.
    pub model: String,
    /// The GGUF file of the vision tower.
    pub projector: String,
}

impl ChosenFiles {
    /// The file of the weights in the folder `place`.
    pub(super) fn model_in(&self, place: &Path) -> Result<Option<PathBuf>, ModelError> {
        find(place, MODEL_FILE, &self.model)
    }

    /// The projector in the folder `place`.
    pub(super) fn projector_in(&self, place: &Path) -> Result<Option<PathBuf>, ModelError> {
        find(place, PROJECTOR_FILE, &self.projector)
    }

    /// Fails if weights are chosen although `file`, which holds some, is the model.
    pub(super) fn check_file(&self, file: &Path) -> Result<(), ModelError> {
        let expected = format!("none where the model is a file: {}", file.display());
        match self.model.is_empty() {
            true => Ok(()),
            false => Err(refusal(MODEL_FILE, &self.model, expected)),
        }
    }

    /// The name of the chosen safetensors, which must lie beside `config.json`.
    pub(super) fn shallow(&self, file: &Path, place: &Path) -> Result<String, ModelError> {
        let name = file.strip_prefix(place).ok().and_then(Path::to_str);
        name.filter(|name| is_name(name))
            .map(str::to_string)
            .ok_or_else(|| {
                let expected = format!("safetensors beside the config.json of {}", place.display());
                refusal(MODEL_FILE, &self.model, expected)
            })
    }

    /// Fails if a projector is chosen although the weights are no GGUF file.
    pub(super) fn check_published(&self, place: &Path) -> Result<(), ModelError> {
        let expected = format!(
            "none for safetensors, which have the vision tower in them ({}); {MODEL_FILE} chooses a decoder's .gguf file",
            place.display()
        );
        match self.projector.is_empty() {
            true => Ok(()),
            false => Err(refusal(PROJECTOR_FILE, &self.projector, expected)),
        }
    }
}

fn refusal(name: &'static str, value: &str, expected: String) -> ModelError {
    let value = format!("{value:?}");
    ModelError::Parameter(ParameterError::Value {
        name,
        value,
        expected,
    })
}

/// The file `name` of the folder `place`. Names lead to nothing outside of it; links in it, as a hub's cache has them, are followed.
fn find(place: &Path, parameter: &'static str, name: &str) -> Result<Option<PathBuf>, ModelError> {
    if name.is_empty() {
        return Ok(None);
    }
    let fail = |expected: String| Err(refusal(parameter, name, expected));
    let within = match Path::new(name) {
        whole if whole.is_absolute() => whole.strip_prefix(place).ok(),
        inner => Some(inner),
    };
    let Some(within) = within.filter(|path| is_within(path)) else {
        return fail(format!("the name of a file within {}", place.display()));
    };
    let file = place.join(within);
    if let Some(what) = obstacle(&file) {
        return fail(format!("a file, but it is {what}"));
    }
    match files::check(&file) {
        Ok(()) => Ok(Some(file)),
        Err(_) => {
            let held = Folder::look(place).map_or(Vec::new(), |folder| folder.weights());
            let held = match held.is_empty() {
                true => "no weights".to_string(),
                false => list(&held),
            };
            fail(format!(
                "a file within {}, which has {held}",
                place.display()
            ))
        }
    }
}
