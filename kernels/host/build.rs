//! Compiles the kernels with the C++ compiler (`CXX`, else `g++`), each source beside the others.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const SOURCES: [&str; 15] = [
    "attend_bf16.cu",
    "attend_chunk.cu",
    "attend_f16.cu",
    "attend_f32.cu",
    "attend_q8.cu",
    "frames.cu",
    "history.cu",
    "output.cu",
    "pack.cu",
    "planes.cu",
    "products.cu",
    "rows.cu",
    "scores.cu",
    "turns.cu",
    "host/launch.cpp",
];
const HEADERS: [&str; 10] = [
    "attend.cuh",
    "chunk.cuh",
    "gpu.cuh",
    "layer.cuh",
    "output.cuh",
    "planes.cuh",
    "products.cuh",
    "q8.cuh",
    "splits.cuh",
    "host/host.hpp",
];

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["CXX", "KERNELS_FLAGS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed=../{file}");
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_string());
    // For sanitizers and planted faults.
    let flags = std::env::var("KERNELS_FLAGS").unwrap_or_default();
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let mut objects = Vec::new();
    for sources in SOURCES.chunks(jobs.unwrap_or(1).max(1)) {
        let mut compilations = Vec::new();
        for source in sources {
            let name = Path::new(source).file_stem().unwrap_or_default();
            let object = out.join(name).with_extension("o");
            let mut command = Command::new(&compiler);
            command
                .args(["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"])
                // nvcc's own: unroll.
                .arg("-Wno-unknown-pragmas")
                .arg("-ftls-model=initial-exec")
                .args(flags.split_whitespace())
                .args(["-x", "c++", "-c"])
                .arg(Path::new("..").join(source))
                .arg("-o")
                .arg(&object);
            let child = command.spawn();
            let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
            compilations.push((command, child));
            objects.push(object);
        }
        for (command, child) in compilations {
            finish(&command, child);
        }
    }
    // One object, so that the kernels come along which only register themselves.
    let together = out.join("kernels.o");
    let library = out.join("libkernels.a");
    let _ = std::fs::remove_file(&library);
    let mut link = Command::new(&compiler);
    link.args(["-r", "-nostdlib", "-o"]).arg(&together);
    link.args(&objects);
    let mut archive = Command::new("ar");
    archive.arg("crs").arg(&library).arg(&together);
    for mut command in [link, archive] {
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        finish(&command, child);
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=kernels");
    println!("cargo:rustc-link-lib=stdc++");
}

fn finish(command: &Command, mut child: Child) {
    match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{command:?}: {status}"),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
