//! Models by their names on a hub (`ORG/NAME`), in the cache that huggingface_hub keeps of them on this machine. It is only read:
//! nothing is downloaded here, errors name the command that does.
//!
//! Layout: `models--ORG--NAME` with `refs/BRANCH`, which holds a commit, `snapshots/COMMIT/` with the files, and `blobs/`, to which those
//! are links: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::folder::list;
use crate::cache::told_bytes;
use crate::files;
use crate::paths::expand_home;

/// What a model's folder in a cache begins with.
pub(super) const MODELS: &str = "models--";
/// The folder of a model's commits.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// The branch that is meant where none is named.
pub(super) const MAIN: &str = "main";

/// What the name of a file ends in that is being downloaded.
const INCOMPLETE: &str = ".incomplete";

/// Longest name of a user or a model on the hub.
const LONGEST: usize = 96;

/// Longest name of a branch, which is a path of Git's on the hub.
const LONGEST_REVISION: usize = 255;

/// What says where the cache is, the first that is set before the others, and the folder below it; as in `constants.py` of
/// huggingface_hub.
const VARIABLES: [(&str, &str); 4] = [
    ("HF_HUB_CACHE", ""),
    ("HUGGINGFACE_HUB_CACHE", ""),
    ("HF_HOME", "hub"),
    ("XDG_CACHE_HOME", "huggingface/hub"),
];

/// The same below the user's home where nothing is set.
const AT_HOME: &str = ".cache/huggingface/hub";

/// A model's name on a hub, `ORG/NAME` or `ORG/NAME@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    name: String,
    /// A branch, a tag or a commit.
    revision: Option<String>,
}

impl HubModel {
    /// The name that `text` may be where no file or folder is called so.
    pub fn parse(text: &Path) -> Option<Self> {
        let text = text.to_str()?;
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let (org, model) = name.split_once('/')?;
        let named = [org, model].into_iter().all(is_name);
        let is_revision = |it: &str| it.len() <= LONGEST_REVISION && it.split('/').all(is_name);
        let branch = revision.is_none_or(is_revision);
        (named && branch).then(|| Self {
            name: name.to_string(),
            revision: revision.map(str::to_string),
        })
    }

    /// The model that the folder `dir` is a snapshot of, with its commit unless that is the branch main.
    pub(super) fn of_snapshot(dir: &Path) -> Option<Self> {
        let snapshots = dir.parent().filter(|it| it.ends_with(SNAPSHOTS))?;
        let root = snapshots.parent()?;
        let name = name_of(root.file_name()?.to_str()?)?;
        let commit = dir.file_name()?.to_str()?;
        let is_main = commit_of(root, MAIN).is_ok_and(|it| it.as_deref() == Some(commit));
        Some(Self {
            name,
            revision: (!is_main).then(|| commit.to_string()),
        })
    }

    /// The command that downloads it, or what is missing of it.
    pub fn download(&self) -> String {
        match &self.revision {
            None => format!("hf download {}", self.name),
            Some(revision) => format!("hf download {} --revision {revision}", self.name),
        }
    }

    /// The folder of its files in this machine's cache. An error says, as a part of a sentence, where that is, what is there, and how to
    /// get the model.
    pub fn find(&self) -> Result<PathBuf, String> {
        let (cache, of) = cache()
            .ok_or("where the hub's cache is cannot be told: expected HF_HOME, or a home")?;
        let root = cache.join(format!("{MODELS}{}", self.name.replace('/', "--")));
        let command = self.download();
        match fs::metadata(&root) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!(
                    "no model of this name is in the hub's cache {} ({of}){}; nothing is downloaded unasked: `{command}` does it",
                    cache.display(),
                    self.others(&cache)
                ))
            }
            Err(error) => return Err(format!("{}: {error}", root.display())),
        }
        let revision = self.revision.as_deref().unwrap_or(MAIN);
        let read = |error: io::Error| format!("{}: {error}", root.display());
        let found = commit_of(&root, revision).map_err(read)?;
        let snapshots = folders(&root.join(SNAPSHOTS));
        let commit = found.as_deref().unwrap_or(revision);
        if snapshots.iter().any(|snapshot| snapshot == commit) {
            return Ok(root.join(SNAPSHOTS).join(commit));
        }
        let what = match found {
            Some(commit) => format!(
                "the download of its revision {revision} was not begun: {SNAPSHOTS}/{commit} is missing"
            ),
            None => {
                let mut known = entries(&root.join("refs"));
                known.extend(snapshots);
                let others = match known.is_empty() {
                    true => "nor is any other".to_string(),
                    false => format!("but {} (@REVISION behind the name chooses)", list(&known)),
                };
                format!("its revision {revision} is not there, {others}")
            }
        };
        Err(format!(
            "in the hub's cache {} ({of}) {what}; `{command}` downloads it",
            root.display()
        ))
    }

    /// What is said of a download into the snapshot `dir` that was begun, unless it was finished.
    pub(super) fn unfinished(&self, dir: &Path) -> Option<String> {
        let blobs = dir.parent()?.parent()?.join("blobs");
        let mut begun = entries(&blobs);
        begun.retain(|name| name.ends_with(INCOMPLETE));
        let sizes = begun.iter().map(|name| fs::metadata(blobs.join(name)));
        let bytes = sizes
            .map(|found| found.map_or(0, |found| found.len()))
            .sum();
        let (command, told) = (self.download(), told_bytes(bytes));
        (!begun.is_empty()).then(|| {
            format!(
                "its download was not finished ({told} wait in {}): `{command}` goes on with it",
                blobs.display()
            )
        })
    }

    /// What to do about what is missing.
    pub(super) fn to_complete(&self) -> String {
        format!("`{}` downloads what is missing", self.download())
    }

    /// What a message says of the models that `cache` holds instead.
    fn others(&self, cache: &Path) -> String {
        let held = folders(cache);
        let held = held.iter().filter_map(|folder| name_of(folder));
        let held = held.collect::<Vec<_>>();
        let spelled = held.iter().find(|it| it.eq_ignore_ascii_case(&self.name));
        match spelled {
            Some(name) => format!(", which has {name}"),
            None if held.is_empty() => String::new(),
            None => format!(", which has {}", list(&held)),
        }
    }
}

/// Where this machine's cache is, and what says so.
fn cache() -> Option<(PathBuf, &'static str)> {
    let set = |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let named = VARIABLES.iter().find_map(|(name, below)| {
        let folder = expand_home(Path::new(&set(name)?));
        let folder = match below.is_empty() {
            true => folder,
            false => folder.join(below),
        };
        Some((folder, *name))
    });
    let at_home = || {
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty())?;
        Some((home.join(AT_HOME), "HF_HOME is not set"))
    };
    named.or_else(at_home)
}

/// Whether it can be one part of a name on the hub.
fn is_name(part: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let outer = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= LONGEST
        && part.starts_with(outer)
        && part.ends_with(outer)
        && part.chars().all(inner)
        && !part.contains("..")
}

/// The name of the model that a folder of a cache is of.
fn name_of(folder: &str) -> Option<String> {
    let (org, model) = folder.strip_prefix(MODELS)?.split_once("--")?;
    Some(format!("{org}/{model}"))
}

/// The commit that `revision` is by the folder of a model, if that knows it.
pub(super) fn commit_of(root: &Path, revision: &str) -> io::Result<Option<String>> {
    let file = root.join("refs").join(revision);
    match files::text(&file) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::other(format!("refs/{revision}: {error}"))),
    }
}

/// The names of what is in a folder, sorted; of one that cannot be read none.
fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect::<Vec<_>>();
    names.sort();
    names
}

fn folders(dir: &Path) -> Vec<String> {
    let mut names = entries(dir);
    names.retain(|name| dir.join(name).is_dir());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, Option<String>)> {
        let model = HubModel::parse(Path::new(text))?;
        Some((model.name, model.revision))
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (text, name, revision) in [
            (
                "HuggingFaceTB/SmolVLM2-500M",
                "HuggingFaceTB/SmolVLM2-500M",
                None,
            ),
            ("models/demo", "models/demo", None),
            ("org/n.a_m-e@v1.0", "org/n.a_m-e", Some("v1.0")),
            ("org/name@refs/pr/1", "org/name", Some("refs/pr/1")),
        ] {
            let revision = revision.map(str::to_string);
            assert_eq!(parse(text), Some((name.to_string(), revision)), "{text}");
        }
        let long = format!("org/{}", "a".repeat(97));
        let deep = format!("org/a@{}", "a/".repeat(130) + "a");
        for path in [
            "name", "a/b/c", "/a/b", "./a/b", "../b", "a/..", "~/b", "a/", "a/b/", "a/b@",
            "a/b@../c", "a/b@/c", "a/b c", "a/.b", "a//b", "", &long, &deep,
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
