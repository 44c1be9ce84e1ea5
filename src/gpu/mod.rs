//! Kernels of our own (`kernels/`) on a device: what a launch is, and what runs it.
//!
//! - this file: launches, and what a device must be able to do with them
//! - `element`: what kernels call the types of elements
//! - `memory`: where a tensor's elements lie
//! - `cuda`: a GPU, through the driver (feature `cuda`)
//!
//! The kernels work on the memory of candle's tensors, so candle's operations and they can take turns. The tests run the same sources
//! on the CPU, on tensors of the CPU.

#[cfg(feature = "cuda")]
pub mod cuda;
mod element;
mod memory;

use std::ffi::c_void;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

pub use element::Element;
pub use memory::{address, address_words};

/// One launch of a kernel: by its name in `kernels/`, with the arguments in the order that its comment says.
#[derive(Debug, Clone)]
pub struct Launch {
    pub kernel: String,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Shared memory beside what the kernel declares, bytes.
    pub shared: u32,
    /// Each argument in a cell of its own, from its first byte on.
    arguments: Vec<u64>,
    /// What the arguments point into.
    held: Vec<Tensor>,
}

impl Launch {
    pub fn new(kernel: impl Into<String>, grid: [u32; 3], block: u32) -> Self {
        Self {
            kernel: kernel.into(),
            grid,
            block,
            shared: 0,
            arguments: Vec::new(),
            held: Vec::new(),
        }
    }

    /// So many bytes of shared memory beside what the kernel declares.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    /// A pointer to the first element of a tensor, which must be contiguous.
    pub fn tensor(mut self, tensor: &Tensor) -> Result<Self> {
        self.arguments.push(address(tensor)?);
        self.held.push(tensor.clone());
        Ok(self)
    }

    /// The same, or a null pointer.
    pub fn optional(self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => Ok(self.pointer(0)),
        }
    }

    /// A pointer to memory that outlives the launch.
    pub fn pointer(mut self, address: u64) -> Self {
        self.arguments.push(address);
        self
    }

    /// An `int`.
    pub fn int(mut self, value: usize) -> Self {
        self.arguments.push(value as u64);
        self
    }

    /// A `float`.
    pub fn float(mut self, value: f32) -> Self {
        self.arguments.push(u64::from(value.to_bits()));
        self
    }

    /// The arguments as the driver takes them: a pointer to each.
    pub fn arguments(&mut self) -> Vec<*mut c_void> {
        let cells = self.arguments.iter_mut();
        cells.map(|cell| std::ptr::from_mut(cell).cast()).collect()
    }
}

/// A device that can run the kernels.
pub trait Gpu: Debug + Send + Sync {
    /// Prepares launches that will be repeated, one after the other, in the order of everything else on the device.
    ///
    /// # Safety
    /// Every kernel exists, and the arguments are what its comment asks for: as many, of these types, pointing to so much memory.
    unsafe fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recording>>;

    /// Runs a kernel behind what the device has to do, and does not wait.
    ///
    /// # Safety
    /// As [`Self::record`] says.
    unsafe fn launch(&self, launch: Launch) -> Result<()>;

    /// Waits for what the device has to do. Fails where it does nothing any more, whatever it is asked.
    fn check(&self) -> Result<()>;

    /// Processors that take blocks.
    fn multiprocessors(&self) -> usize;

    /// Copies bytes into a tensor of them (u8, contiguous) behind what the device has to do, through memory of the host that the device
    /// reads without the driver's help; `fill` writes them there, all of them, and is not called where that fails.
    fn upload(&self, to: &Tensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<()>;

    /// Memory that the device writes and the host reads, all zero.
    fn mapped(&self, words: usize) -> Result<Box<dyn Mapped>>;
}

/// The kernels on a device of candle's; none on the CPU, and none (with a warning) where they cannot be loaded.
pub fn of(device: &Device) -> Option<Arc<dyn Gpu>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::loaded(device),
        _ => None,
    }
}

/// Launches that can be repeated.
pub trait Recording: Debug + Send + Sync {
    /// Puts them all behind what the device has to do, and does not wait.
    fn launch(&mut self) -> Result<()>;

    /// Waits until all but the newest `ahead` repetitions are through; `ahead` is 0 or 1.
    fn wait(&mut self, ahead: usize) -> Result<()>;
}

/// Memory that the device writes and the host reads.
pub trait Mapped: Debug + Send + Sync {
    /// Where the device finds it.
    fn address(&self) -> u64;

    /// What stands in word `index`; below the number of words asked for.
    fn word(&self, index: usize) -> u32;
}
