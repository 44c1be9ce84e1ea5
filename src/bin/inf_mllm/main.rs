//! The command line: one prompt, numbers for comparison, a look at a checkpoint, the parameters, a replay of a bag, an evaluation
//! on text and drives, or a measurement of speed. Needs no ROS.

mod args;
mod bench;
mod eval;
mod forward;
mod generate;
mod inspect;
mod parameters;
mod replay;

use std::io::{stderr, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inf_mllm::cache::TensorError;

/// Streaming multimodal LLM for robots with a bounded KV cache.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer one user turn of images and text, in the checkpoint's own chat format.
    Generate(generate::Args),
    /// Run given inputs through the model and write its numbers, to compare them with another implementation's.
    Forward(forward::Args),
    /// Say what a checkpoint is, what it needs, and whether everything is there.
    Inspect(inspect::Args),
    /// List every parameter of the node, with range, default and effect.
    Parameters(parameters::Args),
    /// Play a recorded camera into the stream in lock-step and put instructions at their times.
    Replay(replay::Args),
    /// What the policies are worth on long text and long drives.
    #[command(subcommand)]
    Eval(Box<eval::Command>),
    /// How fast published shapes run on this machine, with random weights.
    #[command(subcommand)]
    Bench(Box<bench::Command>),
}

/// Prints to the standard output. Nothing is wrong where a reader has seen enough (`| head`).
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(stderr)
        // In a file or a pipe colours are in the way; NO_COLOR switches them off everywhere.
        .with_ansi(
            stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        )
        .init();
    let outcome = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Parameters(args) => parameters::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Eval(command) => eval::run(&command),
        Command::Bench(command) => bench::run(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what it came from, without the backtraces that the tensor library puts into its texts.
fn told(error: &anyhow::Error) -> String {
    let text = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(error) => TensorError::describe(error),
        None => cause.to_string(),
    };
    error.chain().map(text).collect::<Vec<_>>().join(": ")
}
