//! What evidence costs an answer: the same questions with it and without it, by turns, on the demo model and its drive of minutes.
//!
//! `cargo run --release --locked --example evidence_cost`

use std::path::Path;

use inf_mllm::cache::parameter::Value;
use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::{Instruction, Recall, RecallMode, Session, SessionConfig};

const QUESTIONS: [&str; 3] = [
    "Where is the red pillar?",
    "When did you last see the red ball?",
    "What was the color of the pillar with the black ball?",
];
const FRAMES: usize = 120;
/// Of each question with evidence, and as many without.
const TIMES: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = SessionConfig {
        model_dir: "models/demo".into(),
        threads: 1,
        ..SessionConfig::default()
    };
    let mut session = Session::new(config)?;
    let bag = Bag::open(Path::new("bags/minutes"), None)?;
    let pool = session.pool();
    pool.install(|| {
        for image in bag.images().take(FRAMES) {
            session.push_frame(&image?)?;
        }
        println!("| question | recall | tokens | without, ms | with, ms | ratio |\n| --- | --- | --- | ---: | ---: | ---: |");
        for text in QUESTIONS {
            for mode in [RecallMode::Never, RecallMode::Always] {
                compare(&mut session, text, mode)?;
            }
        }
        Ok(())
    })
}

/// One line: means of the processor time, which other programs do not add to.
fn compare(
    session: &mut Session,
    text: &str,
    mode: RecallMode,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let instruction = Instruction {
        ephemeral: true,
        recall: Recall {
            mode: Some(mode),
            ..Recall::default()
        },
        ..Instruction::new(text)
    };
    let mut spent = [0.0; 2];
    let mut tokens = (0, 0);
    for turn in 0..2 * TIMES {
        let with = turn % 2;
        session.set_parameter("evidence_frames", Value::Integer(4 * with as i64))?;
        let before = processor_ms()?;
        let answer = session.ask(&instruction, &|| false, &mut |_| ());
        spent[with] += processor_ms()? - before;
        tokens = (answer.prompt_tokens, answer.output_tokens);
    }
    let [without, with] = spent.map(|ms| ms / TIMES as f64);
    println!(
        "| {text} | {} | {} + {} | {without:.2} | {with:.2} | {:.3} |",
        mode.name(),
        tokens.0,
        tokens.1,
        with / without
    );
    Ok(())
}

/// Time that this thread has run, milliseconds.
fn processor_ms() -> Result<f64, Box<dyn std::error::Error + Send + Sync>> {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns: f64 = times.split(' ').next().unwrap_or_default().parse()?;
    Ok(ns * 1e-6)
}
