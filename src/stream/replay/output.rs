//! What a replay writes and sums up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ReplayError;
use crate::stream::answer::Recalled;
use crate::stream::archive::Kind;
use crate::stream::detections::Detection;
use crate::stream::evidence::Evidence;

/// Right answers among those whose truth is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub right: u64,
    pub of: u64,
}

impl Tally {
    pub(super) fn count(&mut self, right: bool) {
        self.right += u64::from(right);
        self.of += 1;
    }
}

/// What a replay found; free of timings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub frames: u64,
    pub frames_rejected: u64,
    /// For each reason, as ~/cache_stats has them; `undecodable`: the message is none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected_by_reason: BTreeMap<&'static str, u64>,
    pub frames_skipped: u64,
    pub tokens: u64,
    pub compactions: u64,
    pub tokens_evicted: u64,
    /// Largest number of slots ever in use after a step; never above the budget.
    pub most_used: usize,
    pub budget: usize,
    pub bytes: usize,
    pub answers: u64,
    pub errors: u64,
    pub all: Tally,
    pub by_type: BTreeMap<String, Tally>,
    pub by_memory: BTreeMap<String, Tally>,
    /// By how long ago the answer was in view, where the script says it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_cell: BTreeMap<String, Tally>,
}

/// A line of the answers file.
#[derive(Serialize)]
pub(super) struct AnswerLine<'a> {
    pub id: &'a str,
    pub at: f64,
    pub text: &'a str,
    /// What was thought in front of it, and how that ended.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub thought: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thought_end: Option<&'static str>,
    pub token_ids: &'a [u32],
    pub finish_reason: &'static str,
    pub error: &'a Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub camera: &'a str,
    pub newest_frame_stamp_ns: Option<i64>,
    pub oldest_frame_stamp_ns: Option<i64>,
    pub frames_seen: u64,
    pub prompt_tokens: usize,
    pub vision_tokens: usize,
    pub output_tokens: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub thought_tokens: usize,
    /// Which of the choices it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_probabilities: Option<&'a Vec<f32>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recalled: Vec<RecalledUnit>,
    #[serde(skip_serializing_if = "is_zero")]
    pub recalled_tokens: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<EvidenceFrame>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub detections: &'a [Detection],
    pub truth: &'a Option<String>,
    #[serde(rename = "type")]
    pub kind: &'a Option<String>,
    pub memory: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<f64>,
    pub correct: Option<bool>,
    pub cache_used: usize,
    pub tokens_evicted: u64,
}

/// What was fed again for an answer.
#[derive(Serialize)]
pub(super) struct RecalledUnit {
    /// `turn`; none: a frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    stamp_ns: i64,
    seen_ns: i64,
    score: f32,
}

impl From<&Recalled> for RecalledUnit {
    fn from(unit: &Recalled) -> Self {
        Self {
            kind: (unit.kind == Kind::Text).then_some("turn"),
            stamp_ns: unit.stamp_ns,
            seen_ns: unit.seen_ns,
            score: unit.score,
        }
    }
}

/// A frame that an answer rests on.
#[derive(Serialize)]
pub(super) struct EvidenceFrame {
    stamp_ns: i64,
    weight: f32,
}

impl From<&Evidence> for EvidenceFrame {
    fn from(frame: &Evidence) -> Self {
        Self {
            stamp_ns: frame.stamp_ns,
            weight: frame.weight,
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Resident memory of this process, bytes; none where /proc does not tell.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A file of JSON lines.
pub(super) struct Output {
    file: PathBuf,
    writer: BufWriter<File>,
}

impl Output {
    pub fn create(file: &Path) -> Result<Self, ReplayError> {
        let created = File::create(file).map_err(|source| ReplayError::Write {
            file: file.to_path_buf(),
            source,
        })?;
        Ok(Self {
            file: file.to_path_buf(),
            writer: BufWriter::new(created),
        })
    }

    pub fn line(&mut self, value: &impl Serialize) -> Result<(), ReplayError> {
        let written = serde_json::to_writer(&mut self.writer, value)
            .map_err(std::io::Error::from)
            .and_then(|()| self.writer.write_all(b"\n"));
        written.map_err(|source| self.error(source))
    }

    pub fn close(mut self) -> Result<(), ReplayError> {
        self.writer.flush().map_err(|source| self.error(source))
    }

    fn error(&self, source: std::io::Error) -> ReplayError {
        ReplayError::Write {
            file: self.file.clone(),
            source,
        }
    }
}
