//! The topics of the ROS graph, seen by a hidden node of their own that exists from when somebody wants to know.
//!
//! The node's own handle would do, but r2r keeps it to itself, and its own listing reads a wrong entry for every type of a topic
//! after the first (beyond the end of the list for the last topic). A topic with two types is just what a mistaken camera makes.

use std::ffi::CStr;
use std::ptr;

use r2r_rcl::{
    rcl_context_fini, rcl_context_t, rcl_count_publishers, rcl_get_topic_names_and_types,
    rcl_get_zero_initialized_context, rcl_get_zero_initialized_init_options,
    rcl_get_zero_initialized_node, rcl_init, rcl_init_options_fini, rcl_init_options_init,
    rcl_names_and_types_fini, rcl_node_fini, rcl_node_get_default_options, rcl_node_init,
    rcl_node_t, rcl_ret_t, rcl_shutdown, rcutils_get_default_allocator, rcutils_reset_error,
    rcutils_string_array_t, rmw_get_zero_initialized_names_and_types,
};

use super::names;
use super::NodeError;

/// Hidden from `ros2 node list` by its underscore.
const NAME: &CStr = c"_inf_mllm_graph";
const NAMESPACE: &CStr = c"/";

const IMAGE_TYPES: [(&str, &str); 2] = [
    ("sensor_msgs/msg/Image", "Image"),
    ("sensor_msgs/msg/CompressedImage", "CompressedImage"),
];

/// A view of the graph. What there is becomes known during the first second or two.
pub struct Graph {
    // Boxed, since rcl keeps the address of the context.
    context: Box<rcl_context_t>,
    node: Box<rcl_node_t>,
}

impl Graph {
    /// Joins the graph of this process's ROS domain.
    pub fn open() -> Result<Self, NodeError> {
        // SAFETY: every structure is initialised by the function that rcl has for it before it is used, and the context stays
        // where it is as long as the node does.
        unsafe {
            let mut context = Box::new(rcl_get_zero_initialized_context());
            let mut options = rcl_get_zero_initialized_init_options();
            done(rcl_init_options_init(
                &mut options,
                rcutils_get_default_allocator(),
            ))?;
            let started = done(rcl_init(0, ptr::null(), &options, context.as_mut()));
            rcl_init_options_fini(&mut options);
            started?;
            let mut node = Box::new(rcl_get_zero_initialized_node());
            let mut options = rcl_node_get_default_options();
            options.enable_rosout = false;
            let made = done(rcl_node_init(
                node.as_mut(),
                NAME.as_ptr(),
                NAMESPACE.as_ptr(),
                context.as_mut(),
                &options,
            ));
            if let Err(error) = made {
                rcl_shutdown(context.as_mut());
                rcl_context_fini(context.as_mut());
                return Err(error);
            }
            Ok(Self { context, node })
        }
    }

    /// The topics on which images are published, as in "/camera/image_raw (Image)", in the order of their names.
    pub fn image_topics(&self) -> Result<Vec<String>, NodeError> {
        let mut found = Vec::new();
        // SAFETY: rcl fills the list, of as many types as names, with strings that live until it is freed at the end.
        unsafe {
            let mut listed = rmw_get_zero_initialized_names_and_types();
            done(rcl_get_topic_names_and_types(
                self.node.as_ref(),
                &mut rcutils_get_default_allocator(),
                false,
                &mut listed,
            ))?;
            for (at, topic) in strings(&listed.names).iter().enumerate() {
                let mut publishers = 0;
                let counted =
                    rcl_count_publishers(self.node.as_ref(), topic.as_ptr(), &mut publishers);
                if done(counted).is_err() || publishers == 0 {
                    continue;
                }
                for kind in strings(&*listed.types.add(at)) {
                    let kind = kind.to_string_lossy();
                    let image = IMAGE_TYPES.iter().find(|(full, _)| *full == kind);
                    found.extend(
                        image.map(|(_, short)| format!("{} ({short})", topic.to_string_lossy())),
                    );
                }
            }
            if rcl_names_and_types_fini(&mut listed) != 0 {
                rcutils_reset_error();
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Turns a return code into an error with rcl's own words.
fn done(code: rcl_ret_t) -> Result<(), NodeError> {
    names::check(code).map_err(|error| match error {
        NodeError::Arguments(words) => NodeError::Graph(words),
        other => other,
    })
}

/// The strings of an array of rcl's.
///
/// # Safety
/// The array must be what rcl filled, and outlive the result.
unsafe fn strings(array: &rcutils_string_array_t) -> Vec<&CStr> {
    (0..array.size)
        .map(|at| CStr::from_ptr(*array.data.add(at)))
        .collect()
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: both were initialised when this was made and are not used again.
        unsafe {
            rcl_node_fini(self.node.as_mut());
            rcl_shutdown(self.context.as_mut());
            rcl_context_fini(self.context.as_mut());
        }
    }
}
