//! The tests of the kernels by themselves, for builds with sanitizers and planted faults: scripts/kernels.sh.

#[path = "../../../tests/core/kernels/mod.rs"]
mod kernels;
