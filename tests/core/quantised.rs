//! Rows of 8-bit numbers: how far a number is off, and that what has been stored once stays as it is.

use half::bf16;
use inf_mllm::cache::quantised::{pack_row, row_bytes, unpack_row, GROUP};
use proptest::prelude::*;

fn packed(numbers: &[f32]) -> Vec<u8> {
    // What stood there before does not matter.
    let mut row = vec![0xaa; row_bytes(numbers.len())];
    pack_row(numbers, &mut row);
    row
}

fn unpacked(row: &[u8], head_dim: usize) -> Vec<f32> {
    let mut numbers = vec![f32::NAN; head_dim];
    unpack_row(row, &mut numbers);
    numbers
}

fn scales(row: &[u8], head_dim: usize) -> Vec<f32> {
    let scales = row[head_dim..].chunks_exact(2);
    let scales = scales.map(|scale| bf16::from_le_bytes([scale[0], scale[1]]).to_f32());
    scales.take(head_dim.div_ceil(GROUP)).collect()
}

/// Of any magnitude that keys can have, groups of zeros among them.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let sizes = prop::sample::select(vec![2, 6, 8, 30, 32, 34, 64, 80, 96, 128, 256]);
    sizes.prop_flat_map(|head_dim: usize| {
        let number = prop_oneof![
            8 => -1f32..1.0,
            1 => Just(0.0),
            1 => prop::sample::select(vec![-1f32, 1.0, 0.5, -0.25]),
        ];
        let magnitudes = prop_oneof![Just(0f32), (-30i32..30).prop_map(|e| 10f32.powi(e))];
        let magnitudes = prop::collection::vec(magnitudes, head_dim.div_ceil(GROUP));
        let numbers = prop::collection::vec(number, head_dim);
        (numbers, magnitudes).prop_map(|(mut numbers, magnitudes)| {
            for (group, magnitude) in numbers.chunks_mut(GROUP).zip(magnitudes) {
                group.iter_mut().for_each(|x| *x *= magnitude);
            }
            numbers
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_number_is_off_by_half_a_scale_at_most_and_stored_again_as_it_is(numbers in any_row()) {
        let row = packed(&numbers);
        let stored = unpacked(&row, numbers.len());
        let scales = scales(&row, numbers.len());
        for (i, (&x, &stored)) in numbers.iter().zip(&stored).enumerate() {
            let scale = f64::from(scales[i / GROUP]);
            let off = (f64::from(x) - f64::from(stored)).abs();
            // The quotient is rounded to f32 before it is rounded to a whole number.
            prop_assert!(off <= 0.5 * scale * (1.0 + 1e-4), "{} as {}, scale {}", x, stored, scale);
        }
        for (group, &scale) in numbers.chunks(GROUP).zip(&scales) {
            let most = group.iter().fold(0f32, |most, x| most.max(x.abs()));
            let exact = f64::from(most) / 127.0;
            prop_assert!((f64::from(scale) - exact).abs() <= exact / 256.0, "{} for {}", scale, exact);
        }
        prop_assert_eq!(packed(&stored), row);
    }
}

#[test]
fn a_row_is_bytes_then_scales_then_zeros() {
    // 34 numbers: a group of 32 and one of 2.
    let mut numbers = vec![0.0; 34];
    (numbers[0], numbers[1], numbers[31]) = (127.0, -1.0, 0.5);
    (numbers[32], numbers[33]) = (-254.0, 3.0);
    let row = packed(&numbers);
    assert_eq!(row.len(), 40);
    assert_eq!(
        (row[0] as i8, row[1] as i8, row[31] as i8),
        (127, -1, 0),
        "of two equally near the even one"
    );
    assert_eq!((row[32] as i8, row[33] as i8), (-127, 2));
    assert_eq!(row[34..36], bf16::from_f32(1.0).to_le_bytes());
    assert_eq!(row[36..38], bf16::from_f32(2.0).to_le_bytes());
    assert_eq!(row[38..], [0, 0]);
    assert_eq!([64, 80, 128].map(row_bytes), [68, 88, 136]);
}

#[test]
fn nothing_that_is_finite_is_stored_as_something_that_is_not() {
    for most in [0.0, 1e-45, 1e-38, 1.4e-36, 1e30, 2e38, f32::MAX] {
        let stored = unpacked(&packed(&[most, -most / 2.0]), 2);
        assert!(stored.iter().all(|x| x.is_finite()), "{most}: {stored:?}");
        assert!((stored[0] - most).abs() <= most / 254.0 || most < 1.5e-36);
    }
}
