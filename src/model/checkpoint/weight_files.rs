//! Which files of a published directory the weights are in, and what is said where they are not all there.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::content::obstacle;
use super::folder::{list, Folder};
use super::hub::HubModel;
use super::{Checkpoint, CONFIG, INDEX, INDEX_ENDING, NAMED, SINGLE, TOKENIZER, WEIGHTS_ENDING};
use crate::model::decoder::Unsupported;
use crate::model::ModelError;

impl Checkpoint {
    /// Fails if this is a snapshot in a hub's cache of which not all is there that every model has: says all that is missing at once.
    pub(super) fn check_download(&self, folder: &Folder) -> Result<(), ModelError> {
        let Some(model) = HubModel::of_snapshot(&self.dir) else {
            return Ok(());
        };
        let mut needed = vec![CONFIG.to_string(), TOKENIZER.to_string()];
        // Weights under other names than the usual ones are missed when they are asked for.
        let named = folder
            .config
            .as_ref()
            .is_some_and(|it| !it[NAMED].is_null());
        if !folder.has_safetensors() {
            needed.push(SINGLE.to_string());
        } else if self.has(INDEX) && !self.has(SINGLE) && !named {
            needed.extend(self.index(INDEX)?.into_values().filter(is_shard));
        }
        needed.retain(|name| !self.has(name));
        needed.sort();
        needed.dedup();
        if needed.is_empty() {
            return Ok(());
        }
        let (blocked, missing) = needed
            .into_iter()
            .partition::<Vec<_>, _>(|name| obstacle(&self.path(name)).is_some());
        let mut told = Vec::new();
        match missing.as_slice() {
            [] => {}
            [one] => told.push(format!("{one} is missing")),
            several => told.push(format!("{} are missing", list(several))),
        }
        let of_blocked = |name: &String| Some(format!("{name} is {}", obstacle(&self.path(name))?));
        told.extend(blocked.iter().filter_map(of_blocked));
        // Of a model of another kind no download brings what is missing.
        let kind = folder.kind().filter(|_| !folder.has_safetensors());
        let advice = match (model.unfinished(&self.dir), &kind) {
            (None, Some(_)) => None,
            (None, None) => Some(model.to_complete()),
            (unfinished, _) => unfinished,
        };
        told.extend(kind.into_iter().chain(advice));
        Err(self.error(told.join("; ")))
    }

    pub(super) fn weight_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        let named = self.weights_name()?;
        if !named.ends_with(INDEX_ENDING) {
            return Ok(vec![self.path(&named)]);
        }
        let mut shards = self.index(&named)?.into_values().collect::<Vec<_>>();
        shards.sort();
        shards.dedup();
        for shard in &shards {
            if !is_shard(shard) {
                return Err(self.error(format!(
                    "{named} names the shard {shard}, expected a file's name, or its path within the folder"
                )));
            }
            if !self.has(shard) {
                return Err(match obstacle(&self.path(shard)) {
                    Some(what) => self.error(format!("{shard}, which {named} names, is {what}")),
                    None => self.error(format!("{shard} is missing, which {named} names")),
                });
            }
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }

    /// That there are no weights, and what lies there instead.
    fn no_weights(&self) -> ModelError {
        for name in [SINGLE, INDEX] {
            if let Some(what) = obstacle(&self.path(name)) {
                return self.error(format!("{name} is {what}"));
            }
        }
        let missing = format!("{SINGLE} is missing (and there is no {INDEX})");
        match Folder::look(&self.dir) {
            Ok(folder) => self.error(format!("{missing}; {}", folder.says())),
            Err(_) => self.error(missing),
        }
    }

    /// The file of weights, or the index of those that they are in: what was chosen, or what `config.json` names, or the one with the usual name.
    pub(super) fn weights_name(&self) -> Result<String, ModelError> {
        if let Some(chosen) = &self.weights {
            return Ok(chosen.clone());
        }
        let config: Value = self.json(CONFIG)?;
        let named = match &config[NAMED] {
            Value::Null => {
                let there = [SINGLE, INDEX].into_iter().find(|name| self.has(name));
                return there.map(str::to_string).ok_or_else(|| self.no_weights());
            }
            named => named,
        };
        let expected = "the name of a safetensors file, or of the index of several";
        let name = named
            .as_str()
            .filter(|name| is_name(name) && is_published(name));
        match name {
            Some(name) if self.has(name) => Ok(name.to_string()),
            Some(name) => Err(match obstacle(&self.path(name)) {
                Some(what) => self.error(format!(
                    "{name}, which {CONFIG} names as {NAMED}, is {what}"
                )),
                None => self.error(format!(
                    "{name} is missing, which {CONFIG} names as {NAMED}"
                )),
            }),
            None => Err(Unsupported::new(NAMED, named, expected).of(self.path(CONFIG))),
        }
    }

    /// The shard of each tensor, as the index `name` has it.
    pub(super) fn index(&self, name: &str) -> Result<BTreeMap<String, String>, ModelError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        Ok(self.json::<Index>(name)?.weight_map)
    }
}

/// Whether it is the name of safetensors, or of an index of several.
pub(super) fn is_published(name: &str) -> bool {
    [WEIGHTS_ENDING, INDEX_ENDING]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Whether an index may name it as a file of tensors: one in the folder, or in one within it, as pipelines have a folder for each part.
fn is_shard(text: &String) -> bool {
    is_within(Path::new(text))
}

/// Whether it is the path of something in a folder, and no way out of it. Links on the way are followed, since a hub's cache consists of them.
pub(super) fn is_within(path: &Path) -> bool {
    let mut parts = path.components();
    path.file_name().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether it is the name of a file in a folder, and no way out of it.
pub(super) fn is_name(text: &str) -> bool {
    Path::new(text).file_name() == Some(text.as_ref())
}
