//! Lets the executables find their libraries: the node those of its own package and of the private ROS made by `make setup`,
//! a GPU build those of the private CUDA toolkit made by `make gpu-build`.

use std::path::Path;

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
