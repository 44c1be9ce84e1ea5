//! Lets the executables find their libraries: the node those of its own package and of the private ROS made by `make setup`,
//! a GPU build those of the private CUDA toolkit made by `make gpu-build`. And compiles the kernels of a GPU build and tells it what it is
//! built with and for.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=INF_MLLM_PRIVATE_ROS");
    println!("cargo:rerun-if-env-changed=INF_MLLM_PRIVATE_CUDA");
    // Not the driver's libcuda: that is the system's, and the folder of its stub stays out of the path.
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        if let Some(toolkit) = std::env::var_os("INF_MLLM_PRIVATE_CUDA") {
            let lib = Path::new(&toolkit).join("lib");
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        }
        about_cuda();
        compile_kernels();
        link_with_what_is_called();
    }
    if std::env::var_os("CARGO_FEATURE_ROS").is_none() {
        return;
    }
    // DT_RPATH, not DT_RUNPATH: it also serves the libraries that the ROS libraries load.
    println!("cargo:rustc-link-arg-bins=-Wl,--disable-new-dtags");
    let Some(private) = std::env::var_os("INF_MLLM_PRIVATE_ROS") else {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/..");
        return;
    };
    let lib = Path::new(&private).join("lib");
    // The stubs come first: the libraries that they stand for would need Python.
    let mut paths = vec![lib.join("stub"), lib.clone()];
    paths.extend(vendored_libraries(&lib));
    for path in paths {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{}", path.display());
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/..");
}

/// Compiles kernels/ into `kernels.fatbin` in the folder of the build: for each GPU of kernels/targets that the toolkit knows, and as PTX
/// for those that come later. `CUDA_COMPUTE_CAP` leaves out the GPUs before it, which candle's kernels do not run on either.
fn compile_kernels() {
    println!("cargo:rerun-if-changed=kernels");
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(|name| {
        println!("cargo:rerun-if-env-changed={name}");
        std::env::var_os(name).map(|home| Path::new(&home).join("bin/nvcc"))
    });
    let nvcc = homes.into_iter().flatten().find(|nvcc| nvcc.exists());
    let nvcc = nvcc.unwrap_or_else(|| PathBuf::from("nvcc"));
    let fail = |what: String| -> ! {
        panic!(
            "{}: {what}; the feature cuda needs the CUDA toolkit",
            nvcc.display()
        )
    };
    let answer = Command::new(&nvcc).arg("--list-gpu-code").output();
    let answer = answer.unwrap_or_else(|error| fail(error.to_string()));
    let answer = String::from_utf8_lossy(&answer.stdout);
    let known = answer.split_whitespace().collect::<Vec<_>>();
    let oldest = std::env::var("CUDA_COMPUTE_CAP").ok();
    let oldest = oldest.and_then(|cap| cap.parse::<u32>().ok()).unwrap_or(0);
    let targets = include_str!("kernels/targets").split_whitespace();
    let targets = targets
        .filter(|target| known.contains(&format!("sm_{target}").as_str()))
        .map(|target| target.parse::<u32>().unwrap_or_default())
        .filter(|&target| target >= oldest)
        .collect::<Vec<_>>();
    if targets.is_empty() {
        fail(format!(
            "--list-gpu-code says {known:?}, expected one of those in kernels/targets among them, from {oldest} on"
        ));
    }
    let out = Path::new(&std::env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-optf", "kernels/nvcc.options"]);
    // Read once for all GPUs that are programmed alike: from 90 on kernels can start before the one before them has ended.
    let (old, new): (Vec<u32>, Vec<u32>) = targets.iter().partition(|&&target| target < 90);
    for (i, alike) in [old, new]
        .iter()
        .filter(|alike| !alike.is_empty())
        .enumerate()
    {
        let ptx = (i == 0).then(|| format!("compute_{}", alike[0]));
        let codes = alike.iter().map(|target| format!("sm_{target}")).chain(ptx);
        let codes = codes.collect::<Vec<_>>().join(",");
        command.arg("-gencode");
        command.arg(format!("arch=compute_{},code=[{codes}]", alike[0]));
    }
    let status = command.arg("-o").arg(&out).arg("kernels/all.cu").status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => fail(format!("{command:?}: {status}")),
        Err(error) => fail(error.to_string()),
    }
}

/// The toolkit's release, as in 13.0, and the compute capability that the kernels are compiled for, as in 90: what cudarc and
/// candle's kernels go by, nvcc's answer and `CUDA_COMPUTE_CAP` or else this machine's GPU.
fn about_cuda() {
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let answer = output("nvcc", &["--version"]).unwrap_or_default();
    let release = answer.split("release ").nth(1);
    let Some(release) = release.and_then(|rest| rest.split(',').next()) else {
        panic!("nvcc --version does not say which release it is; the feature cuda needs the CUDA toolkit, its bin in PATH");
    };
    println!("cargo:rustc-env=INF_MLLM_CUDA_VERSION={}", release.trim());
    let capability = std::env::var("CUDA_COMPUTE_CAP").ok().or_else(|| {
        let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
        let answer = output("nvidia-smi", &query)?;
        Some(answer.lines().next()?.trim().replace('.', ""))
    });
    let capability = capability.unwrap_or_default();
    println!("cargo:rustc-env=INF_MLLM_CUDA_CAPABILITY={capability}");
}

/// Links with the linker that comes with Rust, as Rust itself does since 1.90 on x86_64: it takes the libraries that what is called needs.
/// That of GNU also takes those that functions need which nobody calls, and the executable would not start without them.
fn link_with_what_is_called() {
    let (rustc, host) = (std::env::var("RUSTC"), std::env::var("HOST"));
    let (Ok(rustc), Ok(host)) = (rustc, host) else {
        return;
    };
    let sysroot = output(&rustc, &["--print", "sysroot"]).unwrap_or_default();
    let folder = Path::new(sysroot.trim()).join(format!("lib/rustlib/{host}/bin/gcc-ld"));
    if folder.join("ld.lld").exists() {
        println!("cargo:rustc-link-arg=-fuse-ld=lld");
        println!("cargo:rustc-link-arg=-B{}", folder.display());
    }
}

/// What a command says, if it can be run.
fn output(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command).args(args).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The `ros_*.libs` folders in which the ROS wheels keep the system libraries they were built with.
fn vendored_libraries(lib: &Path) -> Vec<std::path::PathBuf> {
    let subfolders = |folder: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let mut found: Vec<_> = subfolders(lib)
        .iter()
        .flat_map(|python| subfolders(&python.join("site-packages")))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ros_") && name.ends_with(".libs")
        })
        .collect();
    found.sort();
    found
}
