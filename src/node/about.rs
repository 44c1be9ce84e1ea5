//! What the program says of itself, without ROS.

use std::ffi::OsString;

const HELP: &str = "\
inf_mllm_node: a ROS 2 node that watches a camera with a multimodal language model and answers instructions.

It takes ROS arguments only:
  ros2 run inf_mllm inf_mllm_node --ros-args -p model:=FOLDER -r image:=/camera/image_raw
  ros2 run inf_mllm inf_mllm_node --ros-args --params-file FILE
  ros2 launch inf_mllm inf_mllm.launch.py model:=FOLDER image:=/camera/image_raw

Parameters, with range, default and effect:   inf_mllm parameters
What a model needs, and whether it can be run: inf_mllm inspect FOLDER
Arguments of the launch file:                  ros2 launch inf_mllm inf_mllm.launch.py --show-args
What ROS arguments there are:                  https://docs.ros.org/en/jazzy/How-To-Guides/Node-arguments.html

  -h, --help     this text
  --version      the version
";

/// The help or the version, if the program's arguments ask for one of them outside of those that are for ROS.
pub fn asked(arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let mut ros = false;
    for argument in arguments {
        match argument.to_str() {
            Some("--ros-args") => ros = true,
            Some("--") => ros = false,
            Some("-h" | "--help") if !ros => return Some(HELP.to_string()),
            Some("--version") if !ros => {
                return Some(format!("inf_mllm_node {}\n", env!("CARGO_PKG_VERSION")))
            }
            _ => {}
        }
    }
    None
}
