//! A bag and a script through a session in lock-step: every frame, in recorded order, without ROS and without a clock.
//!
//! The answers depend on bag, script, model and parameters only; timings are kept apart from them.
//!
//! - this file: what is played and asked when
//! - `output`: what is written and summed up

mod output;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::answer::{Answer, FinishReason, ThoughtEnd};
use super::bag::Bag;
use super::frame::{CameraImage, ImageData};
use super::instruction::{Instruction, Recall};
use super::script::{Entry, Script, ScriptError};
use super::session::{PushError, Session, Taken};
use crate::model::ModelError;
use output::{resident_bytes, AnswerLine, EvidenceFrame, Output, RecalledUnit};

pub use output::{Summary, Tally};

/// Frames between two lines of the timings file.
const PROGRESS_FRAMES: u64 = 1000;

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{file}: {source}")]
    Write {
        file: PathBuf,
        source: std::io::Error,
    },
}

/// How a replay runs.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Times the bag is played, end to end.
    pub repeat: u64,
    /// Every frame is replaced by a black one of the same stamp: what the model answers without seeing.
    pub black: bool,
    /// For every instruction the frames that show its answer are recalled, as far as the script tells them and the archive has them,
    /// instead of those that match.
    pub oracle: bool,
    /// The answers, JSON lines; the timings go to a file beside it.
    pub out: PathBuf,
}

/// Plays `bag` into `session` and puts the instructions of `script` at their times.
///
/// `progress` is called after every frame with the number of frames played so far.
pub fn replay(
    session: &mut Session,
    bag: &Bag,
    script: &Script,
    options: &ReplayOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, ReplayError> {
    let mut run = Run {
        session,
        script,
        black: options.black,
        oracle: options.oracle,
        answers: Output::create(&options.out)?,
        timings: Output::create(&timings_file(&options.out))?,
        summary: Summary::default(),
        totals: (0, 0, 0),
        started: Instant::now(),
        played: 0,
        undated: false,
        begin_ns: 0,
    };
    let mut span = Span::default();
    for round in 0..options.repeat {
        run.round(bag, round, &mut span, progress)?;
    }
    run.finish()
}

/// Where the timings of a replay go.
pub fn timings_file(out: &Path) -> PathBuf {
    out.with_extension("timings.jsonl")
}

/// Stamps of a bag, from the first round on.
#[derive(Default)]
struct Span {
    first_ns: Option<i64>,
    last_ns: i64,
    frames: i64,
    /// Of the image that is furthest from the first one, seconds from there.
    end_s: f64,
}

impl Span {
    /// How far one round shifts the stamps: the bag's length and one mean frame distance.
    fn period_ns(&self) -> i64 {
        let length = self.last_ns - self.first_ns.unwrap_or(self.last_ns);
        length + length / (self.frames - 1).max(1)
    }

    /// Says what of a script lies more than a mean frame distance behind the images; `entries` and `resets` are what they left.
    fn warn_of_what_is_behind<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
        resets: impl Iterator<Item = &'a f64>,
    ) {
        let end_s = self.end_s;
        let behind_s = end_s + end_s / (self.frames - 1).max(1) as f64;
        for entry in entries.filter(|entry| entry.at > behind_s) {
            tracing::warn!(
                "instruction {} is at {} s, but the images of the bag end {end_s:.3} s after the first one: it is put there",
                entry.id,
                entry.at
            );
        }
        for reset in resets.filter(|&&reset| reset > behind_s) {
            tracing::warn!(
                "a reset is at {reset} s, but the images of the bag end {end_s:.3} s after the first one: it is left out"
            );
        }
    }
}

struct Run<'a> {
    session: &'a mut Session,
    script: &'a Script,
    black: bool,
    oracle: bool,
    /// Stamp of the first image, nanoseconds, which the script's times count from.
    begin_ns: i64,
    answers: Output,
    timings: Output,
    summary: Summary,
    /// Tokens, compactions and evictions of the memories that resets have ended.
    totals: (u64, u64, u64),
    started: Instant,
    played: u64,
    /// An image without a stamp has come.
    undated: bool,
}

impl Run<'_> {
    fn round(
        &mut self,
        bag: &Bag,
        round: u64,
        span: &mut Span,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), ReplayError> {
        let script = self.script;
        let mut entries = script.instructions.iter().peekable();
        let mut resets = script.resets.iter().peekable();
        let shift = if round == 0 {
            0
        } else {
            span.period_ns() * round as i64
        };
        for image in bag.images() {
            let mut image = match image {
                Ok(image) => image,
                Err(error) => {
                    self.reject("undecodable", &error);
                    self.played += 1;
                    continue;
                }
            };
            if image.date(image.arrival_ns) && !std::mem::replace(&mut self.undated, true) {
                tracing::warn!("images without a stamp: the times of their recording are taken");
            }
            let first = *span.first_ns.get_or_insert(image.stamp_ns);
            self.begin_ns = first.saturating_add(shift);
            if round == 0 {
                span.last_ns = image.stamp_ns;
                span.frames += 1;
            }
            let elapsed = (image.stamp_ns - first) as f64 * 1e-9;
            span.end_s = span.end_s.max(elapsed);
            while let Some(entry) = entries.next_if(|entry| entry.at < elapsed) {
                self.ask(entry, round)?;
            }
            if resets.next_if(|&&reset| reset <= elapsed).is_some() {
                while resets.next_if(|&&reset| reset <= elapsed).is_some() {}
                self.reset()?;
            }
            image.stamp_ns = image.stamp_ns.saturating_add(shift);
            image.arrival_ns = image.arrival_ns.saturating_add(shift);
            if self.black {
                image.data = black_picture();
            }
            self.push(&image)?;
            progress(self.played);
        }
        if round == 0 {
            span.warn_of_what_is_behind(entries.clone(), resets);
        }
        for entry in entries {
            self.ask(entry, round)?;
        }
        Ok(())
    }

    /// Counts an image that cannot be used.
    fn reject(&mut self, reason: &'static str, error: &dyn std::error::Error) {
        tracing::warn!("image rejected: {error}");
        self.summary.frames_rejected += 1;
        let counted = self.summary.rejected_by_reason.entry(reason);
        *counted.or_default() += 1;
    }

    fn push(&mut self, image: &CameraImage) -> Result<(), ReplayError> {
        match self.session.push_frame(image) {
            Ok(Taken::Used) => self.summary.frames += 1,
            Ok(Taken::Skipped(_)) => self.summary.frames_skipped += 1,
            Err(PushError::Frame(error)) => self.reject(error.reason(), &error),
            Err(PushError::Model(error)) => {
                self.session.check()?;
                return Err(error.into());
            }
        }
        self.played += 1;
        let usage = self.session.usage();
        self.summary.most_used = self.summary.most_used.max(usage.used);
        if self.played.is_multiple_of(PROGRESS_FRAMES) {
            let times = self.session.times();
            self.timings.line(&json!({
                "frames": self.played,
                "elapsed_s": self.started.elapsed().as_secs_f64(),
                "used": usage.used,
                "budget": usage.budget,
                "bytes": usage.bytes,
                "resident_bytes": resident_bytes(),
                "vision_ms": times.vision.as_secs_f64() * 1e3,
                "prefill_ms": times.prefill.as_secs_f64() * 1e3,
            }))?;
        }
        Ok(())
    }

    fn ask(&mut self, entry: &Entry, round: u64) -> Result<(), ReplayError> {
        let id = match round {
            0 => entry.id.clone(),
            round => format!("{}#{round}", entry.id),
        };
        let answer = self.session.ask(
            &Instruction {
                id,
                max_new_tokens: entry.max_new_tokens,
                max_thought_tokens: entry.max_thought_tokens,
                ephemeral: self.script.aside,
                recall: self.recall(entry),
                choices: entry.choices.clone(),
                grammar: entry.grammar(),
                ..Instruction::new(&entry.text)
            },
            &|| false,
            &mut |_| (),
        );
        self.record(entry, &answer)?;
        Ok(self.session.check()?)
    }

    fn recall(&self, entry: &Entry) -> Recall {
        let stamp_ns = |&at: &f64| self.begin_ns.saturating_add((at * 1e9) as i64);
        let shown = entry.shown.iter().filter(|_| self.oracle);
        Recall {
            stamps_ns: shown.map(stamp_ns).collect(),
            ..Recall::default()
        }
    }

    fn record(&mut self, entry: &Entry, answer: &Answer) -> Result<(), ReplayError> {
        let correct = entry.is_right(&answer.text);
        let usage = self.session.usage();
        self.summary.most_used = self.summary.most_used.max(usage.used);
        self.summary.answers += 1;
        self.summary.errors += u64::from(answer.finish == FinishReason::Error);
        if let Some(right) = correct {
            let group = |name: &Option<String>| name.clone().unwrap_or_else(|| "other".to_string());
            self.summary.all.count(right);
            self.summary
                .by_type
                .entry(group(&entry.kind))
                .or_default()
                .count(right);
            self.summary
                .by_memory
                .entry(group(&entry.memory))
                .or_default()
                .count(right);
            if let Some(cell) = &entry.cell {
                let cell = self.summary.by_cell.entry(cell.clone());
                cell.or_default().count(right);
            }
        }
        let thought = answer.thought_end != ThoughtEnd::None;
        self.answers.line(&AnswerLine {
            id: &answer.id,
            at: entry.at,
            text: &answer.text,
            thought: &answer.thought,
            thought_end: thought.then_some(answer.thought_end.name()),
            token_ids: &answer.token_ids,
            finish_reason: answer.finish.name(),
            error: &answer.error,
            camera: &answer.camera,
            newest_frame_stamp_ns: answer.newest_frame.as_ref().map(|frame| frame.stamp_ns),
            oldest_frame_stamp_ns: answer.oldest_frame_ns,
            frames_seen: answer.frames_seen,
            prompt_tokens: answer.prompt_tokens,
            vision_tokens: answer.vision_tokens,
            output_tokens: answer.output_tokens,
            thought_tokens: answer.thought_tokens,
            choice: answer.chosen.as_ref().map(|chosen| chosen.index),
            choice_probabilities: answer.chosen.as_ref().map(|chosen| &chosen.probabilities),
            recalled: answer.recalled.iter().map(RecalledUnit::from).collect(),
            recalled_tokens: answer.recalled_tokens,
            evidence: answer.evidence.iter().map(EvidenceFrame::from).collect(),
            detections: &answer.detections.found,
            truth: &entry.answer,
            kind: &entry.kind,
            memory: &entry.memory,
            cell: &entry.cell,
            age: entry.age,
            correct,
            cache_used: usage.used,
            tokens_evicted: usage.tokens_evicted,
        })?;
        self.timings.line(&json!({
            "id": answer.id,
            "time_to_first_token_ms": answer.time_to_first_token.map(|t| t.as_secs_f64() * 1e3),
            "latency_ms": answer.latency.as_secs_f64() * 1e3,
            "recall_ms": answer.recall_time.as_secs_f64() * 1e3,
            "decode_ms_per_token": self.session.times().decode.as_secs_f64() * 1e3,
        }))
    }

    fn reset(&mut self) -> Result<(), ReplayError> {
        if self.session.has_seen() {
            self.close_memory();
            self.session.reset()?;
        }
        Ok(())
    }

    /// Adds the counters of the memory that ends to the totals.
    fn close_memory(&mut self) {
        let usage = self.session.usage();
        self.totals.0 += usage.tokens_seen;
        self.totals.1 += usage.compactions;
        self.totals.2 += usage.tokens_evicted;
    }

    fn finish(mut self) -> Result<Summary, ReplayError> {
        self.close_memory();
        let usage = self.session.usage();
        let mut summary = std::mem::take(&mut self.summary);
        (summary.tokens, summary.compactions, summary.tokens_evicted) = self.totals;
        summary.budget = usage.budget;
        summary.bytes = usage.bytes;
        self.answers.line(&json!({ "summary": summary }))?;
        self.answers.close()?;
        self.timings.line(&json!({
            "frames": self.played,
            "elapsed_s": self.started.elapsed().as_secs_f64(),
            "resident_bytes": resident_bytes(),
        }))?;
        self.timings.close()?;
        Ok(summary)
    }
}

fn black_picture() -> ImageData {
    const SIDE: u32 = 32;
    ImageData::Raw {
        encoding: "rgb8".to_string(),
        width: SIDE,
        height: SIDE,
        step: SIDE * 3,
        is_bigendian: false,
        data: vec![0; (SIDE * SIDE * 3) as usize],
    }
}
