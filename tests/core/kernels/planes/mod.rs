//! Matrices of small integers times one vector, and as floats.
//!
//! - this file: the kernels
//! - `matrix`: what they are given

mod matrix;

use half::f16;

use matrix::{Planes, Rounded, FORMATS};

use super::products::{gain, same_everywhere, EPS};
use super::{off, rms_factor, wide, Launch, Random, Step, ORDERS};

/// Fails where products are not those of the rounded input, or farther from those of the input itself than rounding explains.
fn check(name: &str, got: &[f32], planes: &Planes, (x, gain): (&[f32], Option<&[f32]>)) {
    let products = planes.products(&Rounded::of(x, gain));
    let wanted = products.iter().map(|(sum, _)| *sum).collect::<Vec<_>>();
    let off = off(got, &wanted);
    assert!(off < 1e-5, "{name}: off by {off:.1e}");
    let by = gain.map_or(1.0, |_| rms_factor(&wide(x), EPS));
    let exact = |i: usize| by * f64::from(x[i]) * gain.map_or(1.0, |gain| gain[i].into());
    let exact = (0..x.len()).map(exact).collect::<Vec<_>>();
    let weights = planes.weights();
    let rows = weights.chunks_exact(planes.width).zip(&products);
    for (row, (&got, (row_weights, (_, bound)))) in got.iter().zip(rows).enumerate() {
        let terms = row_weights.iter().zip(&exact);
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (&w, x)| {
            (sum + f64::from(w) * x, size + (f64::from(w) * x).abs())
        });
        let distance = (f64::from(got) - sum).abs();
        let most = bound * 1.0001 + 1e-5 * size;
        assert!(distance <= most, "{name}, row {row}: {distance} > {most}");
    }
}

fn shared(width: usize) -> usize {
    width / 2 * 3
}

#[test]
fn a_projection_of_integers_is_added_to_the_residual() {
    for format in FORMATS {
        for (n, &(width, rows)) in format.sizes().iter().enumerate() {
            let mut random = Random(n as u64);
            let a = random.numbers(width);
            let residual = random.numbers(rows);
            let planes = Planes::random(&mut random, format, rows, width);
            let bias = (n % 2 == 1).then(|| random.numbers(rows));
            let got = same_everywhere(shared(width), |blocks, block, shared, order| {
                let (mut a, mut x, mut bias) = (a.clone(), residual.clone(), bias.clone());
                let mut step = Step::ready();
                let launch = Launch::new("matvec_add_planes", [blocks, 1, 1], block).shared(shared);
                // Without a step there is none that has ended.
                let launch = match order % 2 {
                    0 => launch.state(&mut step),
                    _ => launch.pointer(std::ptr::null_mut()),
                };
                planes
                    .clone()
                    .give(launch.buffer(&mut a))
                    .optional(bias.as_mut())
                    .number(rows)
                    .number(width)
                    .buffer(&mut x)
                    .run(order);
                x
            });
            let products = (0..rows).map(|i| {
                let bias = bias.as_ref().map_or(0.0, |bias| bias[i]);
                got[i] - residual[i] - bias
            });
            let name = format!("{format:?} {width} {rows}");
            let products = products.collect::<Vec<_>>();
            let wanted = planes.products(&Rounded::of(&a, None));
            let wanted = (0..rows).map(|i| {
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
                wanted[i].0 + f64::from(residual[i]) + bias
            });
            let off = off(&got, &wanted.collect::<Vec<_>>());
            assert!(off < 1e-5, "{name}: off by {off:.1e}");
            if bias.is_none() && rows > 1 {
                let mut plain = vec![0.0; rows];
                let launch = Launch::new("matvec_add_planes", [1, 1, 1], 64).shared(shared(width));
                planes
                    .clone()
                    .give(launch.state(&mut Step::ready()).buffer(&mut a.clone()))
                    .optional::<f32>(None)
                    .number(rows)
                    .number(width)
                    .buffer(&mut plain)
                    .run(0);
                check(&name, &plain, &planes, (&a, None));
                assert_eq!(products.len(), plain.len());
            }
        }
    }
}

#[test]
fn queries_keys_and_values_of_different_formats_are_products_of_one_normed_input() {
    for (n, format) in FORMATS.into_iter().enumerate() {
        // As files of Q4_K_M have it: values of more bits.
        let formats = [format, FORMATS[(n + 1) % 8], FORMATS[(n + 3) % 8]];
        for (width, rows) in [(256, [5, 3, 2]), (2304, [4, 1, 7])] {
            let mut random = Random(n as u64);
            let x = random.numbers(width);
            let gain = gain(&mut random, width);
            let pairs = formats.into_iter().zip(rows);
            let matrices =
                pairs.map(|(format, rows)| Planes::random(&mut random, format, rows, width));
            let matrices = matrices.collect::<Vec<_>>();
            let biases = rows.map(|rows| (n % 2 == 0).then(|| random.numbers(rows)));
            let got = same_everywhere(shared(width), |blocks, block, shared, order| {
                let mut out = vec![f32::NAN; rows.iter().sum()];
                let (mut x, mut gain) = (x.clone(), gain.clone());
                let (mut matrices, mut biases) = (matrices.clone(), biases.clone());
                let mut step = Step::ready();
                let mut launch = Launch::new("norm_qkv_planes", [blocks, 1, 1], block)
                    .shared(shared)
                    .state(&mut step)
                    .buffer(&mut x)
                    .buffer(&mut gain)
                    .float(EPS);
                for planes in &mut matrices {
                    launch = planes.give(launch);
                }
                for bias in &mut biases {
                    launch = launch.optional(bias.as_mut());
                }
                for rows in rows {
                    launch = launch.number(rows);
                }
                launch.number(width).buffer(&mut out).run(order);
                out
            });
            let mut at = 0;
            for (planes, bias) in matrices.iter().zip(&biases) {
                let part = got[at..at + planes.rows].iter().enumerate();
                let part = part.map(|(i, y)| y - bias.as_ref().map_or(0.0, |bias| bias[i]));
                let name = format!("{:?} {width}", planes.format);
                if planes.rows > 1 {
                    check(&name, &part.collect::<Vec<_>>(), planes, (&x, Some(&gain)));
                }
                at += planes.rows;
            }
        }
    }
}

#[test]
fn the_gated_unit_takes_two_formats() {
    for (n, format) in FORMATS.into_iter().enumerate() {
        let formats = [format, FORMATS[(n + 5) % 8]];
        let (width, rows) = (768, 9);
        let mut random = Random(n as u64);
        let x = random.numbers(width);
        let gain = gain(&mut random, width);
        let matrices = formats.map(|format| Planes::random(&mut random, format, rows, width));
        let biases = [n % 2 == 0, n % 4 == 0].map(|there| there.then(|| random.numbers(rows)));
        let got = same_everywhere(shared(width), |blocks, block, shared, order| {
            let (mut x, mut gain) = (x.clone(), gain.clone());
            let ([mut gate, mut up], [mut gate_bias, mut up_bias]) =
                (matrices.clone(), biases.clone());
            let mut h = vec![f32::NAN; rows];
            let mut step = Step::ready();
            let launch = Launch::new("norm_gate_up_planes", [blocks, 1, 1], block)
                .shared(shared)
                .state(&mut step)
                .buffer(&mut x)
                .buffer(&mut gain)
                .float(EPS);
            up.give(gate.give(launch))
                .optional(gate_bias.as_mut())
                .optional(up_bias.as_mut())
                .number(rows)
                .number(width)
                .buffer(&mut h)
                .run(order);
            h
        });
        let input = Rounded::of(&x, Some(&gain));
        let [gate, up] = [0, 1].map(|i| {
            let bias = |row: usize| biases[i].as_ref().map_or(0.0, |bias| f64::from(bias[row]));
            let products = matrices[i].products(&input).into_iter().enumerate();
            products
                .map(|(row, (sum, _))| sum + bias(row))
                .collect::<Vec<_>>()
        });
        let wanted = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u);
        let off = off(&got, &wanted.collect::<Vec<_>>());
        assert!(off < 1e-5, "{formats:?}: off by {off:.1e}");
    }
}

#[test]
fn logits_of_integers_and_the_best_of_them() {
    for (n, format) in FORMATS.into_iter().enumerate() {
        let (width, vocab) = (512, 75);
        let mut random = Random(n as u64);
        let x = random.numbers(width);
        let gain = gain(&mut random, width);
        let planes = Planes::random(&mut random, format, vocab, width);
        let run = |blocks: usize, block: u32, shared: usize, order: u32| {
            let mut logits = vec![f32::NAN; vocab];
            let mut best = vec![0u128; blocks];
            let (mut x, mut gain, mut planes) = (x.clone(), gain.clone(), planes.clone());
            let mut step = Step::ready();
            let launch = Launch::new("norm_lm_head_planes", [blocks, 1, 1], block)
                .shared(shared)
                .state(&mut step)
                .buffer(&mut x)
                .buffer(&mut gain)
                .float(EPS);
            planes
                .give(launch)
                .pointer(std::ptr::null_mut())
                .number(vocab)
                .number(width)
                .buffer(&mut logits)
                .buffer(&mut best)
                .run(order);
            let words = best
                .iter()
                .map(|best| (f32::from_bits(*best as u32), (best >> 32) as u32));
            let best = words.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            assert_eq!(logits[best.1 as usize], best.0, "{format:?}");
            assert!(logits.iter().all(|logit| *logit <= best.0), "{format:?}");
            logits
        };
        let logits = run(3, 64, shared(width), 0);
        for (order, (blocks, block)) in
            ORDERS
                .into_iter()
                .zip([(1, 32), (2, 128), (5, 64), (2, 256)])
        {
            assert_eq!(
                run(blocks, block, shared(width), order),
                logits,
                "{format:?}, order {order}"
            );
        }
        check(&format!("{format:?}"), &logits, &planes, (&x, Some(&gain)));
    }
}

#[test]
fn embeddings_and_widened_rows_are_the_stored_numbers() {
    for format in FORMATS {
        let (width, rows) = (768, 9);
        let mut planes = Planes::random(&mut Random(3), format, rows, width);
        let weights = planes.weights();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for order in ORDERS {
            let token = 2 * order as usize;
            let mut x = vec![f32::NAN; width];
            let mut step = Step {
                token: token as u32,
                ..Step::ready()
            };
            let launch = Launch::new("embed_planes", [2, 1, 1], 64).state(&mut step);
            let launch = planes.give(launch).number(rows).number(width);
            launch.buffer(&mut x).run(order);
            assert_eq!(
                bits(&x),
                bits(&weights[token * width..][..width]),
                "{format:?}"
            );

            let mut out = vec![f32::NAN; 4 * width];
            let widen = |planes: &mut Planes, blocks: usize| {
                let launch = Launch::new("widen_planes", [blocks, 1, 1], 96);
                planes.give(launch).number(rows).number(width)
            };
            let launch = widen(&mut planes, 3)
                .optional::<u32>(None)
                .number(5)
                .number(4);
            launch.number(0).buffer(&mut out).run(order);
            assert_eq!(bits(&out), bits(&weights[5 * width..]), "{format:?}");

            let mut ids = vec![8u32, 0, 3, 3];
            let launch = widen(&mut planes, 1).buffer(&mut ids).number(0).number(4);
            let mut halves = vec![f16::NAN; 4 * width];
            launch.number(1).buffer(&mut halves).run(order);
            for (row, id) in halves.chunks_exact(width).zip(ids) {
                let stored = weights[id as usize * width..][..width].iter();
                assert!(row.iter().zip(stored).all(|(a, &b)| *a == f16::from_f32(b)));
            }
        }
    }
}

#[test]
fn an_input_that_is_not_finite_is_seen_and_a_tiny_one_is_zero() {
    let (width, rows) = (96, 6);
    for format in FORMATS
        .into_iter()
        .filter(|format| (format.scales as usize) < 2)
    {
        let mut planes = Planes::random(&mut Random(1), format, rows, width);
        let mut product = |a: &mut Vec<f32>| -> Vec<f32> {
            let mut x = vec![0.0; rows];
            let launch = Launch::new("matvec_add_planes", [1, 1, 1], 64).shared(shared(width));
            let mut step = Step::ready();
            let launch = planes.give(launch.state(&mut step).buffer(a));
            let launch = launch.optional::<f32>(None).number(rows).number(width);
            launch.buffer(&mut x).run(0);
            x
        };
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut a = Random(2).numbers(width);
            a[40] = bad;
            let x = product(&mut a);
            assert!(x.iter().all(|x| !x.is_finite()), "{format:?}, {bad}: {x:?}");
        }
        for tiny in [0.0, 1e-44, 1e-38, -1e-36] {
            let x = product(&mut vec![tiny; width]);
            assert!(
                x.iter().all(|x| x.abs() < 1e-30),
                "{format:?}, {tiny}: {x:?}"
            );
        }
    }
}

#[test]
fn an_ended_step_multiplies_nothing() {
    let (width, rows) = (256, 4);
    let mut planes = Planes::random(&mut Random(1), FORMATS[0], rows, width);
    for mut step in Step::ended() {
        let (mut a, mut x) = (vec![1.0f32; width], vec![7.0f32; width]);
        let launch = Launch::new("matvec_add_planes", [1, 1, 1], 64).shared(shared(width));
        let launch = planes.give(launch.state(&mut step).buffer(&mut a));
        let launch = launch.optional::<f32>(None).number(rows).number(width);
        launch.buffer(&mut x).run(0);
        let launch = Launch::new("embed_planes", [1, 1, 1], 64).state(&mut step);
        let launch = planes.give(launch).number(rows).number(width);
        launch.buffer(&mut x).run(0);
        assert!(x.iter().all(|x| *x == 7.0));
    }
}
