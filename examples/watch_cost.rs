//! What a watch costs the camera: frames per second with one that is asked once a second and without it, by turns, on the demo model and its
//! drive of minutes. Every frame comes as soon as the one before it has been taken.
//!
//! `cargo run --release --locked --example watch_cost`

use std::path::Path;
use std::time::{Duration, Instant};

use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::engine::Which;
use inf_mllm::stream::{
    Answer, AnswerDelta, CameraImage, Engine, EngineEvents, Every, Instruction, SessionConfig,
    Watching,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 20;
const TURN: Duration = Duration::from_secs(4);
const PERIOD: Duration = Duration::from_secs(1);
const QUESTION: &str = "Where is the red pillar?";
const CHOICES: [&str; 4] = ["left", "center", "right", "not in view"];
/// Between two frames of the bag, and between the last and the first of the next round.
const STEP_NS: i64 = 500_000_000;

/// Nobody listens.
struct Nothing;

impl EngineEvents for Nothing {
    fn delta(&mut self, _: AnswerDelta) {}

    fn answer(&mut self, _: Answer) {}
}

/// A camera that shows a bag again and again.
struct Camera {
    images: Vec<CameraImage>,
    shown: usize,
}

impl Camera {
    fn next(&mut self) -> CameraImage {
        let mut image = self.images[self.shown % self.images.len()].clone();
        image.stamp_ns = self.images[0].stamp_ns + STEP_NS * self.shown as i64;
        image.arrival_ns = image.stamp_ns;
        self.shown += 1;
        image
    }

    /// Shows frames for one turn; frames taken per second.
    fn show(&mut self, engine: &Engine) -> Result<f64, Failure> {
        let begin = Instant::now();
        let first = engine.stats().frames_used;
        let mut used = first;
        engine.offer_frame(self.next())?;
        while begin.elapsed() < TURN {
            let now = engine.stats().frames_used;
            if now > used {
                used = now;
                engine.offer_frame(self.next())?;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let rate = (used - first) as f64 / begin.elapsed().as_secs_f64();
        // The last one belongs to this turn.
        while engine.stats().frames_used == used {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(rate)
    }
}

fn main() -> Result<(), Failure> {
    let engine = Engine::spawn(
        SessionConfig {
            model_dir: "models/demo".into(),
            ..SessionConfig::default()
        },
        Box::new(Nothing),
    )?;
    let bag = Bag::open(Path::new("bags/minutes"), None)?;
    let mut camera = Camera {
        images: bag.images().collect::<Result<_, _>>()?,
        shown: 0,
    };
    println!("{}; {TURN:?} each, {ROUNDS} times", engine.stats().hardware);
    camera.show(&engine)?;
    println!("| watch | asked per s | frames/s without | with | lowered by |\n| --- | ---: | ---: | ---: | ---: |");
    for (name, choices) in [
        (QUESTION, &[][..]),
        ("the same with four choices", &CHOICES[..]),
    ] {
        let watch = Instruction {
            id: "watch".to_string(),
            choices: choices.iter().map(ToString::to_string).collect(),
            watch: Some(Watching {
                every: Every::Period(PERIOD),
                on_change: false,
                hysteresis: 0.0,
                min_interval: Duration::ZERO,
                survives_reset: false,
            }),
            ..Instruction::new(QUESTION)
        };
        let (mut without, mut with, mut lowered) = (Vec::new(), Vec::new(), Vec::new());
        let mut asked = 0;
        for _ in 0..ROUNDS {
            let alone = camera.show(&engine)?;
            engine.instruct(watch.clone());
            let beside = camera.show(&engine)?;
            asked += engine.watches().first().map_or(0, |watch| watch.asked);
            engine.cancel(Which::Id("watch"));
            lowered.push(100.0 * (1.0 - beside / alone));
            without.push(alone);
            with.push(beside);
        }
        println!(
            "| {name} | {:.2} | {:.1} | {:.1} | {:.1} % |",
            asked as f64 / (ROUNDS as f64 * TURN.as_secs_f64()),
            median(&mut without),
            median(&mut with),
            median(&mut lowered)
        );
    }
    engine.shutdown(TURN);
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
