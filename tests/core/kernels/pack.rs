//! Quantised rows: the kernels give the CPU's bits, on the way there and back.

use super::quantised::row_bytes;
use super::{Kind, Launch, Random, Stored, ORDERS};

#[test]
fn rows_are_packed_and_unpacked_as_on_the_cpu_to_the_bit() {
    for head_dim in [2, 12, 30, 32, 34, 64, 80, 128, 256] {
        for (kind, count) in [(Kind::F32, 19), (Kind::F16, 8), (Kind::BF16, 1)] {
            let mut random = Random(head_dim as u64);
            // Of many magnitudes, halves of a level and groups of zeros among them.
            let numbers = (0..count * head_dim).map(|i| match i / 32 % 5 {
                0 => random.number() * 1e-3,
                1 => 0.0,
                2 => random.below(255) as f32 / 2.0 - 63.5,
                3 => random.number() * 3e4,
                _ => random.number(),
            });
            let mut numbers = Stored::new(kind, &numbers.collect::<Vec<_>>());
            let wide = numbers.all().iter().map(|&x| x as f32).collect::<Vec<_>>();
            let want = Stored::rows(Kind::Q8, &wide, head_dim);
            for order in ORDERS {
                let blocks = [count.div_ceil(4), 1, 1];
                let mut rows = Stored::Q8(vec![0; count * row_bytes(head_dim)], head_dim);
                Launch::new("pack_rows", blocks, 128)
                    .pointer(numbers.pointer())
                    .number(kind as usize)
                    .number(count)
                    .number(head_dim)
                    .pointer(rows.pointer())
                    .run(order);
                assert_eq!(rows, want, "{kind:?}, {head_dim}");
                let mut back = vec![f32::NAN; count * head_dim];
                Launch::new("unpack_rows", blocks, 128)
                    .pointer(rows.pointer())
                    .number(count)
                    .number(head_dim)
                    .buffer(&mut back)
                    .run(order);
                let back = back.into_iter().map(f64::from).collect::<Vec<_>>();
                assert_eq!(back, want.all());
            }
        }
    }
}
