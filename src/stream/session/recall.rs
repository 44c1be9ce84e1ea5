//! Recall: frames enter the archive as they come; those that an instruction asks for are fed again in front of it, and turns as well.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::checks::AskError;
use super::chunks::Fed;
use super::{Chunk, Session, SessionConfig};
use crate::cache::{CacheError, FrameId, Heard, PolicyKind, Probe, Retained, Summary};
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::answer::{Answer, Instruction, Recall, Recalled};
use crate::stream::archive::{
    Content, Found, Frame, Kind, Moment, RecallMode, TooLarge, Unit, Wanted,
};
use crate::stream::frame::CameraImage;
use crate::stream::grammar::Written;

/// Frames that are recalled for their score alone. A question means the newest sighting of a thing more often than the one that shows it best.
const BEST: usize = 2;

/// Of the units that are recalled, one of so many may be a turn before any frame is looked for; the others where frames leave room.
const TURNS_PART: usize = 4;

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
    #[error(
        "nothing can be recalled: the instruction with its pictures, the newest frame once more and the shortest of what is archived take {needed} tokens, expected at most {room}, the longest turn of the policy at this budget"
    )]
    NoRoom { needed: usize, room: usize },
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

/// Why nothing enters the archive, if nothing does.
pub(super) fn no_archive(config: &SessionConfig) -> Option<&'static str> {
    match config.cache.policy {
        PolicyKind::LastFrames => Some(NO_MEMORY),
        PolicyKind::Full => Some(NOTHING_LEAVES),
        _ if config.archive.archive_bytes == 0 => Some(NO_BYTES),
        _ => None,
    }
}

/// The layers by whose keys units are found, by their kind; none where there is no archive.
#[derive(Debug, Clone, Default)]
pub(super) struct Finding {
    pub frames: Vec<usize>,
    pub turns: Vec<usize>,
}

impl Finding {
    /// Fails where the parameter names layers that are not there or that pictures do not reach.
    pub fn of(config: &SessionConfig, layers: usize) -> Result<Self, CacheError> {
        if no_archive(config).is_some() {
            return Ok(Self::default());
        }
        let reached = match config.cache.withdraw_layer {
            0 => layers,
            withdrawn => withdrawn.min(layers),
        };
        let archive = &config.archive;
        let of = |side| {
            let found = archive.layers(reached, side);
            found.ok_or_else(|| CacheError::Parameter {
                name: "recall_layers",
                value: archive.recall_layers.clone(),
                expected: format!("numbers below {reached}, with / between them"),
            })
        };
        Ok(Self {
            frames: of(archive.recall_by.of_frames())?,
            turns: of(archive.recall_by.of_text())?,
        })
    }

    /// Of what was heard, what these layers were given.
    pub fn heard_in(layers: &[usize], heard: &[Heard]) -> Vec<Heard> {
        let heard = heard.iter().filter(|heard| layers.contains(&heard.layer));
        heard.cloned().collect()
    }
}

impl Session {
    /// Feeds a new frame; what enters the archive of it, with its place in the stream.
    pub(super) fn append_new_frame(
        &mut self,
        written: &Written,
        (id, elapsed_ns): (FrameId, i64),
        image: &CameraImage,
        layout: Layout,
        features: ImageFeatures,
    ) -> Result<Option<(Unit, Range<u64>)>, ModelError> {
        let from = self.state.cache.usage().tokens_seen;
        self.state.cache.listen(&self.finding.frames);
        let camera = self.shared_by(image.camera);
        let fed = Fed {
            id,
            video: written.video,
        };
        let features = std::slice::from_ref(&features);
        let ids = self.append_frames(&written.text, (&[fed], camera), features, None)?;
        let heard = self.state.cache.heard()?;
        if self.finding.frames.is_empty() {
            return Ok(None);
        }
        let is_image = |&id: &u32| self.model.is_image(id);
        let first = ids.iter().position(is_image).unwrap_or(0);
        let behind = ids
            .iter()
            .rposition(is_image)
            .map_or(first, |last| last + 1);
        let at = Moment {
            id,
            camera: image.camera,
            elapsed_ns,
        };
        // Alone it begins a video and ends it.
        let around = self.encode(&self.state.stream.grammar.around_video())?;
        let tokens = ids.len() + around.len();
        let frame = Arc::new(Frame::new(at, layout, tokens, &features[0])?);
        self.state.stream.cameras[image.camera].newest = Some(frame.clone());
        let summary = Summary::of(&heard, first..behind)?;
        let unit = Unit::new(image.stamp_ns, Content::Frame(frame), summary);
        Ok(Some((unit, from..from + ids.len() as u64)))
    }

    /// The camera as the cache is told it, where there are several.
    fn shared_by(&self, camera: usize) -> Option<u8> {
        let several = self.config.cameras.label(camera).is_some();
        u8::try_from(camera).ok().filter(|_| several)
    }

    /// When something is recalled for an instruction, and whether it asks for that; what can never be recalled is refused.
    pub(super) fn recall_mode(&self, recall: &Recall) -> Result<(RecallMode, bool), RecallError> {
        let given = recall.span_ns.is_some() || !recall.stamps_ns.is_empty();
        let asked = given || recall.mode == Some(RecallMode::Always);
        match (no_archive(&self.config), recall.mode, recall.span_ns) {
            (_, Some(RecallMode::Never), _) if given => Err(RecallError::Never),
            (Some(why), _, _) if asked => Err(RecallError::NoArchive(why)),
            (_, _, Some((from, to))) if from > to => Err(RecallError::Backwards(Span(from, to))),
            // What is given is what is wanted, however little of it stands out.
            _ if given => Ok((RecallMode::Always, asked)),
            (_, mode, _) => Ok((mode.unwrap_or(self.config.archive.recall), asked)),
        }
    }

    /// What is to be fed again for an instruction, beside pictures of so many tokens, in the order of time.
    pub(super) fn find(
        &mut self,
        instruction: &Instruction,
        pictures: usize,
    ) -> Result<Vec<Found>, AskError> {
        let recall = &instruction.recall;
        let config = &self.config.archive;
        let given = recall.span_ns.is_some() || !recall.stamps_ns.is_empty();
        let (mode, asked) = self.recall_mode(recall)?;
        if no_archive(&self.config).is_some() {
            return Ok(Vec::new());
        }
        if mode == RecallMode::Never {
            return Ok(Vec::new());
        }
        if asked {
            self.check_size()?;
        }
        self.check_span(recall.span_ns)?;
        if !recall.stamps_ns.is_empty() {
            return Ok(self.state.stream.archive.nearest(&recall.stamps_ns));
        }
        if self.memory().seen() == 0 {
            // An instruction with pictures before the first frame.
            return Ok(Vec::new());
        }
        let ids = self.question(&instruction.text)?;
        let newest = self
            .newest_again()
            .iter()
            .map(|frame| frame.tokens)
            .sum::<usize>();
        let room = self.state.cache.longest_turn();
        let entries = self.archive().entries().iter();
        let least = entries.map(|entry| entry.unit.content.tokens()).min();
        let needed = ids.len() + pictures + newest + least.unwrap_or(0);
        if needed > room {
            return match asked {
                true => Err(RecallError::NoRoom { needed, room }.into()),
                false => Ok(Vec::new()),
            };
        }
        let tokens = room - ids.len() - pictures - newest;
        let wanted = Wanted {
            kind: Kind::Frame,
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
        let probes = self.probes(&instruction.text, &ids)?;
        Ok(self.find_both(&probes, &wanted, &self.state.cache.retained()))
    }

    /// What an instruction's tokens look for among frames, and its words among turns, if there are any.
    fn probes(&mut self, text: &str, ids: &[u32]) -> Result<(Probe, Option<Probe>), ModelError> {
        let words = match self.archive().texts() {
            0 => None,
            _ => Some(self.words(text, ids)?),
        };
        let Finding { frames, turns } = self.finding.clone();
        let by = self.config.archive.recall_by;
        let heard = self.passing(|session| {
            let all = [frames.as_slice(), &turns].concat();
            session.hear(ids, Chunk::Instruction, &all)
        })?;
        let heard_in = |layers: &[usize]| Finding::heard_in(layers, &heard);
        let of_turns = words.map(|words| Probe::of_tokens(&heard_in(&turns), words, by.of_text()));
        Ok((
            Probe::of(&heard_in(&frames), by.of_frames())?,
            of_turns.transpose()?,
        ))
    }

    /// Units of both kinds, in the order of time. How well a turn matches and how well a frame does are not to be compared, so that each
    /// kind has its part: the best turns a small one, for they are few and short, then the frames, and what room these leave the turns again.
    fn find_both(
        &self,
        (frames, turns): &(Probe, Option<Probe>),
        wanted: &Wanted,
        retained: &Retained,
    ) -> Vec<Found> {
        let archive = self.archive();
        let find_turns = |units, tokens| {
            let wanted = Wanted {
                share: wanted.share,
                span_ns: wanted.span_ns,
                beyond_cache: wanted.beyond_cache,
                ..Wanted::text(archive.config(), units, tokens)
            };
            let probe = turns.as_ref();
            probe.map_or_else(Vec::new, |probe| archive.find(probe, &wanted, retained))
        };
        let tokens = |found: &[Found]| -> usize {
            found.iter().map(|found| found.unit.content.tokens()).sum()
        };
        let part = wanted.units.div_ceil(TURNS_PART);
        let mut turns = find_turns(part, wanted.tokens);
        let rest = Wanted {
            units: wanted.units - turns.len(),
            tokens: wanted.tokens - tokens(&turns),
            ..*wanted
        };
        let mut found = archive.find(frames, &rest, retained);
        if turns.len() == part && found.len() < rest.units {
            turns = find_turns(wanted.units - found.len(), wanted.tokens - tokens(&found));
        }
        found.append(&mut turns);
        found.sort_by_key(|found| found.seen);
        found
    }

    /// Refuses to recall from an archive that no frame fits into.
    fn check_size(&self) -> Result<(), RecallError> {
        let archive = &self.state.stream.archive;
        match archive.too_large() {
            TooLarge { frames, bytes } if frames > 0 && archive.entries().is_empty() => {
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

    /// The newest frame of every camera, which is fed once more behind what is recalled, in the order in which they came.
    fn newest_again(&self) -> Vec<Arc<Frame>> {
        if !self.config.archive.recall_newest {
            return Vec::new();
        }
        let cameras = self.state.stream.cameras.iter();
        let mut newest = cameras
            .filter_map(|camera| camera.newest.clone())
            .collect::<Vec<_>>();
        newest.sort_by_key(|frame| frame.at.id);
        newest
    }

    /// Feeds again what was found, as frames and turns of the stream, behind everything else, and then the newest frame. `question` is what
    /// comes behind that, tokens.
    pub(super) fn feed_again(
        &mut self,
        found: &[Found],
        question: usize,
        answer: &mut Answer,
    ) -> Result<(), ModelError> {
        let started = Instant::now();
        let newest = self.newest_again();
        let tokens = found.iter().map(|found| found.unit.content.tokens());
        let tokens = tokens.sum::<usize>() + newest.iter().map(|frame| frame.tokens).sum::<usize>();
        // One compaction for all of it and for the turn that follows, where feeding would take one after the other; one in the middle of it
        // could evict its beginning.
        let cache = &mut self.state.cache;
        cache.make_room(tokens + question.max(cache.plan().slack))?;
        let from = self.usage().tokens_seen;
        let mut frames = Vec::new();
        for found in found {
            match &found.unit.content {
                // The label is of the last time that it was so.
                Content::Frame(frame) => {
                    let since_ns = found.seen_ns.saturating_sub(found.unit.stamp_ns);
                    frames.push((frame.as_ref(), frame.at.elapsed_ns.saturating_add(since_ns)));
                }
                Content::Turn(turn) => {
                    self.feed_frames_again(&std::mem::take(&mut frames))?;
                    self.append_turn(&turn.asked, &turn.said)?;
                }
                Content::Text(_) => {}
            }
        }
        frames.extend(
            newest
                .iter()
                .map(|frame| (frame.as_ref(), frame.at.elapsed_ns)),
        );
        self.feed_frames_again(&frames)?;
        answer.recalled_tokens = (self.usage().tokens_seen - from) as usize;
        answer.recalled = found
            .iter()
            .map(|found| Recalled {
                kind: found.unit.kind(),
                stamp_ns: found.unit.stamp_ns,
                seen_ns: found.seen_ns,
                score: found.score,
            })
            .collect();
        answer.recall_time += started.elapsed();
        Ok(())
    }

    /// Feeds frames with the times that their labels are to tell, in one chunk.
    fn feed_frames_again(&mut self, frames: &[(&Frame, i64)]) -> Result<(), ModelError> {
        if frames.is_empty() {
            return Ok(());
        }
        let (dtype, device) = (self.model.dtype(), self.model.device().clone());
        let mut text = String::new();
        let (mut fed, mut features) = (Vec::new(), Vec::new());
        for (frame, elapsed_ns) in frames {
            let written = self.write_frame(&frame.layout, *elapsed_ns, frame.at.camera);
            text.push_str(&written.text);
            fed.push(Fed {
                id: frame.at.id,
                video: written.video,
            });
            features.push(frame.features(dtype, &device)?);
        }
        self.append_frames(&text, (&fed, None), &features, Some(1))?;
        Ok(())
    }
}
