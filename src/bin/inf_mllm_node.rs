//! The ROS 2 node: see `inf_mllm::node` and config/inf_mllm.yaml.

use std::io::Write;
use std::process::ExitCode;

use inf_mllm::node;

fn main() -> ExitCode {
    if let Some(text) = node::asked(std::env::args_os().skip(1)) {
        // Whoever does not read to the end has seen enough.
        let _ = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    // What went wrong is in the log.
    match node::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
