//! `inf_mllm eval`: what the policies are worth on long text and long drives, and plots of it.

mod common;
mod plot;
mod ppl;
mod recall;
mod stream;
mod streams;
mod sweep;
mod video;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Perplexity of long texts under each policy, budget and chunk size, beside full attention and recomputation.
    Ppl(ppl::Args),
    /// Facts planted in a text, asked for after some distance.
    Recall(recall::Args),
    /// A long stream: loss, time, memory and age of what is kept.
    Stream(stream::Args),
    /// inf_mllm's parameters: chosen on one part of a text, reported on another.
    Sweep(sweep::Args),
    /// Questions about long drives, by how long ago the answer was in view.
    Video(video::Args),
    /// Plots of the results, SVG and PNG.
    Plot(plot::Args),
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Ppl(args) => ppl::run(args),
        Command::Recall(args) => recall::run(args),
        Command::Stream(args) => stream::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Video(args) => video::run(args),
        Command::Plot(args) => plot::run(args),
    }
}
