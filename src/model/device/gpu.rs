//! The GPU: opened once, after what would make it fail later has been looked at.

use std::fmt::{self, Display, Formatter};
use std::sync::{Mutex, PoisonError};

use candle_core::Device;
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{result, sys, DriverError};

use super::on_demand;
use crate::cache::TensorError;

/// The release of the toolkit that this was built with, as in 13.0; `build.rs` asks nvcc.
const TOOLKIT: &str = env!("INF_MLLM_CUDA_VERSION");

/// The compute capability that the kernels are compiled for, as in 90 or 90a; empty if the build was not told.
const COMPILED_FOR: &str = env!("INF_MLLM_CUDA_CAPABILITY");

/// From here on code is compiled for exactly one kind of GPU (sm_90a).
const EXACT_FROM: Capability = Capability { major: 9, minor: 0 };

/// Code of the GPUs of Jetson and DRIVE runs on no other, nor code of others on them.
const EMBEDDED: [Capability; 2] = [
    Capability { major: 7, minor: 2 },
    Capability { major: 8, minor: 7 },
];

/// The GPU, once it has been opened.
static OPENED: Mutex<Option<Device>> = Mutex::new(None);

/// The same GPU with another stream.
static BESIDE: Mutex<Option<Device>> = Mutex::new(None);

/// The first GPU, or why it cannot be used. All callers get the same one, with one stream.
pub fn open() -> Result<Device, String> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = &*opened {
        return Ok(device.clone());
    }
    on_demand::load(TOOLKIT)?;
    check()?;
    Ok(opened.insert(with_a_stream()?).clone())
}

/// The GPU that [`open`] has opened, with a stream beside that one's. Tensors of the two do not mix; `hand_over` copies them.
pub fn open_beside() -> Result<Device, String> {
    let mut opened = BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = &*opened {
        return Ok(device.clone());
    }
    Ok(opened.insert(with_a_stream()?).clone())
}

/// The GPU with a stream of its own: candle's usual one is another for every thread of the host, and nothing orders those.
fn with_a_stream() -> Result<Device, String> {
    let fails = |error: candle_core::Error| TensorError::describe(&error);
    let device = Device::new_cuda_with_stream(0).map_err(fails)?;
    // SAFETY: memory of this device is used and let go in its one stream, in the order in which that was asked for; where another
    // stream reads it, `hand_over` has this one wait.
    unsafe {
        device
            .as_cuda_device()
            .map_err(fails)?
            .disable_event_tracking()
    };
    Ok(device)
}

/// Whether driver and GPU fit what this executable was built with.
fn check() -> Result<(), String> {
    result::init().map_err(|error| why_not_initialised(error.0))?;
    let wanted = Release::of_name(TOOLKIT);
    let driver = driver_release().map_err(told)?;
    if driver < wanted {
        return Err(format!(
            "the NVIDIA driver knows CUDA up to {driver}, this executable was built with {wanted}: a newer driver is needed, or a build with a \
             toolkit of at most {driver}"
        ));
    }
    let gpu = result::device::get(0).map_err(told)?;
    let found = Capability::of(gpu).map_err(told)?;
    match Capability::of_name(COMPILED_FOR) {
        Some(compiled) if !compiled.runs_on(found) => {
            let name = result::device::get_name(gpu).map_err(told)?;
            let Capability { major, minor } = found;
            Err(format!(
                "the GPU ({name}) has compute capability {found}, this executable is compiled for {compiled}: build it with \
                 CUDA_COMPUTE_CAP={major}{minor}"
            ))
        }
        _ => Ok(()),
    }
}

fn why_not_initialised(code: CUresult) -> String {
    match code {
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "no NVIDIA driver: libcuda.so.1 is the stub of a build".to_string()
        }
        CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no GPU".to_string(),
        code => format!("the NVIDIA driver cannot be initialised: {code:?}"),
    }
}

fn told(error: DriverError) -> String {
    format!("the NVIDIA driver answers with {:?}", error.0)
}

/// The newest release of CUDA that the driver can run code of.
fn driver_release() -> Result<Release, DriverError> {
    let mut version = 0;
    // SAFETY: the driver is loaded, and writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(Release {
        major: version / 1000,
        minor: version % 1000 / 10,
    })
}

/// A release of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    major: i32,
    minor: i32,
}

impl Release {
    /// Of a name as in 13.0.
    fn of_name(name: &str) -> Self {
        let mut numbers = name.split('.').map(|part| part.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self {
            major: next(),
            minor: next(),
        }
    }
}

impl Display for Release {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a GPU can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Capability {
    major: i32,
    minor: i32,
}

impl Capability {
    fn of(gpu: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: `gpu` is a device that the driver has named.
        let number = |attribute| unsafe { result::device::get_attribute(gpu, attribute) };
        Ok(Self {
            major: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        })
    }

    /// Of a name as in 90, 90a or sm_90a.
    fn of_name(name: &str) -> Option<Self> {
        let digits = name.trim_start_matches("sm_");
        let digits = digits.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number = digits.parse::<i32>().ok()?;
        Some(Self {
            major: number / 10,
            minor: number % 10,
        })
    }

    /// Whether code that was compiled for `self` runs on `gpu`: on a later one of the same major number, unless it is for exactly one.
    fn runs_on(self, gpu: Self) -> bool {
        let exact = self >= EXACT_FROM || EMBEDDED.contains(&self) || EMBEDDED.contains(&gpu);
        self == gpu || (!exact && self.major == gpu.major && self.minor <= gpu.minor)
    }
}

impl Display for Capability {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_later_gpus_of_its_kind_only() {
        let runs = |compiled: &str, gpu: &str| {
            let [compiled, gpu] = [compiled, gpu].map(|name| Capability::of_name(name).unwrap());
            compiled.runs_on(gpu)
        };
        assert!(runs("80", "80") && runs("80", "86") && runs("86", "89") && runs("75", "75"));
        assert!(!runs("86", "80") && !runs("75", "80") && !runs("89", "90"));
        assert!(runs("87", "87") && !runs("86", "87") && !runs("87", "89"));
        assert!(runs("90a", "90") && !runs("90", "100") && runs("sm_120a", "120"));
        assert!(!runs("120", "121"));
        assert_eq!(Capability::of_name(""), None);
    }
}
