//! Products of the CPU with blocks in panels, against the blocks as floats.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use inf_mllm::model::linear::{forward_all, Linear};
use inf_mllm::model::weights::{products, Instructions, Matrix, Panels, Rounded};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::ThreadPoolBuilder;

use crate::blocks::{any_blocks, KINDS};

/// Numbers that share a scale when an input is rounded.
const GROUP: usize = 32;

fn panels(blocks: &QTensor) -> Panels {
    Panels::of(blocks).unwrap().unwrap()
}

/// Rows whose groups have magnitudes of their own, some of them zero.
fn any_input(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut x = Vec::with_capacity(rows * width);
    for _ in 0..rows * width / GROUP {
        let magnitude = match rng.random_range(0..8) {
            0 => 0.0,
            _ => 10f32.powf(rng.random_range(-3.0..2.0)),
        };
        x.extend((0..GROUP).map(|_| rng.random_range(-1f32..1.0) * magnitude));
    }
    x
}

fn floats(blocks: &QTensor) -> Vec<f32> {
    let wide = blocks.dequantize(&Device::Cpu).unwrap();
    wide.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn in_pool<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(run)
}

/// The product in 64 bits, and how far rounding an input to 127ths of a group's largest number can move it: half a unit for each weight,
/// and what sums of f32 lose.
fn exact(weights: &[f32], x: &[f32]) -> (f64, f64) {
    let (mut sum, mut bound) = (0.0, 0.0);
    for (weights, x) in weights.chunks_exact(GROUP).zip(x.chunks_exact(GROUP)) {
        let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (&w, &x) in weights.iter().zip(x) {
            let (w, x) = (f64::from(w), f64::from(x));
            sum += w * x;
            bound += w.abs() * (f64::from(most) / 254.0 + x.abs() * 1e-4);
        }
        // Where weights have a minimum, it is summed apart from what is above it.
        let largest = weights.iter().fold(0f32, |most, w| most.max(w.abs()));
        bound += f64::from(largest) * f64::from(most) * GROUP as f64 * 1e-5;
    }
    (sum, bound)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn products_are_those_of_floats_but_for_the_rounding_of_the_input(
        kind in 0..KINDS.len(),
        outputs in 1..70usize,
        blocks in 1..6usize,
        rows in 1..20usize,
        threads in 1..5usize,
        seed: u64,
    ) {
        let kind = KINDS[kind];
        let width = blocks * kind.block_size();
        let blocks = any_blocks(kind, (outputs, width), seed);
        let (weights, panels) = (floats(&blocks), panels(&blocks));
        let x = any_input(rows, width, seed);
        let rounded = Rounded::new(&x, width);
        let all = Instructions::available();
        let results = all.iter().map(|&instructions| {
            in_pool(threads, || products(&rounded, &[&panels], instructions)).remove(0)
        });
        let results = results.collect::<Vec<_>>();
        for (instructions, result) in all.iter().zip(&results) {
            prop_assert_eq!(bits(result), bits(&results[0]), "{:?}, {:?}", kind, instructions);
        }
        for (row, x) in x.chunks_exact(width).enumerate() {
            for (output, weights) in weights.chunks_exact(width).enumerate() {
                let got = f64::from(results[0][row * outputs + output]);
                let (wanted, bound) = exact(weights, x);
                prop_assert!(
                    (got - wanted).abs() <= bound,
                    "{:?}, row {}, output {}: {} for {}, bound {}", kind, row, output, got, wanted, bound
                );
            }
        }
    }

    #[test]
    fn rows_of_panels_are_those_of_blocks(kind in 0..KINDS.len(), rows in 1..40usize, blocks in 1..4usize, seed: u64) {
        let kind = KINDS[kind];
        let width = blocks * kind.block_size();
        let blocks = any_blocks(kind, (rows, width), seed);
        let panels = panels(&blocks);
        prop_assert_eq!(panels.dims2(), (rows, width));
        prop_assert_eq!(Panels::bytes_of(kind, (rows, width)), Some(panels.size()));
        let ids = [rows as u32 - 1, 0, seed as u32 % rows as u32];
        let index = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        let wanted = blocks.dequantize(&Device::Cpu).unwrap().index_select(&index, 0).unwrap();
        let wanted = wanted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        prop_assert_eq!(panels.select(&ids).unwrap(), wanted);
        prop_assert!(panels.select(&[rows as u32]).is_err());
    }
}

#[test]
fn a_result_depends_on_neither_threads_nor_the_rows_beside_it() {
    for (n, kind) in KINDS.into_iter().enumerate() {
        // Enough for several threads, with a cut panel; more rows than are multiplied at a time.
        let (outputs, width, rows) = (301, 768, 131);
        let panels = panels(&any_blocks(kind, (outputs, width), n as u64));
        let x = any_input(rows, width, n as u64);
        let run = |x: &[f32]| {
            products(&Rounded::new(x, width), &[&panels], Instructions::best()).remove(0)
        };
        let all = in_pool(1, || run(&x));
        for threads in 2..=4 {
            assert_eq!(bits(&in_pool(threads, || run(&x))), bits(&all), "{kind:?}");
        }
        for row in [0, 3, 63, 64, 130] {
            let one = in_pool(2, || run(&x[row * width..][..width]));
            assert_eq!(
                bits(&one),
                bits(&all[row * outputs..][..outputs]),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn layers_on_one_input_are_multiplied_as_each_alone_whatever_their_blocks() {
    let width = 512;
    let x = Tensor::from_vec(any_input(3, width, 1), (3, width), &Device::Cpu).unwrap();
    let layers = [GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::Q5_0].map(|kind| {
        let blocks = Matrix::Quantised(Arc::new(any_blocks(kind, (40, width), 2)));
        let bias = Tensor::arange(0f32, 40.0, &Device::Cpu).unwrap();
        Linear::of(blocks, Some(bias)).for_cpu().unwrap()
    });
    let together = forward_all(&x, &layers.each_ref()).unwrap();
    for (layer, together) in layers.iter().zip(&together) {
        assert!(matches!(layer.weight(), Matrix::Panels(_)));
        let alone = layer.forward(&x).unwrap();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&alone), values(together));
    }
}

#[test]
fn a_number_that_is_none_makes_its_row_none_and_no_other() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let panels = panels(&any_blocks(GgmlDType::Q4_1, (20, 64), 3));
        let mut x = any_input(3, 64, 3);
        x[64 + 40] = wrong;
        for instructions in Instructions::available() {
            let out = products(&Rounded::new(&x, 64), &[&panels], instructions).remove(0);
            for (row, out) in out.chunks_exact(20).enumerate() {
                let none = out.iter().filter(|y| !y.is_finite()).count();
                assert_eq!(none, if row == 1 { 20 } else { 0 }, "{wrong}, row {row}");
            }
        }
    }
}

#[test]
fn panels_take_hardly_more_than_blocks() {
    for kind in KINDS {
        let (rows, width) = (896, 4864);
        let blocks = rows * width / kind.block_size() * kind.type_size();
        let bytes = Panels::bytes_of(kind, (rows, width)).unwrap();
        // The 6-bit scales of Q4_K and Q5_K take a byte.
        assert!(
            (blocks..=blocks * 103 / 100).contains(&bytes),
            "{kind:?}: {bytes} for {blocks}"
        );
    }
    for kind in [GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::F16] {
        assert_eq!(Panels::bytes_of(kind, (16, 256)), None);
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_other_types_are_converted() {
    let blocks = Matrix::Quantised(Arc::new(any_blocks(GgmlDType::Q8_0, (5, 64), 4)));
    let layer = Linear::of(blocks, None).for_cpu().unwrap();
    let ones = |rows, width| Tensor::ones((rows, width), DType::F32, &Device::Cpu).unwrap();
    let error = layer.forward(&ones(1, 96)).unwrap_err().to_string();
    assert!(
        error.contains("rows of 96") && error.contains("[5, 64]"),
        "{error}"
    );
    assert_eq!(layer.forward(&ones(0, 64)).unwrap().dims(), [0, 5]);
    let wide = layer.forward(&ones(2, 64)).unwrap();
    let half = layer
        .forward(&ones(2, 64).to_dtype(DType::F16).unwrap())
        .unwrap();
    assert_eq!(half.dtype(), DType::F16);
    let off = (half.to_dtype(DType::F32).unwrap() - wide)
        .unwrap()
        .abs()
        .unwrap();
    assert!(off.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-2);
    // Part of another tensor, whose rows do not lie one after the other.
    let across = ones(64, 2).t().unwrap();
    assert_eq!(layer.forward(&across).unwrap().dims(), [2, 5]);
}
