//! Compiles the kernels with the C++ compiler (`CXX`, else `g++`), each source beside the others.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const SOURCES: [&str; 7] = [
    "attend_bf16.cu",
    "attend_f16.cu",
    "attend_f32.cu",
    "history.cu",
    "output.cu",
    "products.cu",
    "host/launch.cpp",
];
const HEADERS: [&str; 4] = ["attend.cuh", "gpu.cuh", "products.cuh", "host/host.hpp"];

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CXX");
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed=../{file}");
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_string());
    let started: Vec<(Command, Child, PathBuf)> = SOURCES
        .iter()
        .map(|source| {
            let object = out.join(Path::new(source).with_extension("o").file_name().unwrap());
            let mut command = Command::new(&compiler);
            command
                .args(["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"])
                // nvcc's own: unroll.
                .arg("-Wno-unknown-pragmas")
                .args(["-ftls-model=initial-exec", "-x", "c++", "-c"])
                .arg(Path::new("..").join(source))
                .arg("-o")
                .arg(&object);
            let child = command.spawn();
            let child = child.unwrap_or_else(|error| panic!("{compiler} cannot be run: {error}"));
            (command, child, object)
        })
        .collect();
    // One object, so that the kernels come along which only register themselves.
    let together = out.join("kernels.o");
    let mut link = Command::new(&compiler);
    link.args(["-r", "-nostdlib", "-o"]).arg(&together);
    for (command, mut child, object) in started {
        let status = child
            .wait()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(status.success(), "{command:?}: {status}");
        link.arg(object);
    }
    let library = out.join("libkernels.a");
    let _ = std::fs::remove_file(&library);
    let mut archive = Command::new("ar");
    archive.arg("crs").arg(&library).arg(&together);
    for command in [&mut link, &mut archive] {
        let status = command
            .status()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(status.success(), "{command:?}: {status}");
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=kernels");
    println!("cargo:rustc-link-lib=stdc++");
}
