//! Matrices of blocks that several tests multiply with.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::Device;
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Every kind of blocks that there are products for, on a GPU and on the CPU.
pub const KINDS: [GgmlDType; 8] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Any blocks with finite scales.
pub fn any_blocks(kind: GgmlDType, (rows, width): (usize, usize), seed: u64) -> QTensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let size = kind.type_size();
    let mut bytes = vec![0u8; rows * width / kind.block_size() * size];
    rng.fill(bytes.as_mut_slice());
    let scales: &[usize] = match kind {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q6K => &[208],
        _ => &[0, 2],
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in scales {
            let scale = f16::from_f32(rng.random_range(-0.01..0.01));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, kind).unwrap();
    QTensor::new(storage, (rows, width)).unwrap()
}
