//! The ROS 2 node: see `inf_mllm::node` and config/inf_mllm.yaml.

use std::process::ExitCode;

fn main() -> ExitCode {
    // What went wrong is in the log.
    match inf_mllm::node::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
