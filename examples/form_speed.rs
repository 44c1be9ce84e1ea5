//! What answers of a fixed form cost: four choices beside the question alone, and an answer of a grammar beside one of as many tokens
//! that may be any.
//!
//! `cargo run --release --example form_speed -- [MODEL]`
//!
//! The two of each pair take turns, so that what else the machine does meets both; times are medians.

use std::path::PathBuf;
use std::time::Instant;

use inf_mllm::cache::parameter::Value;
use inf_mllm::stream::{
    Answer, CameraImage, FinishReason, GrammarKind, ImageData, Instruction, Session, SessionConfig,
    TextGrammar,
};

const ROUNDS: usize = 60;
const SIDE: usize = 96;
const QUESTION: &str = "Which color does the box have?";
const CHOICES: [&str; 4] = ["red", "green", "blue", "yellow"];
/// Tokens of an answer that is timed by the token, at a temperature at which a model hardly ever ends one.
const TOKENS: usize = 48;
const HOT: f64 = 100.0;

fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1);
    let mut session = Session::new(SessionConfig {
        model_dir: PathBuf::from(model.as_deref().unwrap_or("models/demo")),
        ..SessionConfig::default()
    })?;
    let pool = session.pool();
    pool.install(|| run(&mut session))
}

fn run(session: &mut Session) -> anyhow::Result<()> {
    for i in 0..24u8 {
        let data = ImageData::Raw {
            encoding: "rgb8".to_string(),
            width: SIDE as u32,
            height: SIDE as u32,
            step: 3 * SIDE as u32,
            is_bigendian: false,
            data: [i * 10, 90, 200].repeat(SIDE * SIDE),
        };
        let image = CameraImage::recorded(i64::from(i) * 100_000_000, "camera", data);
        session.push_frame(&image)?;
    }
    println!(
        "{}, {}",
        session.config().model_dir.display(),
        session.hardware()
    );

    let question = Instruction {
        ephemeral: true,
        ..Instruction::new(QUESTION)
    };
    let among = Instruction {
        choices: CHOICES.map(String::from).to_vec(),
        ..question.clone()
    };
    let [alone, chosen] = medians(session, [&question, &among])?;
    println!("question alone         {:7.3} ms", alone.0);
    println!(
        "with {} choices         {:7.3} ms, {:.2} times that",
        CHOICES.len(),
        chosen.0,
        chosen.0 / alone.0
    );

    // Never whole before its last token, so that as many come as in the answer that may be any.
    let of = |kind, text: String| Instruction {
        grammar: Some(TextGrammar { kind, text }),
        max_new_tokens: TOKENS,
        ephemeral: false,
        ..question.clone()
    };
    let any = of(GrammarKind::Regex, "(?s:.{400,})".to_string());
    let list = "{\"type\": \"array\", \"minItems\": 200, \"items\": {\"type\": \"object\", \"properties\": {\"object\": {\"type\": \"string\", \
         \"maxLength\": 12}, \"side\": {\"enum\": [\"left\", \"center\", \"right\"]}}, \"required\": [\"object\", \"side\"]}}";
    let list = of(GrammarKind::JsonSchema, list.to_string());
    session.set_parameter("temperature", Value::Number(HOT))?;
    println!("{TOKENS} tokens each, drawn at temperature {HOT}, compiling aside:");
    for (name, constrained) in [("any text, as a regex", &any), ("a list in JSON", &list)] {
        let mut unconstrained = Vec::new();
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let answer = asked(session, constrained)?;
            anyhow::ensure!(
                answer.output_tokens == TOKENS,
                "{} tokens",
                answer.output_tokens
            );
            times.push(session.times().decode.as_secs_f64() * 1e3);
            unconstrained.push(free(session, &question)?);
        }
        let (free, constrained) = (median(&mut unconstrained), median(&mut times));
        println!(
            "{name:21}  {constrained:7.4} ms per token, without {free:7.4} ms: {:.3} times",
            constrained / free
        );
    }
    let mut compiled = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        let mut short = list.clone();
        short.max_new_tokens = 1;
        asked(session, &short)?;
        compiled.push(started.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "one token of that list, compiling included {:7.3} ms",
        median(&mut compiled)
    );
    Ok(())
}

/// Milliseconds per token of an answer that may be any, of which so many tokens came.
fn free(session: &mut Session, question: &Instruction) -> anyhow::Result<f64> {
    let long = Instruction {
        max_new_tokens: TOKENS,
        ephemeral: false,
        ..question.clone()
    };
    while asked(session, &long)?.output_tokens < TOKENS {}
    Ok(session.times().decode.as_secs_f64() * 1e3)
}

/// Median times to the whole answer, milliseconds, and the last answers.
fn medians(
    session: &mut Session,
    instructions: [&Instruction; 2],
) -> anyhow::Result<[(f64, Answer); 2]> {
    let mut times = [Vec::new(), Vec::new()];
    let mut last = [
        asked(session, instructions[0])?,
        asked(session, instructions[1])?,
    ];
    for _ in 0..ROUNDS {
        for i in 0..2 {
            let started = Instant::now();
            last[i] = asked(session, instructions[i])?;
            times[i].push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [first, second] = last;
    Ok([
        (median(&mut times[0]), first),
        (median(&mut times[1]), second),
    ])
}

fn asked(session: &mut Session, instruction: &Instruction) -> anyhow::Result<Answer> {
    let answer = session.ask(instruction, &|| false, &mut |_| ());
    anyhow::ensure!(answer.finish != FinishReason::Error, "{:?}", answer.error);
    Ok(answer)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
