//! The GPU kernels, run on the CPU and compared with plain f64.
//!
//! - this file: launches, stored numbers, random ones
//! - `reference`: attention in f64
//! - `attend`: one query on a bounded cache
//! - `chunk`: many queries on a bounded cache, scores, moves
//! - `frames`: pictures to values
//! - `products`: matrices times one vector
//! - `planes`: the same with matrices of small integers
//! - `output`: embedding, logits, choice, the state of a step
//! - `pack`: quantised rows, as the CPU has them
//! - `turns`: rows of rotary tables

mod attend;
mod chunk;
mod frames;
mod output;
mod pack;
mod planes;
mod products;
// These tests also run without the crate.
#[path = "../../../src/cache/quantised.rs"]
mod quantised;
mod reference;
mod turns;

use std::ffi::c_void;

use half::{bf16, f16};
use quantised::{pack_row, row_bytes, unpack_row};

/// What an element is stored as; the number is the kernels' ElementType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32 = 0,
    F16 = 1,
    BF16 = 2,
    /// Rows of keys and values only.
    Q8 = 3,
}

impl Kind {
    /// Of single elements.
    const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];
    /// Of keys and values.
    const KEPT: [Self; 4] = [Self::F32, Self::F16, Self::BF16, Self::Q8];

    /// As kernels are named.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

/// A buffer of the kernels' memory.
#[derive(Debug, Clone, PartialEq)]
enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    /// Rows, and the numbers of each.
    Q8(Vec<u8>, usize),
}

impl Stored {
    fn new(kind: Kind, numbers: &[f32]) -> Self {
        match kind {
            Kind::F32 => Self::F32(numbers.to_vec()),
            Kind::F16 => Self::F16(numbers.iter().map(|&x| f16::from_f32(x)).collect()),
            Kind::BF16 => Self::BF16(numbers.iter().map(|&x| bf16::from_f32(x)).collect()),
            Kind::Q8 => panic!("numbers without rows"),
        }
    }

    /// Rows of so many numbers.
    fn rows(kind: Kind, numbers: &[f32], head_dim: usize) -> Self {
        if kind != Kind::Q8 {
            return Self::new(kind, numbers);
        }
        let mut rows = vec![0; numbers.len() / head_dim * row_bytes(head_dim)];
        let pairs = numbers.chunks(head_dim);
        for (numbers, row) in pairs.zip(rows.chunks_mut(row_bytes(head_dim))) {
            pack_row(numbers, row);
        }
        Self::Q8(rows, head_dim)
    }

    fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(numbers) => numbers[index].into(),
            Self::F16(numbers) => numbers[index].into(),
            Self::BF16(numbers) => numbers[index].into(),
            Self::Q8(rows, head_dim) => {
                let row = &rows[index / head_dim * row_bytes(*head_dim)..][..row_bytes(*head_dim)];
                let mut numbers = vec![0.0; *head_dim];
                unpack_row(row, &mut numbers);
                numbers[index % head_dim].into()
            }
        }
    }

    fn all(&self) -> Vec<f64> {
        let len = match self {
            Self::F32(numbers) => numbers.len(),
            Self::F16(numbers) => numbers.len(),
            Self::BF16(numbers) => numbers.len(),
            Self::Q8(rows, head_dim) => rows.len() / row_bytes(*head_dim) * head_dim,
        };
        (0..len).map(|i| self.get(i)).collect()
    }

    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::F32(numbers) => numbers.as_mut_ptr().cast(),
            Self::F16(numbers) => numbers.as_mut_ptr().cast(),
            Self::BF16(numbers) => numbers.as_mut_ptr().cast(),
            Self::Q8(rows, _) => rows.as_mut_ptr().cast(),
        }
    }
}

/// The decoding state of a session, as the kernels have it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Step {
    token: u32,
    stop: u32,
    left: u32,
    count: u32,
    fault: u32,
    fault_token: u32,
}

impl Step {
    /// A step that runs.
    fn ready() -> Self {
        Self {
            left: 9,
            ..Self::default()
        }
    }

    /// Steps at which no kernel may do anything.
    fn ended() -> [Self; 3] {
        let ready = Self::ready();
        [
            Self { stop: 1, ..ready },
            Self { fault: 2, ..ready },
            Self { left: 0, ..ready },
        ]
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LayerState {
    len: u32,
    cursor: u32,
    window: u32,
    first_row: u32,
}

/// A launch in the making: arguments in the order of the kernel's comment.
struct Launch {
    name: String,
    grid: [u32; 3],
    block: u32,
    shared: usize,
    arguments: Vec<[u8; 8]>,
}

impl Launch {
    fn new(name: impl Into<String>, grid: [usize; 3], block: u32) -> Self {
        Self {
            name: name.into(),
            grid: grid.map(|n| n as u32),
            block,
            shared: 0,
            arguments: Vec::new(),
        }
    }

    fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes;
        self
    }

    fn number(mut self, number: usize) -> Self {
        self.arguments.push((number as u64).to_ne_bytes());
        self
    }

    fn float(mut self, number: f32) -> Self {
        self.arguments
            .push(u64::from(number.to_bits()).to_ne_bytes());
        self
    }

    fn pointer(mut self, pointer: *mut c_void) -> Self {
        self.arguments.push((pointer as usize as u64).to_ne_bytes());
        self
    }

    fn buffer<T>(self, buffer: &mut [T]) -> Self {
        self.pointer(buffer.as_mut_ptr().cast())
    }

    fn state<T>(self, state: &mut T) -> Self {
        self.pointer(std::ptr::from_mut(state).cast())
    }

    /// Null for `None`.
    fn optional<T>(self, buffer: Option<&mut Vec<T>>) -> Self {
        match buffer {
            Some(buffer) => self.buffer(buffer),
            None => self.pointer(std::ptr::null_mut()),
        }
    }

    fn run(mut self, order: u32) {
        let pointers = self.arguments.iter_mut().map(|a| a.as_mut_ptr().cast());
        let mut arguments = pointers.collect::<Vec<*mut c_void>>();
        let (grid, block, shared) = (self.grid, self.block, self.shared as u32);
        // SAFETY: each test gives what the comment in front of the kernel asks for, in buffers that outlive the launch.
        let launched = unsafe {
            kernels_on_cpu::launch(&self.name, grid, block, shared, &mut arguments, order, 1)
        };
        launched.unwrap();
    }
}

/// The orders of threads and blocks that results may not depend on.
const ORDERS: [u32; 4] = [0, 1, 2, 3];

/// Numbers that repeat with the seed.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    /// `0..n` in a random order.
    fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order = (0..n as u32).collect::<Vec<_>>();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The distance of `got` from `want` over the length of `want`.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let distance = got
        .iter()
        .zip(want)
        .map(|(&a, b)| (f64::from(a) - b).powi(2));
    let length = want.iter().map(|x| x * x).sum::<f64>();
    (distance.sum::<f64>() / length).sqrt()
}

/// The norm's factor for all of `x`.
fn rms_factor(x: &[f64], eps: f32) -> f64 {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    1.0 / (mean + f64::from(eps)).sqrt()
}

/// `gain * rms_norm(x)`.
fn rms_norm(x: &[f64], gain: &[f32], eps: f32) -> Vec<f64> {
    let by = rms_factor(x, eps);
    let pairs = x.iter().zip(gain);
    pairs.map(|(x, &gain)| x * by * f64::from(gain)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}
