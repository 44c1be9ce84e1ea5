//! Models that are split over several files, `NAME-00001-of-00003.gguf` and so on, as llama.cpp's `gguf-split` and converters write
//! them: the first has the keys, each has the table of its own tensors, and the parts are found by their names.

use std::path::{Path, PathBuf};

use super::header::TensorInfo;
use super::value::Value;
use super::Gguf;
use crate::model::checkpoint::list;
use crate::model::ModelError;

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The most parts that the key can tell of, 16 bits.
const MOST: usize = u16::MAX as usize;
/// Digits of a number in a name.
const DIGITS: usize = 5;

/// What every part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// From 0 on.
    no: usize,
    count: usize,
    /// Tensors of all parts.
    tensors: Option<usize>,
}

/// The name of one of several parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartName {
    folder: PathBuf,
    /// In front of the numbers.
    stem: String,
    /// From 0 on.
    no: usize,
    pub count: usize,
    /// With its point.
    ending: String,
}

impl PartName {
    /// Of a file whose name says that it is one of several parts.
    pub fn of(file: &Path) -> Option<Self> {
        let ending = file.extension()?.to_str()?;
        let stem = file.file_stem()?.to_str()?;
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (stem, no) = stem.rsplit_once('-')?;
        let (no, count) = (number(no)?, number(count)?);
        (count > 1 && (1..=count).contains(&no)).then(|| Self {
            folder: file.parent().unwrap_or(Path::new("")).to_path_buf(),
            stem: stem.to_string(),
            no: no - 1,
            count,
            ending: format!(".{ending}"),
        })
    }

    /// The file of another part, from 0 on.
    fn part(&self, no: usize) -> PathBuf {
        let (stem, count, ending) = (&self.stem, self.count, &self.ending);
        let number = no + 1;
        self.folder
            .join(format!("{stem}-{number:05}-of-{count:05}{ending}"))
    }

    pub fn first(&self) -> PathBuf {
        self.part(0)
    }
}

fn number(text: &str) -> Option<usize> {
    let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

impl Gguf {
    /// What it says of the parts that it is one of; nothing of a whole file.
    pub(super) fn split(&self) -> Result<Option<Split>, ModelError> {
        let expected = format!("a whole number from 1 to {MOST}");
        let count = self.value(COUNT, &expected, |value| within(value, 1, MOST))?;
        let Some(count) = count else {
            return match PartName::of(self.file()) {
                None => Ok(None),
                Some(name) => Err(self.fail(format!(
                    "{COUNT} is missing, but by its name it is part {} of {}",
                    name.no + 1,
                    name.count
                ))),
            };
        };
        if count == 1 {
            return Ok(None);
        }
        let expected = format!("a whole number below {count}");
        let no = self.value(NO, &expected, |value| within(value, 0, count - 1))?;
        Ok(Some(Split {
            no: no.ok_or_else(|| self.missing(NO))?,
            count,
            tensors: self.optional_size(TENSORS)?,
        }))
    }

    /// The whole model of which this is a part: its first file, with the tensors of all.
    pub(super) fn joined(self, split: Split) -> Result<Self, ModelError> {
        let count = split.count;
        let Some(name) = PartName::of(self.file()) else {
            return Err(self.fail(format!(
                "part {} of {count}, expected a name such as NAME-{:05}-of-{count:05}.gguf, by which the others are found",
                split.no + 1,
                split.no + 1
            )));
        };
        if (name.no, name.count) != (split.no, count) {
            return Err(self.fail(format!(
                "part {} of {count} by its keys ({NO}, {COUNT}), but part {} of {} by its name",
                split.no + 1,
                name.no + 1,
                name.count
            )));
        }
        let absent = (0..count).map(|no| name.part(no));
        let absent = absent.filter(|file| file.symlink_metadata().is_err());
        let absent = absent.map(|file| file_name(&file)).collect::<Vec<_>>();
        if !absent.is_empty() {
            let are = if absent.len() == 1 { "is" } else { "are" };
            return Err(self.fail(format!(
                "{} of its {count} parts {are} missing: {}",
                absent.len(),
                list(&absent)
            )));
        }
        let mut given = Some(self);
        let mut open = |no: usize| {
            let part = match given.take_if(|_| no == split.no) {
                Some(part) => part,
                None => Self::map(&name.part(no))?,
            };
            match part.split()? {
                Some(found) => found.check(Split { no, ..split }, &part)?,
                None => return Err(part.unsupported(COUNT, 1, count)),
            }
            Ok(part)
        };
        let mut whole = open(0)?;
        for no in 1..count {
            whole.take_in(open(no)?)?;
        }
        let held = whole.header.tensors.len();
        match split.tensors {
            Some(count) if count != held => {
                let expected = format!("{held}, as many as its {} parts hold", split.count);
                Err(whole.unsupported(TENSORS, count, expected))
            }
            _ => Ok(whole),
        }
    }

    /// Adds the tensors of the part behind those that it has.
    fn take_in(&mut self, mut part: Self) -> Result<(), ModelError> {
        for key in ["general.architecture", "general.name"] {
            let (ours, its) = (self.optional_text(key)?, part.optional_text(key)?);
            if its.is_some() && its != ours {
                let (its, ours) = (its.unwrap_or_default(), ours.unwrap_or_default());
                let expected = format!("{ours:?}, as in its first part");
                return Err(part.unsupported(key, format!("{its:?}"), expected));
            }
        }
        let number = self.others.len() + 1;
        for (name, info) in std::mem::take(&mut part.header.tensors) {
            if let Some(known) = self.header.tensors.get(&name) {
                let other = file_name(&self.part(known).file);
                return Err(part.fail(format!("the tensor {name} is in {other} too")));
            }
            let info = TensorInfo {
                part: number,
                ..info
            };
            self.header.tensors.insert(name, info);
        }
        self.others.push(part.mapped);
        Ok(())
    }
}

impl Split {
    /// Fails for a part that is another one than `expected`, or of another model.
    fn check(self, expected: Self, part: &Gguf) -> Result<(), ModelError> {
        if self.count != expected.count {
            return Err(part.unsupported(COUNT, self.count, expected.count));
        }
        if self.no != expected.no {
            return Err(part.unsupported(NO, self.no, expected.no));
        }
        let told = |tensors: Option<usize>| {
            tensors.map_or_else(|| "missing".to_string(), |count| count.to_string())
        };
        match self.tensors == expected.tensors {
            true => Ok(()),
            false => Err(part.unsupported(
                TENSORS,
                told(self.tensors),
                format!("{}, as in the other parts", told(expected.tensors)),
            )),
        }
    }
}

pub(super) fn file_name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn within(value: Value, least: usize, most: usize) -> Option<usize> {
    let value = usize::try_from(value.whole()?).ok()?;
    (least..=most).contains(&value).then_some(value)
}
