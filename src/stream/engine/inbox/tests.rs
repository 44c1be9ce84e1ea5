//! The inbox with a camera before it and a model behind it, without threads.

use super::*;
use crate::stream::frame::ImageData;
use crate::stream::gate::{FrameGate, GateConfig};
use crate::stream::lifecycle::{Asked, Outcome};
use crate::stream::memory::FrameMemory;
use proptest::prelude::*;

const MS: i64 = 1_000_000;
/// Distance of two images, and the longest that the model is busy, milliseconds.
const PACE: i64 = 100;
const BUSY: i64 = 30_000;

fn image(stamp_ms: i64) -> CameraImage {
    let data = ImageData::Compressed {
        format: String::new(),
        data: Vec::new(),
    };
    CameraImage::recorded(stamp_ms * MS, "camera", data)
}

fn inbox(cameras: usize) -> Inbox {
    let mut inbox = Inbox::new(Cameras::new(cameras, 10.0));
    for label in ["configure", "activate"] {
        change(&mut inbox, label);
    }
    inbox
}

/// Takes a transition, unless it leads where the node is.
fn change(inbox: &mut Inbox, label: &str) {
    if inbox.lifecycle.begin(Asked::Label(label)).is_ok() {
        inbox.lifecycle.end(Outcome::Success).unwrap();
    }
}

/// What happens at a camera's next image.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The model begins whatever it does next, for so long, milliseconds.
    Busy(i64),
    Pause(bool),
    /// The camera sends nothing for so long, milliseconds.
    Silence(i64),
    /// The clock is set on, by milliseconds; the first image of that is left out.
    Jump(i64),
    /// An image that was overtaken comes after this one.
    Overtaken,
    Image,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (1..BUSY).prop_map(Step::Busy),
        2 => any::<bool>().prop_map(Step::Pause),
        1 => (0..60_000i64).prop_map(Step::Silence),
        1 => (40_000..1_000_000i64).prop_map(Step::Jump),
        3 => Just(Step::Overtaken),
        20 => Just(Step::Image),
    ];
    prop::collection::vec(step, 10..300)
}

/// The engine thread without a model: it takes frames as a session does, and each keeps it busy.
struct Model {
    gate: FrameGate,
    memory: FrameMemory,
    /// When it is free again, milliseconds.
    free_ms: i64,
    epochs: u64,
    /// Stamp of the first frame of the epoch.
    epoch_ns: Option<i64>,
    used: Vec<i64>,
}

impl Model {
    fn work(&mut self, inbox: &mut Inbox, now_ms: i64, stats: &mut StreamStats) {
        if now_ms < self.free_ms {
            return;
        }
        let Some(Work::Frame(_, image, jumped)) = inbox.take_work() else {
            return;
        };
        if jumped.is_some() {
            self.gate.begin_epoch();
            self.memory.end_epoch(0);
            self.epochs += 1;
            self.epoch_ns = None;
        }
        if !self.gate.due(image.stamp_ns) {
            stats.frames_skipped.rate += 1;
            return;
        }
        self.gate.spend(image.stamp_ns);
        let label_ns = self.memory.since_epoch(image.stamp_ns);
        let first_ns = *self.epoch_ns.get_or_insert(image.stamp_ns);
        assert_eq!(label_ns, image.stamp_ns - first_ns, "the label");
        self.memory.remember(&image, 1);
        self.used.push(image.stamp_ns);
        stats.frames_used += 1;
    }
}

proptest! {
    /// However long the model is busy, however long the node is paused and the camera silent: the jumps of the camera's clock
    /// are the epochs, the labels advance with the stamps, and every image has become something.
    #[test]
    fn busy_models_pauses_and_silence_are_no_jumps(
        steps in steps(),
        frame_rate in prop_oneof![Just(0.0), 0.5..20.0f64],
    ) {
        let mut inbox = self::inbox(1);
        let config = GateConfig { frame_rate, ..GateConfig::default() };
        let mut model = Model {
            gate: FrameGate::new(config),
            memory: FrameMemory::default(),
            free_ms: 0,
            epochs: 0,
            epoch_ns: None,
            used: Vec::new(),
        };
        let mut stats = StreamStats::default();
        let (mut now, mut offset, mut made, mut since_jump) = (0, 100_000, 0, 0);
        for step in steps {
            now += PACE;
            match step {
                Step::Busy(time) => model.free_ms = now + time,
                Step::Pause(true) => change(&mut inbox, "deactivate"),
                Step::Pause(false) => change(&mut inbox, "activate"),
                Step::Silence(time) => now += time,
                // A clock of which only one image came is none yet.
                Step::Jump(by) if since_jump > 2 => {
                    offset += by;
                    stats.frames_received += 1;
                    let first = inbox.offer(image(offset + now), now * MS, &mut stats);
                    let strange = matches!(first, Err(FrameError::OtherClock { .. }));
                    prop_assert!(strange, "{:?}", first);
                    stats.frames_rejected += 1;
                    now += PACE;
                    made += 1;
                    since_jump = 0;
                }
                _ => {}
            }
            since_jump += 1;
            stats.frames_received += 1;
            inbox.offer(image(offset + now), now * MS, &mut stats).unwrap();
            if matches!(step, Step::Overtaken) && since_jump > 2 {
                stats.frames_received += 1;
                let late = inbox.offer(image(offset + now - 1), (now + 1) * MS, &mut stats);
                let overtaken = matches!(late, Err(FrameError::OutOfOrder { .. }));
                prop_assert!(overtaken, "{:?}", late);
                stats.frames_rejected += 1;
            }
            model.work(&mut inbox, now, &mut stats);
            prop_assert_eq!(stats.time_jumps, made);
            prop_assert!(model.epochs <= made);
        }
        // What still waits is taken, and with it the epoch of a jump that nothing was taken after.
        change(&mut inbox, "activate");
        now += BUSY + PACE;
        stats.frames_received += 1;
        inbox.offer(image(offset + now), now * MS, &mut stats).unwrap();
        model.work(&mut inbox, now, &mut stats);
        let slot = &inbox.cameras.slots()[0];
        prop_assert!(slot.frame.is_none() && slot.jumped.is_none());
        prop_assert_eq!(stats.frames_received, stats.frames_decided() + stats.images_refused());
        // Jumps between two frames taken are one epoch.
        prop_assert!((model.epochs > 0) == (made > 0));
        prop_assert!(model.used.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

/// An inbox that these images (stamp, receipt; milliseconds) were offered to, and how many of them were refused.
fn offered(images: &[(i64, i64)]) -> (Inbox, StreamStats, usize) {
    let mut inbox = self::inbox(1);
    let mut stats = StreamStats::default();
    let offer = |&(stamp_ms, received_ms): &(i64, i64)| {
        inbox.offer(image(stamp_ms), received_ms * MS, &mut stats)
    };
    let refused = images.iter().map(offer).filter(Result::is_err).count();
    (inbox, stats, refused)
}

/// Stamp and jump of the frame that is taken, milliseconds.
fn taken(inbox: &mut Inbox) -> (i64, Option<i64>) {
    let Some(Work::Frame(_, image, jumped)) = inbox.take_work() else {
        panic!("a frame waits");
    };
    (image.stamp_ns / MS, jumped.map(|from_ns| from_ns / MS))
}

#[test]
fn a_jump_at_a_frame_that_is_superseded_is_that_of_the_one_that_replaces_it() {
    let images = [
        (100_000, 0),
        (100_100, 100),
        (500, 200),
        (600, 300),
        (700, 400),
    ];
    let (mut inbox, mut stats, refused) = offered(&images);
    assert_eq!(
        (stats.frames_superseded, stats.time_jumps, refused),
        (3, 1, 1)
    );
    assert_eq!(taken(&mut inbox), (700, Some(100_100)));
    inbox.offer(image(800), 500 * MS, &mut stats).unwrap();
    assert_eq!(taken(&mut inbox), (800, None));
}

#[test]
fn of_two_jumps_between_two_frames_the_last_one_is_told() {
    let images = [
        (100_000, 0),
        (100_100, 100),
        (500, 200),
        (600, 300),
        (900_000, 400),
        (900_100, 500),
    ];
    let (mut inbox, stats, refused) = offered(&images);
    assert_eq!((stats.time_jumps, refused), (2, 2));
    assert_eq!(taken(&mut inbox), (900_100, Some(600)));
}

#[test]
fn images_without_a_stamp_get_the_time_of_their_receipt() {
    let stats_of_one = || StreamStats::of([None].into_iter());
    let (mut inbox, mut stats) = (inbox(1), stats_of_one());
    let mut undated = image(0);
    undated.arrival_ns = 77 * MS;
    inbox.offer(undated.clone(), 5 * MS, &mut stats).unwrap();
    let stamp_ns = |inbox: &Inbox| inbox.cameras.next().unwrap().1.stamp_ns;
    assert_eq!(stamp_ns(&inbox), 77 * MS);
    // Simulated time that has not begun tells nothing.
    let mut inbox = self::inbox(1);
    undated.arrival_ns = 0;
    inbox.offer(undated, 5 * MS, &mut stats).unwrap();
    assert_eq!(stamp_ns(&inbox), 5 * MS);
    let camera = &stats.cameras[0];
    assert_eq!((camera.undated, camera.ahead_ns), (2, None));
}

/// An image of the camera of that index.
fn of(camera: usize, stamp_ms: i64) -> CameraImage {
    CameraImage {
        camera,
        ..image(stamp_ms)
    }
}

/// Camera and stamp of the frame that is taken, milliseconds.
fn next(inbox: &mut Inbox) -> Option<(usize, i64)> {
    match inbox.take_work() {
        Some(Work::Frame(_, image, _)) => Some((image.camera, image.stamp_ns / MS)),
        _ => None,
    }
}

#[test]
fn cameras_take_turns_however_fast_one_of_them_is_and_none_takes_another_one_s_place() {
    let mut inbox = inbox(3);
    let mut stats = StreamStats::of([Some("a"), Some("b"), Some("c")].into_iter());
    let mut order = Vec::new();
    for round in 0..30 {
        let now = 100 + round * 10;
        // Ten images of the first camera for each of the second; the third one sends nothing.
        for i in 0..10 {
            inbox
                .offer(of(0, now + i), (now + i) * MS, &mut stats)
                .unwrap();
        }
        inbox
            .offer(of(1, now), (now + 10) * MS, &mut stats)
            .unwrap();
        order.extend(next(&mut inbox).map(|(camera, _)| camera));
    }
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    let [fast, slow, silent] = [0, 1, 2].map(|camera| &stats.cameras[camera]);
    assert_eq!((fast.used + slow.used, silent.superseded), (0, 0));
    // What was not taken has given way to a newer image of the same camera, and one of each waits or was taken.
    assert_eq!((fast.superseded, slow.superseded), (300 - 15 - 1, 30 - 15));
}

#[test]
fn the_stamps_of_one_camera_say_nothing_of_another_one() {
    let mut inbox = inbox(2);
    let mut stats = StreamStats::of([Some("a"), Some("b")].into_iter());
    // The second camera is a little behind, and then its clock is another one altogether.
    for (camera, stamp_ms) in [(0, 1000), (1, 980), (0, 1066), (1, 1046), (1, 900_000)] {
        let offered = inbox.offer(of(camera, stamp_ms), 1100 * MS, &mut stats);
        assert_eq!(
            offered.is_ok(),
            stamp_ms < 900_000,
            "{camera} at {stamp_ms}"
        );
    }
    assert_eq!(stats.time_jumps, 0);
    inbox.offer(of(1, 900_066), 1166 * MS, &mut stats).unwrap();
    assert_eq!(
        (stats.cameras[0].time_jumps, stats.cameras[1].time_jumps),
        (0, 1)
    );
    // Only the camera that jumped begins an epoch.
    let jumps = [(); 2].map(|()| match inbox.take_work() {
        Some(Work::Frame(_, image, jumped)) => (image.camera, jumped.map(|from_ns| from_ns / MS)),
        _ => panic!("a frame waits"),
    });
    assert_eq!(jumps, [(0, None), (1, Some(1046))]);
}

#[test]
fn an_image_of_a_camera_that_is_not_there_is_refused() {
    let mut inbox = inbox(2);
    let error = inbox
        .offer(of(2, 100), 0, &mut StreamStats::default())
        .unwrap_err();
    let told = "image is of camera number 2, expected less than 2, the number of cameras";
    assert_eq!(error.to_string(), told);
}
