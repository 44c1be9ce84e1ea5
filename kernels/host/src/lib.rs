//! The GPU kernels of inf_mllm on the CPU, launched as the driver launches them; for tests.

use std::ffi::{c_char, c_int, c_void, CString};

/// Why a kernel was not launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchError {
    NoKernel(String),
    /// The kernel's name, and how many arguments were given.
    Arguments(String, usize),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoKernel(name) => write!(f, "there is no kernel {name}"),
            Self::Arguments(name, given) => {
                write!(f, "kernel {name} does not take {given} arguments")
            }
        }
    }
}

impl std::error::Error for LaunchError {}

extern "C" {
    fn gpu_launch(
        name: *const c_char,
        grid: *const u32,
        block: u32,
        dynamic_shared: u32,
        arguments: *mut *mut c_void,
        argument_count: u32,
        order: u32,
        threads: u32,
    ) -> c_int;
}

/// Runs a kernel to its end. `block`: threads of a block; `dynamic_shared`: its bytes; `args`: pointers to the arguments.
///
/// `order` 0 runs blocks and threads one after the other, 1 from the last to the first, any other in an order of its own, with
/// several blocks under way at a time. `threads`: of the CPU.
///
/// # Safety
///
/// The arguments are of the types that the kernel's comment names, and what they point to is there.
pub unsafe fn launch(
    name: &str,
    grid: [u32; 3],
    block: u32,
    dynamic_shared: u32,
    args: &mut [*mut c_void],
    order: u32,
    threads: u32,
) -> Result<(), LaunchError> {
    let none = || LaunchError::NoKernel(name.to_string());
    let c_name = CString::new(name).map_err(|_| none())?;
    let (arguments, count) = (args.as_mut_ptr(), args.len());
    let code = gpu_launch(
        c_name.as_ptr(),
        grid.as_ptr(),
        block,
        dynamic_shared,
        arguments,
        count as u32,
        order,
        threads,
    );
    match code {
        0 => Ok(()),
        1 => Err(none()),
        _ => Err(LaunchError::Arguments(name.to_string(), count)),
    }
}
