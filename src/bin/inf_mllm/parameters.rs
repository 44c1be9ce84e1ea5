//! `inf_mllm parameters`: what can be set, with ranges, defaults and who reads it; also the parameter file and the tables of the
//! documents.

use anyhow::Result;
use inf_mllm::parameters::{json, markdown, plain, yaml};

use crate::print;

#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Args {
    /// As a parameter file with every default: config/inf_mllm.yaml.
    #[arg(long)]
    yaml: bool,
    /// As the tables of docs/parameters.md.
    #[arg(long)]
    markdown: bool,
    /// As JSON, one object per parameter.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.yaml {
        print(&yaml())
    } else if args.markdown {
        print(&markdown())
    } else if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&json())?))
    } else {
        print(&plain())
    }
}
