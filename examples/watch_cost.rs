//! What a watch costs the camera: frames per second with one that is asked once a second and without it, by turns, on the demo model and its
//! drive of minutes. Every frame comes as soon as the one before it has been taken.
//!
//! The share of time is also that of the processor, which other programs do not add to.
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

const ROUNDS: usize = 12;
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

    /// Shows frames for one turn; frames taken per second, and per second that this process has run.
    fn show(&mut self, engine: &Engine) -> Result<[f64; 2], Failure> {
        let (begin, ran) = (Instant::now(), processor_s()?);
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
        let taken = (used - first) as f64;
        let rates = [
            taken / begin.elapsed().as_secs_f64(),
            taken / (processor_s()? - ran),
        ];
        // The last one belongs to this turn.
        while engine.stats().frames_used == used {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(rates)
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
    println!("| watch | asked per s | frames/s without | with | lowered by | per s of the processor: without | with | lowered by |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
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
        let mut turns = Vec::new();
        let mut asked = 0;
        for _ in 0..ROUNDS {
            let alone = camera.show(&engine)?;
            engine.instruct(watch.clone());
            let beside = camera.show(&engine)?;
            asked += engine.watches().first().map_or(0, |watch| watch.asked);
            engine.cancel(Which::Id("watch"));
            turns.push((alone, beside));
        }
        let asked = asked as f64 / (ROUNDS as f64 * TURN.as_secs_f64());
        print!("| {name} | {asked:.2} |");
        for i in 0..2 {
            let without = median(turns.iter().map(|(alone, _)| alone[i]));
            let with = median(turns.iter().map(|(_, beside)| beside[i]));
            let lowered = median(
                turns
                    .iter()
                    .map(|(alone, beside)| 1.0 - beside[i] / alone[i]),
            );
            print!(" {without:.1} | {with:.1} | {:.1} % |", 100.0 * lowered);
        }
        println!();
    }
    engine.shutdown(TURN);
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Time that the threads of this process have run, seconds.
fn processor_s() -> Result<f64, Failure> {
    let mut ns = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        ns += times.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(ns * 1e-9)
}
