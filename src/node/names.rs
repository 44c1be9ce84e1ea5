//! The command line's ROS arguments, checked before they are used, and the name of a topic after remapping.

use std::ffi::{c_char, c_int, CStr, CString};
use std::ptr;

use r2r_rcl::{
    rcl_allocator_t, rcl_arguments_fini, rcl_arguments_get_count_unparsed,
    rcl_arguments_get_count_unparsed_ros, rcl_arguments_get_unparsed,
    rcl_arguments_get_unparsed_ros, rcl_arguments_t, rcl_get_zero_initialized_arguments,
    rcl_parse_arguments, rcl_ret_t, rcutils_get_default_allocator, rcutils_get_error_string,
    rcutils_reset_error, RCL_RET_OK,
};

use super::NodeError;

// The generated bindings leave out this function of rcl/remap.h.
extern "C" {
    fn rcl_remap_topic_name(
        local_arguments: *const rcl_arguments_t,
        global_arguments: *const rcl_arguments_t,
        topic_name: *const c_char,
        node_name: *const c_char,
        node_namespace: *const c_char,
        allocator: rcl_allocator_t,
        output_name: *mut *mut c_char,
    ) -> rcl_ret_t;
}

/// An rcl function that allocates a list of argument indices.
type GetIndices =
    unsafe extern "C" fn(*const rcl_arguments_t, rcl_allocator_t, *mut *mut c_int) -> rcl_ret_t;

const OK: rcl_ret_t = RCL_RET_OK as rcl_ret_t;

/// The parsed command line of this process.
pub struct RosArguments {
    parsed: rcl_arguments_t,
}

impl RosArguments {
    /// Parses the command line. The ROS library itself would panic on what is refused here.
    pub fn from_env() -> Result<Self, NodeError> {
        let mut arguments = Vec::new();
        for argument in std::env::args_os() {
            let text = argument
                .into_string()
                .map_err(|argument| NodeError::Arguments(format!("{argument:?} is not UTF-8")))?;
            arguments.push(c_string(&text)?);
        }
        let pointers: Vec<*const c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: the pointers stay valid during the calls; rcl copies what it keeps.
        let result = unsafe {
            let mut parsed = rcl_get_zero_initialized_arguments();
            let code = rcl_parse_arguments(
                pointers.len() as c_int,
                pointers.as_ptr(),
                rcutils_get_default_allocator(),
                &mut parsed,
            );
            check(code).map(|()| Self { parsed })
        };
        let result = result?;
        match result.unparsed() {
            Some(index) => Err(NodeError::Arguments(format!(
                "unknown argument {:?}, expected ROS arguments only: --ros-args [-p NAME:=VALUE] [-r FROM:=TO] [--params-file FILE]",
                arguments[index]
            ))),
            None => Ok(result),
        }
    }

    /// Index of the first argument, after the program's name, that rcl does not know.
    fn unparsed(&self) -> Option<usize> {
        // SAFETY: `parsed` was initialised by rcl_parse_arguments.
        let (arguments, ros_arguments) = unsafe {
            (
                rcl_arguments_get_count_unparsed(&self.parsed),
                rcl_arguments_get_count_unparsed_ros(&self.parsed),
            )
        };
        self.indices(arguments, rcl_arguments_get_unparsed)
            .into_iter()
            .chain(self.indices(ros_arguments, rcl_arguments_get_unparsed_ros))
            .find(|index| *index > 0)
    }

    /// The `count` argument indices that `get` gives.
    fn indices(&self, count: c_int, get: GetIndices) -> Vec<usize> {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: rcl fills `indices` with `count` entries from the allocator, or leaves it null when there are none.
        unsafe {
            let allocator = rcutils_get_default_allocator();
            let mut indices: *mut c_int = ptr::null_mut();
            if get(&self.parsed, allocator, &mut indices) != OK || indices.is_null() {
                return Vec::new();
            }
            let found = std::slice::from_raw_parts(indices, count)
                .iter()
                .filter_map(|index| usize::try_from(*index).ok())
                .collect();
            if let Some(deallocate) = allocator.deallocate {
                deallocate(indices.cast(), allocator.state);
            }
            found
        }
    }

    /// The full name of a topic of this node after the command line's remappings.
    ///
    /// `topic` is relative; `node` and `namespace` are those the node really has.
    pub fn resolve(&self, topic: &str, node: &str, namespace: &str) -> Result<String, NodeError> {
        let full = absolute(topic, namespace);
        let (topic, node, namespace) = (c_string(&full)?, c_string(node)?, c_string(namespace)?);
        // SAFETY: all strings outlive the call; the result, if any, is a C string from the default allocator.
        unsafe {
            let allocator = rcutils_get_default_allocator();
            let mut output: *mut c_char = ptr::null_mut();
            check(rcl_remap_topic_name(
                ptr::null(),
                &self.parsed,
                topic.as_ptr(),
                node.as_ptr(),
                namespace.as_ptr(),
                allocator,
                &mut output,
            ))?;
            if output.is_null() {
                return Ok(full);
            }
            let remapped = CStr::from_ptr(output).to_string_lossy().into_owned();
            if let Some(deallocate) = allocator.deallocate {
                deallocate(output.cast(), allocator.state);
            }
            Ok(remapped)
        }
    }

    /// The compressed topic that belongs to `image`: its own remapping if there is one, else that of `image` with the
    /// suffix, as image_transport does it.
    pub fn resolve_compressed(
        &self,
        image: &str,
        node: &str,
        namespace: &str,
    ) -> Result<String, NodeError> {
        let compressed = format!("{image}/compressed");
        let own = self.resolve(&compressed, node, namespace)?;
        if own != absolute(&compressed, namespace) {
            return Ok(own);
        }
        Ok(format!(
            "{}/compressed",
            self.resolve(image, node, namespace)?
        ))
    }
}

impl Drop for RosArguments {
    fn drop(&mut self) {
        // SAFETY: initialised by rcl_parse_arguments and not used again.
        unsafe { rcl_arguments_fini(&mut self.parsed) };
    }
}

fn absolute(topic: &str, namespace: &str) -> String {
    format!("{}/{topic}", namespace.trim_end_matches('/'))
}

fn c_string(text: &str) -> Result<CString, NodeError> {
    CString::new(text).map_err(|_| NodeError::Arguments(format!("{text:?} holds a NUL byte")))
}

/// Turns a return code into an error with rcl's own words.
fn check(code: rcl_ret_t) -> Result<(), NodeError> {
    if code == OK {
        return Ok(());
    }
    // SAFETY: the error state is this thread's own, and its text ends with NUL.
    let text = unsafe {
        let state = rcutils_get_error_string();
        let text = CStr::from_ptr(state.str_.as_ptr())
            .to_string_lossy()
            .into_owned();
        rcutils_reset_error();
        text
    };
    Err(NodeError::Arguments(text))
}
