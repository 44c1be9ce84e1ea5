//! The command line's ROS arguments, checked before they are used: the names of topics after remapping, and parameters.

use std::ffi::{c_char, c_int, CStr, CString};
use std::ptr;

use r2r::ParameterValue;
use r2r_rcl::{
    rcl_allocator_t, rcl_arguments_fini, rcl_arguments_get_count_unparsed,
    rcl_arguments_get_count_unparsed_ros, rcl_arguments_get_param_overrides,
    rcl_arguments_get_unparsed, rcl_arguments_get_unparsed_ros, rcl_arguments_t,
    rcl_get_zero_initialized_arguments, rcl_params_t, rcl_parse_arguments, rcl_ret_t,
    rcl_variant_t, rcl_yaml_node_struct_fini, rcutils_get_default_allocator,
    rcutils_get_error_string, rcutils_reset_error, RCL_RET_OK,
};

use super::NodeError;
use crate::parameters::stands_for;

/// An rcl function that applies the command line's remappings to the full name of a topic or service.
type Remap = unsafe extern "C" fn(
    local_arguments: *const rcl_arguments_t,
    global_arguments: *const rcl_arguments_t,
    full_name: *const c_char,
    node_name: *const c_char,
    node_namespace: *const c_char,
    allocator: rcl_allocator_t,
    output_name: *mut *mut c_char,
) -> rcl_ret_t;

// The generated bindings leave out these functions of rcl/remap.h.
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
    fn rcl_remap_service_name(
        local_arguments: *const rcl_arguments_t,
        global_arguments: *const rcl_arguments_t,
        service_name: *const c_char,
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

/// A parameter that the command line or a parameter file gives to the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    pub name: String,
    pub value: ParameterValue,
    /// The parameter file that it stands in, and the node names that it stands under; none for one of the command line itself.
    pub origin: Option<(String, String)>,
}

impl Override {
    /// Whether it is given to whatever nodes a wildcard stands for, which need not have such a parameter.
    pub fn for_many(&self) -> bool {
        matches!(&self.origin, Some((_, nodes)) if nodes.contains('*'))
    }
}

/// What the command line and the parameter files say.
#[derive(Debug, Default, PartialEq)]
pub struct Overrides {
    /// In their order: of two values with one name the later one holds.
    pub given: Vec<Override>,
    /// What may have been meant for the node and is not.
    pub warnings: Vec<String>,
}

/// The parsed command line of this process.
pub struct RosArguments {
    parsed: rcl_arguments_t,
    arguments: Vec<String>,
}

impl RosArguments {
    /// Parses the command line. The ROS library itself would panic on what is refused here.
    pub fn from_env() -> Result<Self, NodeError> {
        let arguments = std::env::args_os()
            .map(|argument| {
                let not_utf8 =
                    |argument| NodeError::Arguments(format!("{argument:?} is not UTF-8"));
                argument.into_string().map_err(not_utf8)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let result = Self::parse(&arguments)?;
        match result.unparsed() {
            Some(index) => Err(NodeError::Arguments(format!(
                "unknown argument {:?}, expected ROS arguments only: --ros-args [-p NAME:=VALUE] [-r FROM:=TO] [--params-file FILE]",
                result.arguments[index]
            ))),
            None => Ok(result),
        }
    }

    /// Parses arguments, of which the first is the program's name.
    fn parse(arguments: &[String]) -> Result<Self, NodeError> {
        let texts = arguments
            .iter()
            .map(|text| c_string(text))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: the pointers stay valid during the call; rcl copies what it keeps.
        unsafe {
            let mut parsed = rcl_get_zero_initialized_arguments();
            let code = rcl_parse_arguments(
                pointers.len() as c_int,
                pointers.as_ptr(),
                rcutils_get_default_allocator(),
                &mut parsed,
            );
            check(code)?;
            Ok(Self {
                parsed,
                arguments: arguments.to_vec(),
            })
        }
    }

    /// The parameters that the command line and its parameter files give to a node.
    ///
    /// Each argument is parsed by itself: rcl keeps only one of two values of different types, and not the later one, and moves
    /// the `-p` arguments, which are for all nodes, before the blocks of files that name a node.
    pub fn parameters(&self, node: &str, namespace: &str) -> Result<Overrides, NodeError> {
        let full = absolute(node, namespace);
        let mut found = Overrides::default();
        let mut ros = false;
        for pair in self.arguments.windows(2) {
            let file = match pair[0].as_str() {
                "--ros-args" => {
                    ros = true;
                    continue;
                }
                "--" => {
                    ros = false;
                    continue;
                }
                "-p" | "--param" if ros => None,
                "--params-file" if ros => Some(pair[1].as_str()),
                _ => continue,
            };
            let alone = ["", "--ros-args", &pair[0], &pair[1]].map(String::from);
            Self::parse(&alone)?.overrides(file, &full, &mut found)?;
        }
        Ok(found)
    }

    /// The parameters for the node of this full name, which stand in `file`, if in any.
    fn overrides(
        &self,
        file: Option<&str>,
        full: &str,
        found: &mut Overrides,
    ) -> Result<(), NodeError> {
        let mut others = Vec::new();
        let mut matched = false;
        // SAFETY: rcl allocates the parameters, whose lists are as long as it says, and frees them at the end.
        unsafe {
            let mut parameters: *mut rcl_params_t = ptr::null_mut();
            check(rcl_arguments_get_param_overrides(
                &self.parsed,
                &mut parameters,
            ))?;
            // An empty file gives none.
            for i in 0..parameters.as_ref().map_or(0, |given| given.num_nodes) {
                let given = &*parameters;
                let nodes = CStr::from_ptr(*given.node_names.add(i)).to_string_lossy();
                if !stands_for(&nodes, full) {
                    others.push(nodes.into_owned());
                    continue;
                }
                matched = true;
                let values = &*given.params.add(i);
                for j in 0..values.num_params {
                    let name = CStr::from_ptr(*values.parameter_names.add(j)).to_string_lossy();
                    found.given.push(Override {
                        name: name.into_owned(),
                        value: value(&*values.parameter_values.add(j)),
                        origin: file.map(|file| (file.to_string(), nodes.to_string())),
                    });
                }
            }
            if !parameters.is_null() {
                rcl_yaml_node_struct_fini(parameters);
            }
        }
        let name = full.rsplit('/').next();
        let same_name = |other: &&String| other.rsplit('/').next() == name;
        if let Some(file) = file {
            if let Some(other) = others.iter().find(same_name) {
                found.warnings.push(format!(
                    "parameter file {file}: what stands under {other} is not for this node, whose name is {full}"
                ));
            } else if !matched {
                let held = match others.is_empty() {
                    true => "it is empty".to_string(),
                    false => format!("it is for: {}", others.join(", ")),
                };
                found.warnings.push(format!(
                    "parameter file {file} has nothing for this node, whose name is {full}; {held}"
                ));
            }
        }
        Ok(())
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
    /// `topic` is relative, to the node if it begins with `~/`, or absolute; `node` and `namespace` are those the node really
    /// has.
    pub fn resolve(&self, topic: &str, node: &str, namespace: &str) -> Result<String, NodeError> {
        self.remap(rcl_remap_topic_name, topic, node, namespace)
    }

    /// The same for a service.
    pub fn resolve_service(
        &self,
        service: &str,
        node: &str,
        namespace: &str,
    ) -> Result<String, NodeError> {
        self.remap(rcl_remap_service_name, service, node, namespace)
    }

    fn remap(
        &self,
        remap: Remap,
        name: &str,
        node: &str,
        namespace: &str,
    ) -> Result<String, NodeError> {
        let full = match name.strip_prefix("~/") {
            Some(own) => absolute(&format!("{node}/{own}"), namespace),
            None if name.starts_with('/') => name.to_string(),
            None => absolute(name, namespace),
        };
        let (name, node, namespace) = (c_string(&full)?, c_string(node)?, c_string(namespace)?);
        // SAFETY: all strings outlive the call; the result, if any, is a C string from the default allocator.
        unsafe {
            let allocator = rcutils_get_default_allocator();
            let mut output: *mut c_char = ptr::null_mut();
            check(remap(
                ptr::null(),
                &self.parsed,
                name.as_ptr(),
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
    /// suffix, as image_transport does it, unless it has the suffix already.
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
        let base = self.resolve(image, node, namespace)?;
        Ok(match base.ends_with("/compressed") {
            true => base,
            false => format!("{base}/compressed"),
        })
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

/// A parameter's value. Of the lists that no parameter of the node is, only the kind matters.
///
/// # Safety
/// What the variant points to must be what rcl put there.
unsafe fn value(given: &rcl_variant_t) -> ParameterValue {
    if let Some(value) = given.bool_value.as_ref() {
        ParameterValue::Bool(*value)
    } else if let Some(value) = given.integer_value.as_ref() {
        ParameterValue::Integer(*value)
    } else if let Some(value) = given.double_value.as_ref() {
        ParameterValue::Double(*value)
    } else if !given.string_value.is_null() {
        let text = CStr::from_ptr(given.string_value).to_string_lossy();
        ParameterValue::String(text.into_owned())
    } else if let Some(list) = given.integer_array_value.as_ref() {
        ParameterValue::IntegerArray(elements(list.values, list.size).to_vec())
    } else if let Some(list) = given.double_array_value.as_ref() {
        ParameterValue::DoubleArray(elements(list.values, list.size).to_vec())
    } else if !given.bool_array_value.is_null() {
        ParameterValue::BoolArray(Vec::new())
    } else if let Some(list) = given.string_array_value.as_ref() {
        let texts = elements(list.data, list.size).iter();
        let text = |&text: &*mut c_char| CStr::from_ptr(text).to_string_lossy().into_owned();
        ParameterValue::StringArray(texts.map(text).collect())
    } else {
        ParameterValue::NotSet
    }
}

/// The elements of a list of rcl.
///
/// # Safety
/// There must be `count` of them at `first`, as long as the list is looked at.
unsafe fn elements<'a, T>(first: *const T, count: usize) -> &'a [T] {
    match first.is_null() {
        true => &[],
        false => std::slice::from_raw_parts(first, count),
    }
}

fn c_string(text: &str) -> Result<CString, NodeError> {
    CString::new(text).map_err(|_| NodeError::Arguments(format!("{text:?} holds a NUL byte")))
}

/// Turns a return code into an error with rcl's own words.
pub(super) fn check(code: rcl_ret_t) -> Result<(), NodeError> {
    if code == OK {
        return Ok(());
    }
    Err(NodeError::Arguments(last_error()))
}

/// What rcl said of the last failure in this thread.
pub fn last_error() -> String {
    // SAFETY: the error state is this thread's own, and its text ends with NUL.
    unsafe {
        let state = rcutils_get_error_string();
        let text = CStr::from_ptr(state.str_.as_ptr())
            .to_string_lossy()
            .into_owned();
        rcutils_reset_error();
        text
    }
}
