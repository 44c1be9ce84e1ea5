//! Frames: whether one is used, and from its pixels into the memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::groups::{Alone, Waiting};
use super::last_frames::{Frame, Shown};
use super::Session;
use crate::cache::{CacheError, PolicyKind};
use crate::model::finite::check_finite;
use crate::model::vision::frames::{FrameEncoder, Look};
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::archive::{self, Kind, Unit};
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::gate::{FrameGate, Skip};
use crate::stream::thumbnail::{Thumbnail, Thumbnails};

/// Why a frame did not enter the memory.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl PushError {
    /// The kind of refusal, for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.reason(),
            Self::Model(ModelError::Cache(CacheError::Full { .. })) => Self::FULL,
            Self::Model(_) => "model",
        }
    }

    /// The reason of a frame for which a policy that never evicts has no room.
    pub const FULL: &str = "full";
}

/// What became of a frame that could have been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Used,
    Skipped(Skip),
}

/// A frame as the tower takes it, and what tower and connector have made of it.
#[derive(Debug)]
pub struct Seen {
    look: Look,
    /// Its tiles are there to be compared.
    comparable: bool,
    conversion: Duration,
    thumbnail: Option<Arc<Thumbnail>>,
    /// None where a gate found it to show nothing new, and where the frame goes through the tower with another. With the time that it took.
    features: Option<(ImageFeatures, Duration)>,
}

impl Seen {
    /// A frame through tower and connector, if there is anything new in it and it goes there `alone`; `gate` is only looked at.
    pub fn of(
        encoder: &FrameEncoder,
        image: &CameraImage,
        gate: &FrameGate,
        thumbnails: &Thumbnails,
        alone: bool,
    ) -> Result<Self, PushError> {
        let started = Instant::now();
        let picture = image.picture()?;
        let comparable = gate.compares();
        let look = encoder.look(&picture, comparable);
        let look = look.map_err(ModelError::from)?;
        let conversion = started.elapsed();
        let (mut features, mut thumbnail) = (None, None);
        if !gate.unchanged(&look.prepared) {
            thumbnail = thumbnails.of(&picture);
            features = alone.then(|| encode(encoder, &look)).transpose()?;
        }
        Ok(Self {
            look,
            comparable,
            conversion,
            thumbnail,
            features,
        })
    }
}

fn encode(encoder: &FrameEncoder, look: &Look) -> Result<(ImageFeatures, Duration), ModelError> {
    let started = Instant::now();
    let features = encoder.encode(&encoder.pixels(look)?)?;
    Ok((features, started.elapsed()))
}

/// What of a frame is to enter the archive, with its place in the stream.
pub(super) type Archived = (Unit, Range<u64>);

/// A frame that has entered the memory.
pub(super) struct Entered {
    /// Without its data.
    pub image: CameraImage,
    pub thumbnail: Option<Arc<Thumbnail>>,
    unit: Option<Archived>,
}

impl Entered {
    pub fn new(
        image: CameraImage,
        thumbnail: Option<Arc<Thumbnail>>,
        unit: Option<Archived>,
    ) -> Self {
        Self {
            image,
            thumbnail,
            unit,
        }
    }
}

impl Session {
    /// Takes frames in lock-step, as they arrive: one that is late or of another clock is refused, one after a jump of the stamps
    /// begins an epoch, all others are taken as by [`Self::take_frame`].
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<Taken, PushError> {
        image.check()?;
        let jumped = self.arrive(image)?;
        self.take_frame(image, jumped)
    }

    /// Places a frame that comes in lock-step by its stamp; the stamp that the clock jumped from where it did.
    pub(super) fn arrive(&mut self, image: &CameraImage) -> Result<Option<i64>, FrameError> {
        let camera = self.camera(image)?;
        let clock = &mut self.state.stream.cameras[camera].clock;
        let arrival = clock.arrive(image.stamp_ns, image.arrival_ns);
        arrival.check(image.stamp_ns)
    }

    /// The index of the camera that an image is of, which there is.
    fn camera(&self, image: &CameraImage) -> Result<usize, FrameError> {
        let (camera, count) = (image.camera, self.state.stream.cameras.len());
        match camera < count {
            true => Ok(camera),
            false => Err(FrameError::Camera { camera, count }),
        }
    }

    /// Takes a frame whose time is in order into the memory: vision tower, connector, one chunk through the decoder. `jumped`: an
    /// epoch begins with it, since the stamps jumped from there, nanoseconds.
    ///
    /// One that fails has arrived, and nothing more: the memory is what it was. An epoch that could not begin does with the next one.
    pub fn take_frame(
        &mut self,
        image: &CameraImage,
        jumped: Option<i64>,
    ) -> Result<Taken, PushError> {
        self.take_seen(image, jumped, None)
    }

    /// The same with what [`Seen::of`] has made of the frame beside this session's work, if anything.
    pub fn take_seen(
        &mut self,
        image: &CameraImage,
        jumped: Option<i64>,
        seen: Option<Result<Seen, PushError>>,
    ) -> Result<Taken, PushError> {
        let camera = self.camera(image)?;
        if jumped.is_some() {
            self.show_waiting(camera);
        }
        self.follow_jump(jumped, image)?;
        let gate = &self.state.stream.cameras[camera].gate;
        if !gate.due(image.stamp_ns) {
            return Ok(Taken::Skipped(Skip::Rate));
        }
        let seen = match seen.transpose()? {
            Some(seen) if seen.comparable || !gate.compares() => seen,
            _ => {
                let alone = !self.takes_pairs();
                Seen::of(&self.encoder, image, gate, &self.thumbnails, alone)?
            }
        };
        let fed = self.attempt(|session| session.feed(image, seen));
        if fed.is_err() {
            // It may be what failed.
            self.state.stream.cameras[camera].waiting = None;
        }
        let (taken, entered) = fed?;
        if let Some(entered) = entered {
            self.note_entered(entered);
        }
        Ok(taken)
    }

    /// Notes what has entered the memory in archive and evidence; outside of marks, whose copies of them would have to be made whole.
    pub(super) fn note_entered(&mut self, entered: Entered) {
        self.archive_unit(entered.unit);
        self.note_frame(&entered.image, entered.thumbnail);
    }

    /// Takes a frame or a turn into the archive; outside of marks, whose copy of the archive would have to be made whole.
    pub(super) fn archive_unit(&mut self, unit: Option<Archived>) {
        let Some((unit, extent)) = unit else { return };
        let what = match unit.kind() {
            Kind::Frame => "frame",
            Kind::Text => "turn",
        };
        let archive = &mut self.state.stream.archive;
        let archive::Entered::NoRoom(bytes) = archive.enter(unit, extent) else {
            return;
        };
        if let Some(more) = self.complaints.due("archive", Instant::now()) {
            tracing::warn!(
                "a {what} does not fit into the archive and cannot be recalled: archive_bytes is {}, expected 0 (no archive) or at least {bytes}{more}",
                archive.config().archive_bytes
            );
        }
    }

    fn feed(
        &mut self,
        image: &CameraImage,
        seen: Seen,
    ) -> Result<(Taken, Option<Entered>), ModelError> {
        let stream = &mut self.state.stream;
        let gate = &mut stream.cameras[image.camera].gate;
        gate.spend(image.stamp_ns);
        if gate.unchanged(&seen.look.prepared) {
            stream.memory.confirm(image);
            return Ok((Taken::Skipped(Skip::Unchanged), None));
        }
        self.times.conversion = seen.conversion;
        let entered = if self.takes_pairs() {
            self.feed_in_pairs(Waiting {
                image: image.without_data(),
                pixels: self.encoder.pixels(&seen.look)?,
                thumbnail: seen.thumbnail,
                alone: Alone::default(),
            })?
        } else {
            let (features, took) = match seen.features {
                Some(features) => features,
                None => encode(&self.encoder, &seen.look)?,
            };
            self.times.vision = took;
            let elapsed_ns = self.state.stream.memory.since_epoch(image.stamp_ns);
            let unit = self.enter(image, elapsed_ns, seen.look.prepared.layout, features)?;
            Some(Entered::new(image.without_data(), seen.thumbnail, unit))
        };
        let gate = &mut self.state.stream.cameras[image.camera].gate;
        gate.took(seen.look.prepared);
        Ok((Taken::Used, entered))
    }

    /// What the tower made of a frame of this time in its epoch into the memory; the archive takes what is returned.
    pub(super) fn enter(
        &mut self,
        image: &CameraImage,
        elapsed_ns: i64,
        layout: Layout,
        features: ImageFeatures,
    ) -> Result<Option<Archived>, ModelError> {
        let started = Instant::now();
        let stream = &mut self.state.stream;
        let tokens = features.rows.dim(0)?;
        let id = stream.memory.next_id();
        let mut unit = None;
        if self.config.cache.policy == PolicyKind::LastFrames {
            check_finite(&features.named())?;
            let frame = Frame {
                id,
                shown: Shown::Frame {
                    camera: image.camera,
                    elapsed_ns,
                },
                layout,
                features,
            };
            stream.last.push(frame, self.config.cache.last_frames);
        } else {
            let written = self.write_frame(&layout, elapsed_ns, image.camera);
            unit = self.append_new_frame(&written, (id, elapsed_ns), image, layout, features)?;
        }
        self.times.prefill = started.elapsed();

        self.state.stream.picture = Some(layout.picture);
        self.state.stream.memory.remember(image, tokens);
        self.follow_cache();
        Ok(unit)
    }

    /// Begins the epoch that is due, if one is: after a jump of the stamps of this image's camera from there, now or with a frame that
    /// failed. Where the camera has jumped to where the others are, it is theirs.
    pub(super) fn follow_jump(
        &mut self,
        jumped: Option<i64>,
        image: &CameraImage,
    ) -> Result<(), ModelError> {
        let stream = &mut self.state.stream;
        let camera = &mut stream.cameras[image.camera];
        camera.jumped = jumped.or(camera.jumped);
        let Some(from_ns) = camera.jumped else {
            return Ok(());
        };
        let threshold_ns = (self.config.gate.time_jump_threshold * 1e9) as i64;
        let joins = stream.memory.newest().is_some_and(|newest| {
            let apart_ns = newest.stamp_ns.saturating_sub(image.stamp_ns);
            newest.camera != image.camera && apart_ns.saturating_abs() <= threshold_ns
        });
        if joins {
            camera.jumped = None;
            camera.gate.begin_epoch();
            stream.memory.interrupt(image.camera);
            return Ok(());
        }
        self.attempt(|session| session.begin_epoch(from_ns, image))
    }

    /// The stamps have jumped; what is remembered stays as it is, or is forgotten.
    fn begin_epoch(&mut self, from_ns: i64, image: &CameraImage) -> Result<(), ModelError> {
        let reset = self.config.gate.reset_on_time_jump;
        if let Some(more) = self.complaints.due("time_jump", Instant::now()) {
            tracing::warn!(
                from_s = from_ns as f64 * 1e-9,
                to_s = image.stamp_ns as f64 * 1e-9,
                memory = if reset { "reset" } else { "kept" },
                "time of the images jumped{more}"
            );
        }
        if reset {
            // The stream begins anew, its clocks do not.
            let before = self.state.stream.cameras.clone();
            self.reset()?;
            for (camera, before) in self.state.stream.cameras.iter_mut().zip(before) {
                camera.clock = before.clock;
                camera.jumped = before.jumped;
            }
        }
        let stream = &mut self.state.stream;
        let camera = &mut stream.cameras[image.camera];
        camera.jumped = None;
        camera.gate.begin_epoch();
        stream.memory.end_epoch(image.camera);
        Ok(())
    }
}
