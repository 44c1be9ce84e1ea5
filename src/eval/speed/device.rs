//! The device that is measured: its name and its memory.

use std::fs;

use candle_core::Device;
use serde::Serialize;

use crate::model::device_name;

/// What a result was measured on.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceInfo {
    /// As the parameter `device` has it: cpu, cuda:0.
    pub kind: String,
    /// What its maker calls it.
    pub name: String,
    /// Threads of the products on the CPU.
    pub threads: usize,
}

impl DeviceInfo {
    pub fn of(device: &Device) -> Self {
        Self {
            kind: device_name(device),
            name: model(device),
            threads: rayon::current_num_threads(),
        }
    }
}

fn model(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let name = cuda.cuda_stream().context().name();
            name.unwrap_or_else(|error| format!("unknown ({error})"))
        }
        _ => processor(),
    }
}

/// The processor of this machine.
pub fn processor() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    name.unwrap_or(std::env::consts::ARCH).to_string()
}

/// Memory in use, bytes, where it can be asked: of a GPU all that its programs have, of the CPU what this one has.
pub fn used_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let (free, total) = cuda.cuda_stream().context().mem_get_info().ok()?;
            Some((total - free) as u64)
        }
        Device::Cpu => resident(&fs::read_to_string("/proc/self/status").ok()?),
        _ => None,
    }
}

/// What `status` of a process says of its memory, bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>();
    Some(kilobytes.ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        let status = "VmSize:\t  900 kB\nVmRSS:\t    20 kB\n";
        assert_eq!(resident(status), Some(20 << 10));
        assert_eq!(resident("VmSize: 1 kB\n"), None);
        assert!(used_bytes(&Device::Cpu).is_some_and(|bytes| bytes > 1 << 20));
    }
}
