//! Recall: frames enter the archive as they come; those that an instruction asks for are fed again in front of it, and turns as well.
//!
//! - this file: what enters the archive, and whether anything is recalled
//! - `find`: what an instruction asks for
//! - `again`: what was found, fed again

mod again;
mod find;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::chunks::Fed;
use super::{Session, SessionConfig};
use crate::cache::{CacheError, FrameId, Heard, PolicyKind, Summary};
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::archive::{Content, Frame, Moment, RecallMode, Unit};
use crate::stream::frame::CameraImage;
use crate::stream::grammar::Written;
use crate::stream::instruction::Recall;

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
}
