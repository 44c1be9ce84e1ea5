//! The libraries of CUDA, loaded when a GPU is asked for: an executable with the feature `cuda` starts where there are none.
//!
//! candle and its kernels are linked with these libraries, which a program then needs to start at all. So every function that they call is
//! defined here, as a jump to where a table says that it is. [`load`] fills the table. The linker finds these functions first, and none of
//! the libraries is needed any more: it leaves them out, as it does with all that are not needed (`build.rs` says which linker).
//!
//! What [`functions`] does not name is linked with its library as ever, so that the executable no longer starts without it:
//! `scripts/gpu-build.sh` refuses such a one and says which names are missing. The functions are hidden: the libraries among
//! themselves go on calling their own.
//!
//! Code that nvcc compiles for the host registers its kernels before `main`. For that, and only for that, the runtime (`libcudart`)
//! is loaded at the start, if it is there; if not, registering does nothing.

use std::arch::global_asm;
use std::error::Error;
use std::ffi::{c_void, CString};
use std::mem::forget;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Where a function is, for every one of [`NAMES`].
type Table = [AtomicPtr<c_void>; NAMES.len()];

/// Defines functions as jumps to where the table says: `registering`, which do nothing before they are found, and `others`, which end
/// the process with a message.
macro_rules! functions {
    (registering: $($early:ident)* ; others: $($late:ident)*) => {
        /// In the order of the table.
        const NAMES: &[&str] = &[$(stringify!($early),)* $(stringify!($late)),*];

        global_asm!(
            instructions!(),
            ".pushsection .data.inf_mllm_cuda,\"aw\",%progbits",
            ".balign 8",
            ".globl inf_mllm_cuda_table",
            ".hidden inf_mllm_cuda_table",
            "inf_mllm_cuda_table:",
            $(concat!(".Lat_", stringify!($early), ": .quad {nothing}"),)*
            $(concat!(".Lat_", stringify!($late), ": .quad .Linf_mllm_absent"),)*
            ".popsection",
            ".pushsection .text.inf_mllm_cuda,\"ax\",%progbits",
            ".balign 8",
            $(concat!("inf_mllm_jump ", stringify!($early)),)*
            $(concat!("inf_mllm_jump ", stringify!($late)),)*
            ".Linf_mllm_absent: inf_mllm_call_with_place {absent}",
            ".popsection",
            // Numbered, so that it runs before the constructors of nvcc's objects, which are not.
            ".pushsection .init_array.00100,\"aw\",%init_array",
            ".balign 8",
            ".quad {at_start}",
            ".popsection",
            nothing = sym nothing,
            absent = sym absent,
            at_start = sym at_start,
        );
    };
}

/// What the assembler makes of a function: a jump to what its place in the table names, with that place in a register which no
/// argument is in; and what jumps on to a function whose argument is the place.
#[cfg(target_arch = "x86_64")]
macro_rules! instructions {
    () => {
        r"
        .macro inf_mllm_jump name
        .globl \name
        .hidden \name
        .type \name, %function
        \name:
        lea r11, [rip + .Lat_\name]
        jmp qword ptr [r11]
        .endm
        .macro inf_mllm_call_with_place function
        mov rdi, r11
        jmp \function
        .endm
        "
    };
}

/// The same.
#[cfg(target_arch = "aarch64")]
macro_rules! instructions {
    () => {
        r"
        .macro inf_mllm_jump name
        .globl \name
        .hidden \name
        .type \name, %function
        \name:
        adrp x16, .Lat_\name
        add x16, x16, :lo12:.Lat_\name
        ldr x17, [x16]
        br x17
        .endm
        .macro inf_mllm_call_with_place function
        mov x0, x16
        b \function
        .endm
        "
    };
}

functions! {
    registering:
        __cudaRegisterFatBinary __cudaRegisterFatBinaryEnd __cudaUnregisterFatBinary __cudaRegisterFunction __cudaRegisterVar
        __cudaInitModule;
    others:
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute cuDeviceGetName
        cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventSynchronize
        cuFuncSetAttribute cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch
        cuGetErrorString cuInit cuLaunchKernel cuLaunchKernelEx
        cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFree_v2 cuMemFreeHost cuMemGetInfo_v2 cuMemHostAlloc cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2
        cuMemcpyHtoDAsync_v2 cuMemcpyPeerAsync cuMemsetD8Async cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload
        cuStreamBeginCapture_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
        __cudaGetKernel __cudaLaunchKernel __cudaLaunchKernel_ptsz __cudaPopCallConfiguration __cudaPushCallConfiguration
        cudaDeviceGetAttribute cudaFree cudaFreeAsync cudaFreeAsync_ptsz cudaFuncGetAttributes cudaFuncSetAttribute cudaGetDevice cudaGetDeviceCount
        cudaGetErrorName cudaGetErrorString cudaGetLastError cudaLaunchKernel cudaMalloc cudaMallocAsync cudaMallocAsync_ptsz cudaMemsetAsync
        cudaMemsetAsync_ptsz cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cudaPeekAtLastError cudaSetDevice
        cudaStreamSynchronize_ptsz
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx cublasSetStream_v2
        curandCreateGenerator curandDestroyGenerator curandGenerateUniform curandGenerateUniformDouble
        curandSetPseudoRandomGeneratorSeed curandSetStream
}

extern "C" {
    #[link_name = "inf_mllm_cuda_table"]
    static TABLE: Table;
}

/// Registering where there is nothing to register with.
extern "C" fn nothing() -> *mut c_void {
    std::ptr::null_mut()
}

/// Ends the process, for a function has been called that is not there. `place` is its place in the table.
extern "C" fn absent(place: *const AtomicPtr<c_void>) -> ! {
    // SAFETY: the table is there as long as the process.
    let place = unsafe { place.offset_from(TABLE.as_ptr()) };
    let name = NAMES.get(place as usize).unwrap_or(&"a function of CUDA");
    eprintln!("{name} has been called, which none of the loaded libraries has");
    std::process::abort()
}

/// A library, and what the names of its functions begin with.
struct Named {
    file: String,
    prefixes: &'static [&'static str],
}

/// The runtime of a release's major number.
fn runtime(major: &str) -> Named {
    let version = if major == "11" { "11.0" } else { major };
    Named {
        file: format!("libcudart.so.{version}"),
        prefixes: &["cuda", "__cuda"],
    }
}

/// The other libraries.
fn others(major: &str) -> [Named; 2] {
    let named = |file: String, prefixes| Named { file, prefixes };
    [
        named(format!("libcublas.so.{major}"), &["cublas"]),
        // Its number has not followed that of CUDA since 10.
        named("libcurand.so.10".to_string(), &["curand"]),
    ]
}

/// Before `main`, and before anything is registered.
extern "C" fn at_start() {
    let major = env!("INF_MLLM_CUDA_VERSION").split('.').next();
    // Whoever asks for the GPU is told what is wrong with it.
    let _ = runtime(major.unwrap_or_default()).load();
}

/// Loads the driver and the libraries of the toolkit's `release`, as in 13.0, or says which one cannot be loaded and why.
pub fn load(release: &str) -> Result<(), String> {
    let driver = Named {
        file: "libcuda.so.1".to_string(),
        prefixes: &["cu"],
    };
    driver
        .load()
        .map_err(|error| format!("no NVIDIA driver: {error}"))?;
    let major = release.split('.').next().unwrap_or_default();
    for library in [runtime(major)].into_iter().chain(others(major)) {
        library.load().map_err(|error| {
            format!(
                "{error}; the runtime libraries of CUDA {release} are needed, where the system finds them or in LD_LIBRARY_PATH"
            )
        })?;
    }
    Ok(())
}

impl Named {
    /// Loads the library for good, and puts its functions into the table.
    fn load(&self) -> Result<(), String> {
        // SAFETY: what these libraries do when they are loaded is known: nothing that concerns this process.
        let library = unsafe { Library::open(Some(&self.file), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| match error.source() {
            Some(source) => source.to_string(),
            None => error.to_string(),
        })?;
        for (i, name) in NAMES.iter().enumerate().filter(|(_, name)| self.has(name)) {
            let name = CString::new(*name).unwrap_or_default();
            // SAFETY: only the address is taken; what calls it was declared by who wrote the library. Others read a place of the table as
            // a whole, and after this one has opened the GPU for them.
            if let Ok(function) = unsafe { library.get::<*mut c_void>(name.as_bytes_with_nul()) } {
                unsafe { TABLE[i].store(function.as_raw_ptr(), Ordering::Release) };
            }
        }
        forget(library);
        Ok(())
    }

    /// Whether a function is one of this library. The driver's names begin as all the others do, but go on with a capital letter.
    fn has(&self, name: &str) -> bool {
        self.prefixes.iter().any(|prefix| {
            let rest = name.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
        })
    }
}
