//! A frame's picture: resized, in a square, and as values.

use super::{Kind, Launch, Random, Stored, ORDERS};

const THREADS: usize = 256;

fn launch(kernel: &str, across: usize, down: usize) -> Launch {
    Launch::new(kernel, [across.div_ceil(THREADS), down, 1], THREADS as u32)
}

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.below(256) as u8).collect()
}

/// Weights of so many pixels made of `from`, with negative ones and sums beyond the scale among them; `[made, 2 + most]`.
fn taps(random: &mut Random, from: usize, made: usize, most: usize, bits: u32) -> Vec<i32> {
    let mut table = Vec::new();
    for _ in 0..made {
        let count = 1 + random.below(most.min(from));
        let first = random.below(from - count + 1);
        let weight = |random: &mut Random| (random.number() * (1 << bits) as f32) as i32;
        let mut weights = (0..count).map(|_| weight(random)).collect::<Vec<_>>();
        weights.resize(most, i32::MAX);
        table.extend([first as i32, count as i32]);
        table.extend(weights);
    }
    table
}

/// The weighted sum of what `at` gives for each pixel that a made one is made of.
fn made(row: &[i32], bits: u32, at: impl Fn(usize) -> u8) -> u8 {
    let (first, count) = (row[0] as usize, row[1] as usize);
    let sum = (0..count).map(|i| i64::from(at(first + i)) * i64::from(row[2 + i]));
    let sum = sum.sum::<i64>() + (1 << (bits - 1));
    (sum >> bits).clamp(0, 255) as u8
}

#[test]
fn resizing_is_the_same_sum_in_whole_numbers() {
    let mut random = Random(5);
    for (width, height, to, most, bits) in [
        (1, 1, 1, 1, 14),
        (7, 5, 300, 3, 15),
        (300, 3, 9, 40, 20),
        (90, 70, 257, 6, 12),
    ] {
        let picture = bytes(&mut random, width * height * 3);
        let across = taps(&mut random, width, to, most, bits);
        let down = taps(&mut random, height, to, most, bits);
        let row = |table: &[i32], i: usize| table[i * (2 + most)..][..2 + most].to_vec();
        for order in ORDERS {
            let mut out = vec![77; height * to * 3];
            launch("resize_across", to, height)
                .buffer(&mut picture.clone())
                .number(width)
                .buffer(&mut across.clone())
                .number(most)
                .number(bits as usize)
                .number(to)
                .buffer(&mut out)
                .run(order);
            for (i, &got) in out.iter().enumerate() {
                let (y, x, c) = (i / 3 / to, i / 3 % to, i % 3);
                let at = |from: usize| picture[(y * width + from) * 3 + c];
                assert_eq!(got, made(&row(&across, x), bits, at), "across, {i}");
            }
            let mut out = vec![77; to * width * 3];
            launch("resize_down", width * 3, to)
                .buffer(&mut picture.clone())
                .number(width)
                .buffer(&mut down.clone())
                .number(most)
                .number(bits as usize)
                .buffer(&mut out)
                .run(order);
            for (i, &got) in out.iter().enumerate() {
                let (y, at) = (i / 3 / width, i % (3 * width));
                let at = |from: usize| picture[from * width * 3 + at];
                assert_eq!(got, made(&row(&down, y), bits, at), "down, {i}");
            }
        }
    }
}

#[test]
fn a_picture_stands_in_the_middle_of_its_square() {
    let mut random = Random(6);
    for (width, height) in [(1, 1), (5, 2), (2, 5), (300, 299)] {
        let picture = bytes(&mut random, width * height * 3);
        let side = width.max(height);
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        for order in ORDERS {
            let mut out = vec![77; side * side * 3];
            launch("frame_square", side, side)
                .buffer(&mut picture.clone())
                .number(width)
                .number(height)
                .number(1)
                .number(2)
                .number(3)
                .buffer(&mut out)
                .run(order);
            for (i, &got) in out.iter().enumerate() {
                let (y, x, c) = (i / 3 / side, i / 3 % side, i % 3);
                let inside = (left..left + width).contains(&x) && (top..top + height).contains(&y);
                let want = match inside {
                    true => picture[((y - top) * width + x - left) * 3 + c],
                    false => c as u8 + 1,
                };
                assert_eq!(got, want, "{width} x {height}, {i}");
            }
        }
    }
}

#[test]
fn values_stand_patch_by_patch_square_by_square() {
    let mut random = Random(7);
    let (mean, deviation, scale) = ([0.4f32, 0.5, 0.6], [0.2f32, 0.3, 0.25], 1.0f32 / 255.0);
    // Patches down and across, height and width of one, side of a square, repetitions.
    for (down, across, height, width, merge, repeat) in
        [(1, 1, 5, 300, 1, 1), (4, 6, 3, 3, 2, 2), (3, 9, 2, 2, 3, 1)]
    {
        let mut picture = bytes(&mut random, down * height * across * width * 3);
        for kind in Kind::ALL {
            let mut want = Vec::new();
            let squares = (0..down / merge).flat_map(|y| (0..across / merge).map(move |x| (y, x)));
            for (y, x) in squares {
                for i in 0..merge * merge {
                    let (row, column) = (y * merge + i / merge, x * merge + i % merge);
                    for c in 0..3 {
                        for _ in 0..repeat {
                            for at in 0..height * width {
                                let (y, x) =
                                    (row * height + at / width, column * width + at % width);
                                let byte = picture[(y * across * width + x) * 3 + c];
                                want.push((f32::from(byte) * scale - mean[c]) / deviation[c]);
                            }
                        }
                    }
                }
            }
            let want = Stored::new(kind, &want).all();
            for order in ORDERS {
                let mut out = Stored::new(kind, &vec![f32::NAN; want.len()]);
                let mut launch = launch("frame_values", across * width, down * height)
                    .buffer(&mut picture)
                    .number(across * width)
                    .number(height)
                    .number(width)
                    .number(merge)
                    .number(repeat)
                    .float(scale);
                for number in mean.into_iter().chain(deviation) {
                    launch = launch.float(number);
                }
                launch
                    .pointer(out.pointer())
                    .number(kind as usize)
                    .run(order);
                for (got, want) in out.all().iter().zip(&want) {
                    // The last place that is stored, where a compiler rounds once less.
                    assert!(
                        (got - want).abs() <= 0.01 * want.abs() + 1e-6,
                        "{got} {want}"
                    );
                }
            }
        }
    }
}
