//! Blocks of ggml taken apart: which bytes of a block mean what is from its `ggml-common.h` and `ggml-quants.c`.

use candle_core::quantized::GgmlDType;
use candle_core::{bail, Result};
use rayon::prelude::*;

use super::{PlaneFormat, Scales, GROUP, SUPER_GROUP};

/// A row in each of the planes.
struct Row<'a> {
    quants: &'a mut [u8],
    more: &'a mut [u8],
    scales: &'a mut [u8],
    supers: &'a mut [u8],
}

/// The planes of a matrix `[rows, width]` whose blocks are `bytes`, padded to 16 bytes; an error if they are not as many as that.
pub fn repack(format: PlaneFormat, bytes: &[u8], (rows, width): (usize, usize)) -> Result<Vec<u8>> {
    let (block, size) = (format.blocks.block_size(), format.blocks.type_size());
    if rows == 0 || width == 0 || !width.is_multiple_of(block) {
        bail!("rows of [{rows}, {width}] in blocks of {block}");
    }
    let row_bytes = width / block * size;
    if bytes.len() != rows * row_bytes {
        bail!(
            "{} bytes of blocks for [{rows}, {width}], expected {}",
            bytes.len(),
            rows * row_bytes
        );
    }
    let planes = format.planes(rows, width);
    let mut out = vec![0u8; planes[3].end.next_multiple_of(16)];
    let mut rest = out.as_mut_slice();
    let mut start = 0;
    let [quants, more, scales, supers] = planes.map(|plane| {
        let (_, from) = std::mem::take(&mut rest).split_at_mut(plane.start - start);
        let (these, behind) = from.split_at_mut(plane.len());
        (rest, start) = (behind, plane.end);
        rows_of(these, rows)
    });
    let parts = quants.into_iter().zip(more).zip(scales).zip(supers);
    let parts = parts.map(|(((quants, more), scales), supers)| Row {
        quants,
        more,
        scales,
        supers,
    });
    let parts = parts.collect::<Vec<_>>();
    let parts = parts.into_par_iter().zip(bytes.par_chunks_exact(row_bytes));
    parts.for_each(|(mut row, bytes)| {
        for (i, bytes) in bytes.chunks_exact(size).enumerate() {
            row.put(format, i, bytes);
        }
    });
    Ok(out)
}

/// A plane in equal parts, which may all be empty.
fn rows_of(plane: &mut [u8], rows: usize) -> Vec<&mut [u8]> {
    match plane.len() / rows {
        0 => (0..rows).map(|_| Default::default()).collect(),
        bytes => plane.chunks_exact_mut(bytes).collect(),
    }
}

impl Row<'_> {
    /// The row's `i`-th block.
    fn put(&mut self, format: PlaneFormat, i: usize, block: &[u8]) {
        let weights = format.blocks.block_size();
        let mut q = [0u8; SUPER_GROUP];
        let q = &mut q[..weights];
        integers(format.blocks, block, q);
        let groups = weights / GROUP;
        for (g, q) in q.chunks_exact(GROUP).enumerate() {
            let at = i * groups + g;
            let more = 4 * (format.bits - 4);
            let (quants, more) = (
                &mut self.quants[16 * at..][..16],
                &mut self.more[more * at..][..more],
            );
            pack(format.bits, q, quants, more);
        }
        let of_block = groups * format.scales.bytes();
        let scales = &mut self.scales[i * of_block..][..of_block];
        match format.scales {
            Scales::One | Scales::Pair => scales.copy_from_slice(&block[..of_block]),
            Scales::Halves => {
                scales.copy_from_slice(&block[192..208]);
                self.supers[2 * i..][..2].copy_from_slice(&block[208..210]);
            }
            Scales::Super => {
                let packed = &block[4..16];
                let mut upper = 0u32;
                for (g, to) in scales.iter_mut().enumerate() {
                    let (s, m) = scale_and_minimum(packed, g);
                    *to = (s & 15) | (m & 15) << 4;
                    upper |= u32::from(s >> 4 | m >> 4 << 2) << (4 * g);
                }
                let supers = &mut self.supers[8 * i..][..8];
                supers[..4].copy_from_slice(&block[..4]);
                supers[4..].copy_from_slice(&upper.to_le_bytes());
            }
        }
    }
}

/// The integers of a block: with 8 bits they have a sign, else none.
pub fn integers(blocks: GgmlDType, block: &[u8], q: &mut [u8]) {
    let bit = |word: &[u8], i: usize| word[i / 8] >> (i % 8) & 1;
    match blocks {
        GgmlDType::Q4_0 => nibbles(&block[2..], q),
        GgmlDType::Q4_1 => nibbles(&block[4..], q),
        GgmlDType::Q5_0 | GgmlDType::Q5_1 => {
            let (fifth, low) = match blocks {
                GgmlDType::Q5_0 => block[2..].split_at(4),
                _ => block[4..].split_at(4),
            };
            nibbles(low, q);
            for (i, q) in q.iter_mut().enumerate() {
                *q |= bit(fifth, i) << 4;
            }
        }
        GgmlDType::Q8_0 => q.copy_from_slice(&block[2..]),
        GgmlDType::Q4K => {
            for (from, q) in block[16..].chunks_exact(32).zip(q.chunks_exact_mut(64)) {
                nibbles(from, q);
            }
        }
        GgmlDType::Q5K => {
            let (fifth, low) = block[16..].split_at(32);
            let parts = low.chunks_exact(32).zip(q.chunks_exact_mut(64));
            for (j, (from, q)) in parts.enumerate() {
                nibbles(from, q);
                for (i, q) in q.iter_mut().enumerate() {
                    *q |= (fifth[i % 32] >> (2 * j + i / 32) & 1) << 4;
                }
            }
        }
        _ => {
            // Q6_K: of each half of a block 64 bytes of nibbles and 32 of pairs.
            let (low, upper) = block[..192].split_at(128);
            let halves = low.chunks_exact(64).zip(upper.chunks_exact(32));
            for ((low, upper), q) in halves.zip(q.chunks_exact_mut(128)) {
                nibbles(low, q);
                for (i, q) in q.iter_mut().enumerate() {
                    *q |= (upper[i % 32] >> (i / 32 * 2) & 3) << 4;
                }
            }
        }
    }
}

/// The lower nibbles of all bytes, then the upper ones.
fn nibbles(from: &[u8], to: &mut [u8]) {
    let (low, high) = to.split_at_mut(from.len());
    for ((&byte, low), high) in from.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Scale and minimum of a group of 32 in a block of Q4_K or Q5_K, 6 bits each, out of the 12 bytes that hold all.
pub fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    }
}

/// A group of integers into its place in the planes, see `kernels/planes.cuh`.
fn pack(bits: usize, q: &[u8], quants: &mut [u8], more: &mut [u8]) {
    let (first, second) = q.split_at(GROUP / 2);
    if bits == 8 {
        quants.copy_from_slice(first);
        more.copy_from_slice(second);
        return;
    }
    for ((to, low), high) in quants.iter_mut().zip(first).zip(second) {
        *to = (low & 15) | (high & 15) << 4;
    }
    let upper = bits - 4;
    // Of weight 4 k + b, of each half where there are two words.
    let of_word = if upper == 1 { GROUP } else { GROUP / 2 };
    for (word, q) in more.chunks_exact_mut(4).zip(q.chunks_exact(of_word)) {
        let place = |i: usize| 8 * (i % 4) + upper * (i / 4);
        let all = q.iter().enumerate();
        let all = all.fold(0u32, |all, (i, q)| all | u32::from(q >> 4) << place(i));
        word.copy_from_slice(&all.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_take_as_many_bytes_as_blocks() {
        for blocks in [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ] {
            let format = PlaneFormat::of(blocks).unwrap();
            let (rows, width) = (8, 512);
            let bytes = rows * width / blocks.block_size() * blocks.type_size();
            let planes = repack(format, &vec![0; bytes], (rows, width)).unwrap();
            assert_eq!(planes.len(), bytes, "{blocks:?}");
        }
        for blocks in [GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::F16] {
            assert_eq!(PlaneFormat::of(blocks), None);
        }
    }

    #[test]
    fn blocks_that_do_not_fill_the_rows_are_refused() {
        let format = PlaneFormat::of(GgmlDType::Q4K).unwrap();
        let refused = |bytes: usize, shape| {
            let error = repack(format, &vec![0; bytes], shape).unwrap_err();
            error.to_string()
        };
        let error = refused(144 * 4 - 1, (2, 512));
        assert!(
            error.contains("575 bytes") && error.contains("expected 576"),
            "{error}"
        );
        let error = refused(144, (1, 288));
        assert!(error.contains("[1, 288] in blocks of 256"), "{error}");
        assert!(refused(0, (0, 256)).contains("[0, 256]"));
    }
}
