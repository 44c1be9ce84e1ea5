//! Paths as parameters have them: `~/` in front is the user's home, `package://NAME/PATH` lies in the share folder of an installed ROS package.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::excerpt::excerpt;

/// Where the prefixes are in which packages are installed.
const PREFIXES: &str = "AMENT_PREFIX_PATH";
const PACKAGE: &str = "package://";

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("{} names no package, expected package://NAME/PATH", excerpt(.path))]
    Nameless { path: String },
    #[error("package {0} is not installed, searched for share/{0} in {1}", excerpt(.name), Searched(.prefixes))]
    Unknown {
        name: String,
        prefixes: Vec<PathBuf>,
    },
}

struct Searched<'a>(&'a [PathBuf]);

impl std::fmt::Display for Searched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return write!(f, "no prefix ({PREFIXES} is empty)");
        }
        let prefixes = self.0.iter().map(|prefix| prefix.display().to_string());
        let prefixes = prefixes.collect::<Vec<_>>().join(", ");
        write!(f, "{prefixes} ({PREFIXES}, and the prefix of this program)")
    }
}

/// What a path stands for on this machine.
pub fn expand(path: &Path) -> Result<PathBuf, PathError> {
    expand_with(path, std::env::var_os("HOME"), prefixes)
}

/// `path` with the user's home in the place of a leading `~`, as a shell has it. Shells leave `model:=~/...` as it is.
pub fn expand_home(path: &Path) -> PathBuf {
    with_home(path, std::env::var_os("HOME"))
}

/// The prefixes in which packages are installed, the first that counts first: those of the sourced environment, and that of this program,
/// which stands in lib/PACKAGE of its own; each once.
pub fn prefixes() -> Vec<PathBuf> {
    let sourced = std::env::var_os(PREFIXES).unwrap_or_default();
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(|exe| exe.ancestors().nth(3));
    let sourced = std::env::split_paths(&sourced).filter(|prefix| !prefix.as_os_str().is_empty());
    distinct(sourced.chain(own.map(Path::to_path_buf)))
}

/// The first of the paths that lead to one folder, however they are spelled.
fn distinct(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let folder = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    paths.filter(|path| seen.insert(folder(path))).collect()
}

fn expand_with(
    path: &Path,
    home: Option<OsString>,
    prefixes: impl FnOnce() -> Vec<PathBuf>,
) -> Result<PathBuf, PathError> {
    let Some(rest) = path.to_str().and_then(|path| path.strip_prefix(PACKAGE)) else {
        return Ok(with_home(path, home));
    };
    let (name, inside) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() || name.starts_with('.') {
        return Err(PathError::Nameless {
            path: path.display().to_string(),
        });
    }
    let prefixes = prefixes();
    let shares = prefixes
        .iter()
        .map(|prefix| prefix.join("share").join(name));
    match shares.into_iter().find(|share| share.is_dir()) {
        // What stands behind a second slash is inside as well.
        Some(share) => Ok(share.join(inside.trim_start_matches('/'))),
        None => Err(PathError::Unknown {
            name: name.to_string(),
            prefixes,
        }),
    }
}

fn with_home(path: &Path, home: Option<OsString>) -> PathBuf {
    let rest = path.strip_prefix("~").ok();
    match (rest, home) {
        (Some(rest), Some(home)) if !home.is_empty() => Path::new(&home).join(rest),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(path: &str, prefixes: &[PathBuf]) -> Result<PathBuf, PathError> {
        let home = Some(OsString::from("/home/robot"));
        expand_with(Path::new(path), home, || prefixes.to_vec())
    }

    #[test]
    fn a_tilde_is_the_home_only_in_front_and_alone() {
        assert_eq!(
            expanded("~/models/a", &[]),
            Ok(PathBuf::from("/home/robot/models/a"))
        );
        for same in [
            "/~/a",
            "a/~",
            "~other/a",
            "a",
            "",
            "packages/a",
            "package:/a",
        ] {
            assert_eq!(expanded(same, &[]), Ok(PathBuf::from(same)));
        }
        for home in [None, Some(OsString::new())] {
            let expanded = expand_with(Path::new("~/a"), home, Vec::new);
            assert_eq!(expanded, Ok(PathBuf::from("~/a")));
        }
    }

    #[test]
    fn a_package_is_the_first_of_its_name_in_the_prefixes() {
        let folder = tempfile::tempdir().unwrap();
        let prefixes = ["a", "b", "c"].map(|name| folder.path().join(name));
        for prefix in &prefixes[1..] {
            std::fs::create_dir_all(prefix.join("share/my_models")).unwrap();
        }
        let share = prefixes[1].join("share/my_models");
        for (path, inside) in [
            ("package://my_models/demo/a.gguf", "demo/a.gguf"),
            ("package://my_models//demo", "demo"),
            ("package://my_models/", ""),
            ("package://my_models", ""),
        ] {
            assert_eq!(expanded(path, &prefixes), Ok(share.join(inside)), "{path}");
        }
    }

    #[test]
    fn a_folder_is_searched_once_however_it_is_spelled() {
        let folder = tempfile::tempdir().unwrap();
        let [here, link, gone] = ["here", "link", "gone"].map(|name| folder.path().join(name));
        std::fs::create_dir(&here).unwrap();
        std::os::unix::fs::symlink(&here, &link).unwrap();
        let slash = here.join("");
        let given = [&link, &gone, &here, &gone, &slash, &link];
        assert_eq!(
            distinct(given.into_iter().cloned()),
            [link.clone(), gone.clone()]
        );
    }

    #[test]
    fn what_is_no_package_is_named_with_where_it_was_searched() {
        let folder = tempfile::tempdir().unwrap();
        let prefixes = ["a", "b"].map(|name| folder.path().join(name));
        // A file is no package.
        std::fs::create_dir_all(prefixes[0].join("share")).unwrap();
        std::fs::write(prefixes[0].join("share/my_models"), "").unwrap();
        let told = expanded("package://my_models/demo", &prefixes).unwrap_err();
        let searched = prefixes
            .each_ref()
            .map(|prefix| prefix.display().to_string());
        assert_eq!(
            told.to_string(),
            format!(
                "package my_models is not installed, searched for share/my_models in {} (AMENT_PREFIX_PATH, and the prefix of this program)",
                searched.join(", ")
            )
        );
        let told = expanded("package://my_models/demo", &[]).unwrap_err();
        assert!(
            told.to_string().contains("AMENT_PREFIX_PATH is empty"),
            "{told}"
        );
        for nameless in [
            "package://",
            "package:///demo",
            "package://../demo",
            "package://.",
        ] {
            let told = expanded(nameless, &prefixes).unwrap_err().to_string();
            let expected = format!("{nameless} names no package, expected package://NAME/PATH");
            assert_eq!(told, expected);
        }
    }
}
