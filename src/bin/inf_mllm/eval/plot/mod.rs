//! `inf_mllm eval plot`: figures from results, each as SVG and PNG.

mod canvas;
mod figures;
mod lines;
mod map;
mod records;
mod video;

use std::path::PathBuf;

use anyhow::{ensure, Context, Result};

use records::Records;

#[derive(clap::Args)]
pub struct Args {
    /// Results of the other eval commands, JSON lines.
    #[arg(long, num_args = 1.., required = true)]
    results: Vec<PathBuf>,
    /// Folder for the figures.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    canvas::register_font()?;
    let records = Records::read(&args.results)?;
    let mut figures = figures::lines(&records)?;
    figures.sort_by(|a, b| a.0.cmp(&b.0));
    let maps = figures::maps(&records)?;
    ensure!(
        !figures.is_empty() || !maps.is_empty(),
        "nothing to plot in these results"
    );
    for (name, figure) in &figures {
        canvas::save(figure, &args.out, name)?;
    }
    for (name, figure) in &maps {
        canvas::save(figure, &args.out, name)?;
    }
    Ok(())
}
