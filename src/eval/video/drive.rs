//! A recorded drive and its questions, checked before anything is measured.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cell::Cell;
use crate::eval::fingerprint::Fingerprint;
use crate::eval::{parameter, EvalError};
use crate::stream::bag::Bag;
use crate::stream::frame::{CameraImage, ImageData};
use crate::stream::script::{Entry, Script};
use crate::stream::session::EncodedFrame;
use crate::stream::Session;

/// A drive's frames up to the last question, and what is asked of them.
pub struct Drive {
    /// Of the bag's folder or file.
    pub name: String,
    /// Stands for frames and questions.
    pub fingerprint: String,
    pub system_prompt: Option<String>,
    /// In the order of time.
    pub questions: Vec<Question>,
    bag: Bag,
    script: PathBuf,
    /// When each frame was taken, seconds since the first one; ascending.
    times: Vec<f64>,
}

/// An instruction of the script that has all that the evaluation needs.
#[derive(Debug, Clone)]
pub struct Question {
    pub entry: Entry,
    pub cell: Cell,
    /// Type of the question.
    pub kind: String,
    /// How long ago the answer was in view, seconds.
    pub age: f64,
    /// Frames that come before it.
    pub after: usize,
}

impl Drive {
    /// Reads what is needed of bag and script; `limit`: only so many of the first questions.
    pub fn open(bag: &Path, script: &Path, limit: Option<usize>) -> Result<Self, EvalError> {
        let wrong = |what: String| at(script, what);
        let loaded = Script::load(script)?;
        check(&loaded).map_err(wrong)?;
        let name = bag.file_name().unwrap_or(bag.as_os_str());
        let mut drive = Self {
            name: name.to_string_lossy().into_owned(),
            fingerprint: String::new(),
            system_prompt: loaded.system_prompt,
            questions: Vec::new(),
            bag: Bag::open(bag, None)?,
            script: script.to_path_buf(),
            times: Vec::new(),
        };
        let entries = loaded.instructions.into_iter();
        for entry in entries.take(limit.unwrap_or(usize::MAX)) {
            drive.questions.push(question(entry).map_err(wrong)?);
        }
        let Some(last) = drive.questions.last() else {
            return Err(wrong("no instructions, expected at least one".to_string()));
        };
        let mut content = Fingerprint::default();
        drive.times = drive.read_times(last.entry.at, bag, &mut content)?;
        for question in &mut drive.questions {
            let before = |&time: &f64| time <= question.entry.at;
            question.after = drive.times.partition_point(before);
            if question.after == 0 {
                let what = format!(
                    "instruction {} is at {} s, expected 0 or more: before the first image there is nothing to ask about",
                    question.entry.id, question.entry.at
                );
                return Err(wrong(what));
            }
            content.add(format!("{question:?}").as_bytes());
        }
        content.add(format!("{:?}", drive.system_prompt).as_bytes());
        drive.fingerprint = content.to_string();
        Ok(drive)
    }

    /// The times of the images up to `end`, which the bag has to reach, give or take a frame.
    fn read_times(
        &self,
        end: f64,
        bag: &Path,
        content: &mut Fingerprint,
    ) -> Result<Vec<f64>, EvalError> {
        let mut times: Vec<f64> = Vec::new();
        let mut first_ns = None;
        for image in self.images() {
            let image = image?;
            let first_ns = *first_ns.get_or_insert(image.stamp_ns);
            let time = (image.stamp_ns - first_ns) as f64 * 1e-9;
            if let Some(before) = times.last().filter(|&&before| time <= before) {
                let what = format!(
                    "image {} is of {time:.3} s after the first one, expected more than the {before:.3} s of the one before",
                    times.len()
                );
                return Err(at(bag, what));
            }
            if time > end {
                return Ok(times);
            }
            content.add(&image.stamp_ns.to_le_bytes());
            let (ImageData::Raw { data, .. } | ImageData::Compressed { data, .. }) = &image.data;
            content.add(data);
            times.push(time);
        }
        let (count, reached) = (times.len(), times.last().copied().unwrap_or(0.0));
        let distance = reached / count.saturating_sub(1).max(1) as f64;
        if reached + distance < end {
            let what = format!(
                "its {count} images end {reached:.3} s after the first one, expected some up to the last instruction at {end} s"
            );
            return Err(at(bag, what));
        }
        Ok(times)
    }

    fn images(&self) -> impl Iterator<Item = Result<CameraImage, EvalError>> + '_ {
        self.bag.images().map(|image| {
            let mut image = image?;
            image.date(image.arrival_ns);
            Ok(image)
        })
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.times.len()
    }

    /// Every frame through the vision tower of `session`'s model. `progress` as in [`super::lane::run`].
    pub fn encode(
        &self,
        session: &Session,
        progress: crate::eval::Progress,
    ) -> Result<Vec<EncodedFrame>, EvalError> {
        let mut frames = Vec::with_capacity(self.frames());
        for image in self.images().take(self.frames()) {
            frames.push(session.encode_frame(&image?)?);
            progress(1);
        }
        Ok(frames)
    }

    /// For each question the frames nearest to those that show its answer, ascending.
    pub fn shown(&self) -> Result<Vec<Vec<usize>>, EvalError> {
        let questions = self.questions.iter();
        let shown = questions.map(|question| self.shown_before(question));
        shown
            .collect::<Result<_, _>>()
            .map_err(|what| at(&self.script, what))
    }

    fn shown_before(&self, question: &Question) -> Result<Vec<usize>, String> {
        let entry = &question.entry;
        let before = &self.times[..question.after];
        if entry.shown.is_empty() {
            return Err(format!(
                "instruction {} ({}) has no shown, expected the times of frames that show its answer: an oracle has nothing to feed",
                entry.id, question.kind
            ));
        }
        let last = before.last().copied().unwrap_or(0.0);
        let distance = last / before.len().saturating_sub(1).max(1) as f64;
        let mut frames = Vec::new();
        for &shown in &entry.shown {
            let (nearest, off) = (0..before.len())
                .map(|frame| (frame, (before[frame] - shown).abs()))
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap_or((0, f64::INFINITY));
            if off > distance {
                return Err(format!(
                    "instruction {} was shown at {shown} s, but the nearest image before it is {off:.3} s away, expected at most {distance:.3}, the mean distance of the images",
                    entry.id
                ));
            }
            if frames.last() != Some(&nearest) {
                frames.push(nearest);
            }
        }
        match frames.is_sorted() {
            true => Ok(frames),
            false => Err(format!(
                "instruction {} was shown at {:?} s, expected ascending times",
                entry.id, entry.shown
            )),
        }
    }
}

/// The same frames in black, at their times: what can be guessed without seeing.
pub fn black(frames: &[EncodedFrame], session: &Session) -> Result<Vec<EncodedFrame>, EvalError> {
    let mut by_size = HashMap::new();
    let mut black = Vec::with_capacity(frames.len());
    for frame in frames {
        let size = frame.size();
        let picture = match by_size.get(&size) {
            Some(picture) => picture,
            None => {
                let image = CameraImage::recorded(0, "", black_picture(size)?);
                let picture = session.encode_frame(&image)?;
                by_size.entry(size).or_insert(picture)
            }
        };
        black.push(picture.at_the_time_of(frame));
    }
    Ok(black)
}

fn black_picture((width, height): (usize, usize)) -> Result<ImageData, EvalError> {
    let side = |side: usize| {
        u32::try_from(side).map_err(|_| parameter("side of an image", side, "at most 4294967295"))
    };
    Ok(ImageData::Raw {
        encoding: "mono8".to_string(),
        width: side(width)?,
        height: side(height)?,
        step: side(width)?,
        is_bigendian: false,
        data: vec![0; width * height],
    })
}

/// What a script has to say as a whole.
fn check(script: &Script) -> Result<(), String> {
    if !script.aside {
        return Err(
            "aside is false, expected true: every question is asked as if no other had been"
                .to_string(),
        );
    }
    match script.resets.iter().find(|&&reset| reset > 0.0) {
        Some(reset) => Err(format!(
            "a reset at {reset} s, expected none behind 0: a drive is one memory"
        )),
        None => Ok(()),
    }
}

/// What the evaluation needs of an instruction.
fn question(entry: Entry) -> Result<Question, String> {
    let missing = |name: &str, expected: &str| {
        format!(
            "instruction {} has no {name}, expected {expected}",
            entry.id
        )
    };
    let cell = entry.cell.as_deref().ok_or_else(|| {
        let names = Cell::ALL.map(Cell::name).join(", ");
        missing("cell", &format!("one of: {names}"))
    })?;
    let cell = cell
        .parse()
        .map_err(|error| format!("instruction {}: {error}", entry.id))?;
    let kind = entry.kind.clone();
    let kind = kind.ok_or_else(|| missing("type", "the type of the question"))?;
    let age = entry.age;
    let age = age.ok_or_else(|| missing("age", "seconds since its answer was in view"))?;
    if entry.answer.is_none() {
        return Err(missing("answer", "the true answer"));
    }
    Ok(Question {
        entry,
        cell,
        kind,
        age,
        after: 0,
    })
}

fn at(file: &Path, what: String) -> EvalError {
    EvalError::File {
        file: file.to_path_buf(),
        what,
    }
}

/// Where a bag's instructions are if nothing else is said: in its folder.
pub fn usual_script(bag: &Path) -> PathBuf {
    let folder = match fs::metadata(bag) {
        Ok(about) if about.is_file() => bag.parent().unwrap_or(bag),
        _ => bag,
    };
    folder.join("instructions.yaml")
}
