//! Matrices times one vector.

use super::{off, rms_norm, wide, Kind, Launch, Random, Step, Stored, ORDERS};

pub const EPS: f32 = 1e-5;

/// A matrix `[rows, width]` with numbers of about the size that trained ones have.
fn matrix(random: &mut Random, kind: Kind, rows: usize, width: usize) -> Stored {
    let numbers = random.numbers(rows * width);
    let numbers = numbers.iter().map(|x| x * 0.2).collect::<Vec<_>>();
    Stored::new(kind, &numbers)
}

fn product(matrix: &Stored, x: &[f64], bias: Option<&Vec<f32>>) -> Vec<f64> {
    let rows = matrix.all();
    let rows = rows.chunks_exact(x.len()).enumerate();
    rows.map(|(i, row)| {
        let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
        bias + row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>()
    })
    .collect()
}

pub fn gain(random: &mut Random, width: usize) -> Vec<f32> {
    let numbers = random.numbers(width);
    numbers.iter().map(|x| 1.0 + 0.5 * x).collect()
}

/// Widths that are read 16 bytes at a time and others; rows that fill the warps' turns and others.
const SIZES: [(usize, usize); 8] = [
    (8, 1),
    (64, 16),
    (96, 37),
    (960, 40),
    (2056, 9),
    (7, 5),
    (33, 19),
    (1021, 3),
];

/// Runs in every order and on several grids, which the result may not depend on.
pub fn same_everywhere(
    shared: usize,
    run: impl Fn(usize, u32, usize, u32) -> Vec<f32>,
) -> Vec<f32> {
    let first = run(2, 64, shared, 0);
    for (order, (blocks, block)) in ORDERS
        .into_iter()
        .zip([(1, 32), (3, 64), (50, 96), (2, 256)])
    {
        let again = run(blocks, block, shared, order);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(&again),
            bits(&first),
            "{blocks} blocks of {block}, order {order}"
        );
    }
    first
}

#[test]
fn queries_keys_and_values_are_products_of_the_normed_input() {
    for kind in Kind::ALL {
        for (n, (width, rows)) in SIZES.into_iter().enumerate() {
            let mut random = Random(n as u64);
            let rows = [rows, rows / 2 + 1, rows / 3 + 1];
            let x = random.numbers(width);
            let gain = gain(&mut random, width);
            let matrices = rows.map(|rows| matrix(&mut random, kind, rows, width));
            let biases = rows.map(|rows| (n % 2 == 0).then(|| random.numbers(rows)));
            let got = same_everywhere(width * 4, |blocks, block, shared, order| {
                let mut out = vec![f32::NAN; rows.iter().sum()];
                let (mut x, mut gain) = (x.clone(), gain.clone());
                let [mut wq, mut wk, mut wv] = matrices.clone();
                let [mut bq, mut bk, mut bv] = biases.clone();
                Launch::new(format!("norm_qkv_{}", kind.name()), [blocks, 1, 1], block)
                    .shared(shared)
                    .state(&mut Step::ready())
                    .buffer(&mut x)
                    .buffer(&mut gain)
                    .float(EPS)
                    .pointer(wq.pointer())
                    .pointer(wk.pointer())
                    .pointer(wv.pointer())
                    .optional(bq.as_mut())
                    .optional(bk.as_mut())
                    .optional(bv.as_mut())
                    .number(rows[0])
                    .number(rows[1])
                    .number(rows[2])
                    .number(width)
                    .buffer(&mut out)
                    .run(order);
                out
            });
            let normed = rms_norm(&wide(&x), &gain, EPS);
            let want = matrices.iter().zip(&biases);
            let want = want.flat_map(|(matrix, bias)| product(matrix, &normed, bias.as_ref()));
            let off = off(&got, &want.collect::<Vec<_>>());
            assert!(off < 1e-5, "{kind:?} {width} {rows:?}: off by {off:.1e}");
        }
    }
}

#[test]
fn a_projection_is_added_to_the_residual() {
    for kind in Kind::ALL {
        for (n, (width, rows)) in SIZES.into_iter().enumerate() {
            let mut random = Random(n as u64);
            let a = random.numbers(width);
            let residual = random.numbers(rows);
            let weights = matrix(&mut random, kind, rows, width);
            let bias = (n % 2 == 1).then(|| random.numbers(rows));
            let got = same_everywhere(width * 4, |blocks, block, shared, order| {
                let (mut a, mut x) = (a.clone(), residual.clone());
                let (mut weights, mut bias) = (weights.clone(), bias.clone());
                Launch::new(format!("matvec_add_{}", kind.name()), [blocks, 1, 1], block)
                    .shared(shared)
                    .state(&mut Step::ready())
                    .buffer(&mut a)
                    .pointer(weights.pointer())
                    .optional(bias.as_mut())
                    .number(rows)
                    .number(width)
                    .buffer(&mut x)
                    .run(order);
                x
            });
            let want = product(&weights, &wide(&a), bias.as_ref());
            let want = want.iter().zip(wide(&residual)).map(|(y, x)| x + y);
            let off = off(&got, &want.collect::<Vec<_>>());
            assert!(off < 1e-5, "{kind:?} {width} {rows}: off by {off:.1e}");
        }
    }
}

#[test]
fn the_gated_unit_is_silu_of_one_product_times_the_other() {
    for kind in Kind::ALL {
        for (n, (width, rows)) in SIZES.into_iter().enumerate() {
            let mut random = Random(n as u64);
            let x = random.numbers(width);
            let gain = gain(&mut random, width);
            let matrices = [(); 2].map(|()| matrix(&mut random, kind, rows, width));
            let biases = [n % 2 == 0, n % 4 == 0].map(|there| there.then(|| random.numbers(rows)));
            let got = same_everywhere(width * 4, |blocks, block, shared, order| {
                let (mut x, mut gain) = (x.clone(), gain.clone());
                let [mut gate, mut up] = matrices.clone();
                let [mut gate_bias, mut up_bias] = biases.clone();
                let mut h = vec![f32::NAN; rows];
                Launch::new(
                    format!("norm_gate_up_{}", kind.name()),
                    [blocks, 1, 1],
                    block,
                )
                .shared(shared)
                .state(&mut Step::ready())
                .buffer(&mut x)
                .buffer(&mut gain)
                .float(EPS)
                .pointer(gate.pointer())
                .pointer(up.pointer())
                .optional(gate_bias.as_mut())
                .optional(up_bias.as_mut())
                .number(rows)
                .number(width)
                .buffer(&mut h)
                .run(order);
                h
            });
            let normed = rms_norm(&wide(&x), &gain, EPS);
            let [gate, up] = [0, 1].map(|i| product(&matrices[i], &normed, biases[i].as_ref()));
            let want = gate
                .iter()
                .zip(&up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u);
            let off = off(&got, &want.collect::<Vec<_>>());
            assert!(off < 1e-5, "{kind:?} {width} {rows}: off by {off:.1e}");
        }
    }
}

#[test]
fn a_matrix_that_does_not_begin_at_16_bytes_is_read_all_the_same() {
    let (width, rows) = (64, 6);
    let mut random = Random(1);
    let mut a = random.numbers(width);
    let mut weights = matrix(&mut random, Kind::BF16, rows + 1, width);
    let mut x = vec![0.0; rows];
    // SAFETY: one element in, and a row less than there is.
    let begin = unsafe { weights.pointer().byte_add(2) };
    Launch::new("matvec_add_bf16", [1, 1, 1], 64)
        .shared(width * 4)
        .state(&mut Step::ready())
        .buffer(&mut a)
        .pointer(begin)
        .optional::<f32>(None)
        .number(rows)
        .number(width)
        .buffer(&mut x)
        .run(0);
    let shifted = weights.all()[1..1 + rows * width].to_vec();
    let shifted = shifted.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let want = product(&Stored::F32(shifted), &wide(&a), None);
    assert!(off(&x, &want) < 1e-5);
}

#[test]
fn an_ended_step_adds_nothing() {
    for mut step in Step::ended() {
        let mut random = Random(1);
        let (mut a, mut x) = (random.numbers(16), random.numbers(4));
        let mut weights = matrix(&mut random, Kind::F32, 4, 16);
        let before = x.clone();
        Launch::new("matvec_add_f32", [1, 1, 1], 64)
            .shared(64)
            .state(&mut step)
            .buffer(&mut a)
            .pointer(weights.pointer())
            .optional::<f32>(None)
            .number(4)
            .number(16)
            .buffer(&mut x)
            .run(0);
        assert_eq!(x, before);
    }
}
