//! The kernels on an NVIDIA GPU, launched through the driver in candle's stream.

use std::collections::HashMap;
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, Error, Result, Tensor};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUgraphInstantiate_flags,
    CUlaunchAttributeID, CUstreamCaptureMode,
};
use cudarc::driver::{
    result, CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError,
    PinnedHostSlice,
};
use cudarc::nvrtc::Ptx;

use super::{address, Gpu, Launch, Mapped, Recording};

/// `kernels/all.cu`, compiled for the GPUs that build.rs names.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The devices that the kernels were asked for on, and what has become of that; they are as many as there are streams.
static LOADED: Mutex<Vec<(DeviceId, Option<Arc<dyn Gpu>>)>> = Mutex::new(Vec::new());

/// The kernels on a device, loaded when they are first asked for; none (with a warning) where that fails.
pub fn loaded(device: &CudaDevice) -> Option<Arc<dyn Gpu>> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    match loaded.iter().find(|(id, _)| *id == device.id()) {
        Some((_, gpu)) => gpu.clone(),
        None => {
            let cuda = Cuda::new(device).inspect_err(|error| {
                tracing::warn!(
                    "the kernels cannot be loaded, everything runs in single operations: {error}"
                );
            });
            let gpu = cuda.ok().map(|cuda| Arc::new(cuda) as Arc<dyn Gpu>);
            loaded.push((device.id(), gpu.clone()));
            gpu
        }
    }
}

/// A GPU with the kernels loaded.
pub struct Cuda {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    multiprocessors: usize,
    /// A kernel of a recording may start while the one before it ends.
    overlap: bool,
    staging: Mutex<Option<Staging>>,
}

/// Memory that uploads go through.
struct Staging {
    memory: PinnedHostSlice<u8>,
    /// Behind the last copy out of it.
    copied: CudaEvent,
}

/// The first driver that captures launches which overlap (12.3), as it says its version.
const OVERLAPPING_DRIVER: i32 = 12030;

/// Shared memory that a block has without being asked for more, bytes.
const SHARED: u32 = 48 << 10;

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.stream.context().ordinal())
    }
}

impl Cuda {
    /// Loads the kernels. They run in the stream of candle's operations on `device`, and so in their order.
    ///
    /// Fails where the executable was not compiled for this GPU, nor for an older one of which it can be translated.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let image = Ptx::from_binary(KERNELS.to_vec());
        let module = stream.context().load_module(image).map_err(failed)?;
        let multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = stream
            .context()
            .attribute(multiprocessors)
            .map_err(failed)?;
        let (major, _) = stream.context().compute_capability().map_err(failed)?;
        let mut driver = 0;
        // Safety: it only writes the number.
        unsafe { sys::cuDriverGetVersion(&mut driver) }
            .result()
            .map_err(failed)?;
        Ok(Self {
            stream,
            module,
            functions: Mutex::default(),
            multiprocessors: multiprocessors.max(1) as usize,
            overlap: major >= 9 && driver >= OVERLAPPING_DRIVER,
            staging: Mutex::default(),
        })
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).map_err(failed)?;
        functions.insert(name.to_string(), function.clone());
        Ok(function)
    }

    /// With `overlap` the kernel may start before what is ahead of it in the stream has ended: the kernels themselves wait for that (see
    /// wait_for_producer in kernels/gpu.cuh).
    ///
    /// # Safety
    /// As [`Gpu::record`] says.
    unsafe fn enqueue(&self, launch: &mut Launch, overlap: bool) -> Result<()> {
        let function = self.function(&launch.kernel)?;
        let [x, y, z] = launch.grid;
        let shared = launch.shared;
        if shared > SHARED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(most, shared as i32)
                .map_err(failed)?;
        }
        let mut overlapping = sys::CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream.cu_stream(),
            attrs: &mut overlapping,
            numAttrs: u32::from(overlap),
        };
        let mut arguments = launch.arguments();
        let arguments = arguments.as_mut_ptr();
        sys::cuLaunchKernelEx(&config, function.cu_function(), arguments, null_mut())
            .result()
            .map_err(failed)
    }
}

impl Gpu for Cuda {
    unsafe fn launch(&self, mut launch: Launch) -> Result<()> {
        self.enqueue(&mut launch, false)
    }

    /// What makes the driver refuse everything (an illegal address, a failed launch, an uncorrectable error of the memory) it answers
    /// again and again; what went wrong while memory was let go it tells once.
    fn check(&self) -> Result<()> {
        let synchronized = self.stream.synchronize();
        synchronized
            .or_else(|_| self.stream.synchronize())
            .map_err(failed)
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    unsafe fn record(&self, mut launches: Vec<Launch>) -> Result<Box<dyn Recording>> {
        // Functions are loaded before: that is nothing to be captured.
        for launch in &launches {
            self.function(&launch.kernel)?;
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let mut numbered = launches.iter_mut().enumerate();
        // The first one follows whatever came before the recording's repetition.
        let launched =
            numbered.try_for_each(|(i, launch)| self.enqueue(launch, self.overlap && i > 0));
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        let graph = graph.map_err(failed)?;
        let graph = graph.ok_or_else(|| Error::msg("no launches to record"))?;
        let context = self.stream.context();
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
        Ok(Box::new(Captured {
            graph,
            events: [event().map_err(failed)?, event().map_err(failed)?],
            launched: 0,
            stream: self.stream.clone(),
            _launches: launches,
        }))
    }

    fn upload(&self, to: &Tensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let bytes = to.elem_count();
        let target = address(to)?;
        let context = self.stream.context();
        context.bind_to_thread().map_err(failed)?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(staging) = &*staging {
            staging.copied.synchronize().map_err(failed)?;
        }
        if staging
            .as_ref()
            .is_none_or(|staging| staging.memory.len() < bytes)
        {
            let flags = Some(CUevent_flags::CU_EVENT_DISABLE_TIMING);
            // Safety: it is written before the device reads it.
            let memory =
                unsafe { context.alloc_pinned_with_flags(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
            *staging = Some(Staging {
                memory: memory.map_err(failed)?,
                copied: context.new_event(flags).map_err(failed)?,
            });
        }
        let Some(Staging { memory, copied }) = &mut *staging else {
            return Ok(());
        };
        let start = memory.as_mut_ptr().map_err(failed)?;
        // Safety: so many bytes lie there at least, all of them written once before, by the driver or by an upload; the device reads
        // them no longer.
        let slice = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        fill(slice);
        // Safety: the target is as long, and both stay until the copy is through: the tensor's memory is let go in the order of the
        // stream, and the staging memory waits for the event.
        unsafe { result::memcpy_htod_async(target, slice, self.stream.cu_stream()) }
            .map_err(failed)?;
        copied.record(&self.stream).map_err(failed)
    }

    fn mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        let context: &Arc<CudaContext> = self.stream.context();
        // Safety: all of it is written before anything reads it.
        let pinned = unsafe {
            let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
            context.alloc_pinned_with_flags::<u32>(words, flags)
        };
        let mut pinned = pinned.map_err(failed)?;
        let start = pinned.as_mut_ptr().map_err(failed)?;
        // Safety: `words` words lie there, and nothing else knows of them yet.
        unsafe { start.write_bytes(0, words) };
        Ok(Box::new(Pinned {
            start,
            words,
            _memory: pinned,
        }))
    }
}

/// A captured graph.
struct Captured {
    graph: CudaGraph,
    /// Behind the last repetition of even and of odd number.
    events: [CudaEvent; 2],
    launched: u64,
    stream: Arc<CudaStream>,
    /// What the graph's arguments point into.
    _launches: Vec<Launch>,
}

// Safety: a graph must not be used by two threads at once, and every use takes `&mut self`.
unsafe impl Send for Captured {}
unsafe impl Sync for Captured {}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured({} launches)", self._launches.len())
    }
}

impl Recording for Captured {
    fn launch(&mut self) -> Result<()> {
        self.graph.launch().map_err(failed)?;
        let event = &self.events[(self.launched % 2) as usize];
        event.record(&self.stream).map_err(failed)?;
        self.launched += 1;
        Ok(())
    }

    fn wait(&mut self, ahead: usize) -> Result<()> {
        let Some(last) = self.launched.checked_sub(1 + ahead as u64) else {
            return Ok(());
        };
        let event = &self.events[(last % 2) as usize];
        event.synchronize().map_err(failed)
    }
}

/// Memory of the host that stays where it is.
struct Pinned {
    start: *mut u32,
    words: usize,
    _memory: PinnedHostSlice<u32>,
}

// Safety: the memory belongs to this value, and the host only reads it.
unsafe impl Send for Pinned {}
unsafe impl Sync for Pinned {}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} words)", self.words)
    }
}

impl Mapped for Pinned {
    /// With unified addressing (every GPU of 64-bit systems) memory of the host has one address on both sides.
    fn address(&self) -> u64 {
        self.start as u64
    }

    fn word(&self, index: usize) -> u32 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // Safety: within the memory; the device writes whole words, and what is read has been waited for.
        unsafe { self.start.add(index).read_volatile() }
    }
}

fn failed(error: DriverError) -> Error {
    Error::wrap(error)
}
