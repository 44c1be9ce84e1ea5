//! What blocks take in memory beside themselves once they are multiplied with on the CPU.
//!
//! candle 0.11.1 lays blocks out again for its kernels at their first product and keeps the original (its `quantized/repack.rs` and
//! `quantized/repack_x86.rs`, from which the sizes here are): on x86 with scales and minima widened to f32.

use candle_core::quantized::GgmlDType;

/// Weights in a block of the K-quants, and columns that a kernel takes.
const SUPER_BLOCK: usize = 256;

/// The instructions that the choice of kernels depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Processor {
    /// AVX2 with FMA; `vnni`: products of bytes too.
    X86 {
        vnni: bool,
        /// Products of matrices of bytes, on top of AVX-512.
        amx: bool,
    },
    /// `dotprod`
    Arm,
    /// No kernel of its own.
    Other,
}

/// Bytes that a matrix of `blocks` with `rows` rows of `width` takes beside its blocks, once single tokens have been multiplied with it
/// on this machine's CPU, and chunks of many tokens too if `chunks`.
pub fn repacked_bytes(blocks: GgmlDType, shape: (usize, usize), chunks: bool) -> usize {
    match blocks {
        // On x86 single rows are multiplied with the blocks as they are.
        GgmlDType::Q6K if !chunks && cfg!(target_arch = "x86_64") => 0,
        _ => of_processor(blocks, shape, processor()),
    }
}

fn of_processor(blocks: GgmlDType, (rows, width): (usize, usize), processor: Processor) -> usize {
    let plain = rows * width / blocks.block_size() * blocks.type_size();
    match processor {
        Processor::X86 { vnni, amx }
            if rows.is_multiple_of(16) && width.is_multiple_of(SUPER_BLOCK) =>
        {
            let blocks_of_256 = rows * width / SUPER_BLOCK;
            match blocks {
                // 8 scales and 8 minima; of the two layouts one has a nibble for a weight, the other a byte.
                GgmlDType::Q4K if amx => blocks_of_256 * (64 + 128 + 64 + 256),
                GgmlDType::Q4K => blocks_of_256 * (64 + 128),
                // 16 scales, and a byte for a weight.
                GgmlDType::Q6K => blocks_of_256 * (64 + 256),
                GgmlDType::Q8_0 if vnni => plain,
                _ => 0,
            }
        }
        Processor::Arm => match blocks {
            GgmlDType::Q4_0 | GgmlDType::Q8_0 if rows.is_multiple_of(4) => plain,
            GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K if rows.is_multiple_of(8) => plain,
            _ => 0,
        },
        _ => 0,
    }
}

fn processor() -> Processor {
    match has_dot_products() {
        true => Processor::Arm,
        false => x86().unwrap_or(Processor::Other),
    }
}

#[cfg(target_arch = "aarch64")]
fn has_dot_products() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

#[cfg(not(target_arch = "aarch64"))]
fn has_dot_products() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn x86() -> Option<Processor> {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
    let avx2 = is_x86_feature_detected!("avx2");
    let fits = avx512 || (avx2 && is_x86_feature_detected!("fma"));
    // CPUID leaf 7: EDX bits 24 (AMX-TILE) and 25 (AMX-INT8). Newer compilers call it safe.
    // SAFETY: a processor with AVX2 has CPUID and its leaf 7, where AVX2 itself is told.
    #[allow(unused_unsafe)]
    let edx = || unsafe { std::arch::x86_64::__cpuid_count(7, 0) }.edx;
    fits.then(|| Processor::X86 {
        vnni: avx512 || (avx2 && is_x86_feature_detected!("avxvnni")),
        amx: avx512 && edx() >> 24 & 3 == 3,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn x86() -> Option<Processor> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_quants_more_than_double_on_x86_and_double_on_arm() {
        let shape = (64, 512);
        let plain = 64 * 2 * 144;
        let x86 = Processor::X86 {
            vnni: false,
            amx: false,
        };
        let total = plain + of_processor(GgmlDType::Q4K, shape, x86);
        assert_eq!(total * 3, plain * 7, "7/3 of its size");
        assert_eq!(of_processor(GgmlDType::Q4K, shape, Processor::Arm), plain);
        assert_eq!(of_processor(GgmlDType::Q4K, shape, Processor::Other), 0);
    }

    #[test]
    fn what_a_kernel_does_not_take_stays_as_it_is() {
        let x86 = Processor::X86 {
            vnni: false,
            amx: false,
        };
        for (blocks, shape) in [
            (GgmlDType::Q4K, (63, 512)),
            (GgmlDType::Q8_0, (64, 512)),
            (GgmlDType::Q5_0, (64, 512)),
            (GgmlDType::Q8_0, (64, 288)),
        ] {
            assert_eq!(of_processor(blocks, shape, x86), 0, "{blocks:?}");
        }
        let vnni = Processor::X86 {
            vnni: true,
            amx: false,
        };
        assert_eq!(of_processor(GgmlDType::Q8_0, (64, 512), vnni), 64 * 16 * 34);
    }
}
