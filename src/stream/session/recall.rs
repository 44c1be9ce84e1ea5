//! Recall: frames enter the archive as they come, and those that an instruction asks for are fed again in front of it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::ask::AskError;
use super::{Chunk, Session, SessionConfig};
use crate::cache::{CacheError, FrameId, PolicyKind, Probe, Summary};
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::answer::{Answer, Instruction, Recalled};
use crate::stream::archive::{
    ArchiveConfig, Content, Found, Frame, RecallMode, TooLarge, Unit, Wanted,
};
use crate::stream::frame::CameraImage;

/// Frames that are recalled for their score alone. A question means the newest sighting of a thing more often than the one that shows it best.
const BEST: usize = 2;

/// Why there is no archive.
const NO_BYTES: &str = "there is no archive: archive_bytes is 0";
const NOTHING_LEAVES: &str = "there is no archive: nothing ever leaves the cache of policy full";
const NO_MEMORY: &str = "there is no archive: policy last_frames has no memory";

/// Why nothing can be recalled.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    #[error("recall is wanted, but {0}; expected never or auto")]
    NoArchive(&'static str),
    #[error(
        "recall is never, but a time range or frames to recall are given, expected auto or always"
    )]
    Never,
    #[error("recall {0}: the range ends before it begins")]
    Backwards(Span),
    #[error("nothing is archived {asked}, expected a range that meets what is: {archived}")]
    Nothing { asked: Span, archived: Span },
    #[error("nothing is archived: archive_bytes is {bytes}, expected at least {needed}, which a frame takes")]
    TooSmall { bytes: usize, needed: usize },
    #[error("nothing is archived yet, expected a frame before an instruction that recalls")]
    Empty,
}

/// From and to, nanoseconds; the ends of i64 are no ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(i64, i64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: i64| ns as f64 * 1e-9;
        match self.0 {
            i64::MIN => write!(f, "from the beginning")?,
            from => write!(f, "from {:.3} s", seconds(from))?,
        }
        match self.1 {
            i64::MAX => write!(f, " to now"),
            to => write!(f, " to {:.3} s", seconds(to)),
        }
    }
}

/// Why no frame enters the archive, if none does.
pub(super) fn no_archive(config: &SessionConfig) -> Option<&'static str> {
    match config.cache.policy {
        PolicyKind::LastFrames => Some(NO_MEMORY),
        PolicyKind::Full => Some(NOTHING_LEAVES),
        _ if config.archive.archive_bytes == 0 => Some(NO_BYTES),
        _ => None,
    }
}

/// The layers by whose keys frames are found; none where there is no archive. Fails where the parameter names layers that are not there
/// or that pictures do not reach.
pub(super) fn finding_layers(
    config: &SessionConfig,
    layers: usize,
) -> Result<Vec<usize>, CacheError> {
    if no_archive(config).is_some() {
        return Ok(Vec::new());
    }
    let reached = match config.cache.withdraw_layer {
        0 => layers,
        withdrawn => withdrawn.min(layers),
    };
    let ArchiveConfig { recall_layers, .. } = &config.archive;
    config
        .archive
        .layers(reached, config.archive.recall_by.of_frames())
        .ok_or_else(|| CacheError::Parameter {
            name: "recall_layers",
            value: recall_layers.clone(),
            expected: format!("numbers below {reached}, as in 4/8"),
        })
}

impl Session {
    /// Feeds a new frame; what enters the archive of it, with its place in the stream.
    pub(super) fn append_new_frame(
        &mut self,
        text: &str,
        (id, elapsed_ns): (FrameId, i64),
        image: &CameraImage,
        layout: Layout,
        features: ImageFeatures,
    ) -> Result<Option<(Unit, Range<u64>)>, ModelError> {
        let from = self.state.cache.usage().tokens_seen;
        self.state.cache.listen(&self.finding);
        let ids = self.append_frames(text, &[id], std::slice::from_ref(&features), None)?;
        let heard = self.state.cache.heard()?;
        if self.finding.is_empty() {
            return Ok(None);
        }
        let is_image = |&id: &u32| self.model.is_image(id);
        let first = ids.iter().position(is_image).unwrap_or(0);
        let behind = ids
            .iter()
            .rposition(is_image)
            .map_or(first, |last| last + 1);
        let frame = Frame::new((id, elapsed_ns), layout, ids.len(), &features)?;
        let frame = Arc::new(frame);
        self.state.stream.newest = Some(frame.clone());
        let summary = Summary::of(&heard, first..behind)?;
        let unit = Unit::new(image.stamp_ns, Content::Frame(frame), summary);
        Ok(Some((unit, from..from + ids.len() as u64)))
    }

    /// What is to be fed again for an instruction, in the order of time.
    pub(super) fn find(&mut self, instruction: &Instruction) -> Result<Vec<Found>, AskError> {
        let recall = &instruction.recall;
        let given = recall.span_ns.is_some() || !recall.stamps_ns.is_empty();
        let config = &self.config.archive;
        let mode = match recall.mode {
            Some(RecallMode::Never) if given => return Err(RecallError::Never.into()),
            Some(mode) => mode,
            None if given => RecallMode::Always,
            None => config.recall,
        };
        if let Some(why) = no_archive(&self.config) {
            let asked = given || recall.mode == Some(RecallMode::Always);
            return match asked {
                true => Err(RecallError::NoArchive(why).into()),
                false => Ok(Vec::new()),
            };
        }
        if mode == RecallMode::Never {
            return Ok(Vec::new());
        }
        if given || recall.mode == Some(RecallMode::Always) {
            self.check_size()?;
        }
        self.check_span(recall.span_ns)?;
        if !recall.stamps_ns.is_empty() {
            return Ok(self.state.stream.archive.nearest(&recall.stamps_ns));
        }
        let mut grammar = self.state.stream.grammar.clone();
        let text = grammar.instruction(&instruction.text, &self.model.tokenizer);
        let ids = self.encode(&text)?;
        let newest = self.newest_again().map_or(0, |frame| frame.tokens);
        let room = self.state.cache.longest_turn();
        let Some(tokens) = room.checked_sub(ids.len() + newest) else {
            return Ok(Vec::new());
        };
        let wanted = Wanted {
            units: config.recall_units,
            tokens,
            share: if given {
                0.0
            } else {
                config.recall_share as f32
            },
            span_ns: recall.span_ns,
            best: BEST,
            beyond_cache: mode == RecallMode::Auto,
        };
        let side = config.recall_by.of_frames();
        let retained = self.state.cache.retained();
        let finding = self.finding.clone();
        let probe = self.passing(|session| {
            let heard = session.hear(&ids, Chunk::Instruction, &finding)?;
            Ok::<_, ModelError>(Probe::of(&heard, side)?)
        })?;
        Ok(self.state.stream.archive.find(&probe, &wanted, &retained))
    }

    /// Refuses to recall from an archive that no frame fits into.
    fn check_size(&self) -> Result<(), RecallError> {
        let archive = &self.state.stream.archive;
        match archive.too_large() {
            TooLarge { units, bytes } if units > 0 && archive.entries().is_empty() => {
                Err(RecallError::TooSmall {
                    bytes: archive.config().archive_bytes,
                    needed: bytes,
                })
            }
            _ => Ok(()),
        }
    }

    fn check_span(&self, span_ns: Option<(i64, i64)>) -> Result<(), RecallError> {
        let Some(span) = span_ns else { return Ok(()) };
        let asked = Span(span.0, span.1);
        if span.0 > span.1 {
            return Err(RecallError::Backwards(asked));
        }
        let entries = self.state.stream.archive.entries();
        let oldest = entries.iter().map(|entry| entry.unit.stamp_ns).min();
        let newest = entries.iter().map(|entry| entry.seen_ns).max();
        match oldest.zip(newest) {
            None => Err(RecallError::Empty),
            Some(_) if entries.iter().any(|entry| entry.within(span)) => Ok(()),
            Some((oldest, newest)) => Err(RecallError::Nothing {
                asked,
                archived: Span(oldest, newest),
            }),
        }
    }

    /// The frame that is fed once more behind what is recalled.
    fn newest_again(&self) -> Option<Arc<Frame>> {
        let newest = &self.state.stream.newest;
        newest.clone().filter(|_| self.config.archive.recall_newest)
    }

    /// Feeds again what was found, as frames of the stream, behind everything else.
    pub(super) fn feed_again(
        &mut self,
        found: &[Found],
        answer: &mut Answer,
    ) -> Result<(), ModelError> {
        let started = Instant::now();
        let newest = self.newest_again();
        // The label is of the last time that it was so.
        let units = found.iter().filter_map(|found| match &found.unit.content {
            Content::Frame(frame) => {
                let since_ns = found.seen_ns.saturating_sub(found.unit.stamp_ns);
                Some((frame.as_ref(), frame.elapsed_ns.saturating_add(since_ns)))
            }
            Content::Text(_) => None,
        });
        let newest = newest.as_deref().map(|frame| (frame, frame.elapsed_ns));
        let frames = units.chain(newest).collect::<Vec<_>>();
        // One compaction for all of it and for the turn that follows, where feeding would take one after the other.
        let tokens = frames.iter().map(|(frame, _)| frame.tokens).sum::<usize>();
        let cache = &mut self.state.cache;
        cache.make_room(tokens + cache.plan().slack)?;
        let (dtype, device) = (self.model.dtype(), self.model.device());
        let mut text = String::new();
        let (mut numbers, mut features) = (Vec::new(), Vec::new());
        for (frame, elapsed_ns) in frames {
            let markup = self.model.vision.markup(&frame.layout);
            text.push_str(&self.state.stream.grammar.frame(&markup, elapsed_ns));
            numbers.push(frame.id);
            features.push(frame.features(dtype, device)?);
        }
        let ids = self.append_frames(&text, &numbers, &features, Some(1))?;
        answer.recalled_tokens = ids.len();
        answer.recalled = found
            .iter()
            .map(|found| Recalled {
                stamp_ns: found.unit.stamp_ns,
                seen_ns: found.seen_ns,
                score: found.score,
            })
            .collect();
        answer.recall_time += started.elapsed();
        Ok(())
    }
}
