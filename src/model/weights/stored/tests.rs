use std::io::Write;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::*;

const DIMS: [usize; 2] = [6, 512];
const BLOCKS: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn numbers() -> Tensor {
    let values = (0..DIMS[0] * DIMS[1]).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0);
    let tensor = Tensor::from_iter(values, &Device::Cpu).unwrap();
    tensor.reshape(&DIMS).unwrap()
}

fn map(bytes: &[u8]) -> Mmap {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    // SAFETY: nothing else has the file.
    unsafe { Mmap::map(&file) }.unwrap()
}

fn stored<'a>(map: &'a Mmap, format: GgmlDType, rows: Option<&[u32]>) -> Stored<'a> {
    Stored {
        map,
        bytes: 0..map.len(),
        format,
        dims: &DIMS,
        rows: rows.map(<[u32]>::to_vec),
    }
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let values = |x: &Tensor| {
        let wide = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        (x.dims().to_vec(), wide.to_vec1::<f32>().unwrap())
    };
    values(a) == values(b)
}

fn select(x: &Tensor, rows: &[u32]) -> Tensor {
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    x.index_select(&rows, 0).unwrap()
}

const ORDER: [u32; 4] = [5, 0, 3, 3];

#[test]
fn blocks_of_every_kind_are_candles_whole_and_in_another_order() {
    for format in BLOCKS {
        let blocks = QTensor::quantize(&numbers(), format).unwrap();
        let map = map(&blocks.data().unwrap());
        let whole = blocks.dequantize(&Device::Cpu).unwrap();
        for (rows, wanted) in [
            (None, whole.clone()),
            (Some(&ORDER[..]), select(&whole, &ORDER)),
        ] {
            let stored = stored(&map, format, rows);
            assert!(
                same(&stored.dense(DType::F32).unwrap(), &wanted),
                "{format:?}"
            );
            let kept = stored.blocks(&Device::Cpu).unwrap();
            assert_eq!(kept.dtype(), format);
            assert!(
                same(&kept.dequantize(&Device::Cpu).unwrap(), &wanted),
                "{format:?}"
            );
            // The rows of an embedding, of which others than are there are an error.
            let ids = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap();
            let last = wanted.dims()[0] as u32 - 1;
            let rows = kept.embedding(&ids(&[last, 1])).unwrap();
            assert!(same(&rows, &select(&wanted, &[last, 1])), "{format:?}");
            assert!(kept.embedding(&ids(&[1, last + 1])).is_err(), "{format:?}");
        }
    }
}

#[test]
fn floats_become_floats_and_blocks_of_every_kind() {
    for (format, dtype) in [
        (GgmlDType::F32, DType::F32),
        (GgmlDType::F16, DType::F16),
        (GgmlDType::BF16, DType::BF16),
    ] {
        let exact = numbers().to_dtype(dtype).unwrap();
        let map = map(&QTensor::quantize(&numbers(), format)
            .unwrap()
            .data()
            .unwrap());
        for (rows, exact) in [
            (None, exact.clone()),
            (Some(&ORDER[..]), select(&exact, &ORDER)),
        ] {
            let stored = stored(&map, format, rows);
            for to in [DType::F32, DType::F16, DType::BF16] {
                let got = stored.dense(to).unwrap();
                let wide = exact.to_dtype(DType::F32).unwrap();
                assert!(
                    same(&got, &wide.to_dtype(to).unwrap()),
                    "{format:?} as {to:?}"
                );
            }
            for to in [GgmlDType::Q8_0, GgmlDType::Q5_0, GgmlDType::Q4K] {
                let got = stored.quantised(to, &Device::Cpu).unwrap();
                let wanted = QTensor::quantize(&exact, to).unwrap();
                assert_eq!(
                    got.data().unwrap(),
                    wanted.data().unwrap(),
                    "{format:?} as {to:?}"
                );
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_or_would_not_be_are_errors() {
    type Load = fn(&Stored) -> Result<()>;
    let errors = |number: f32, to: Load| {
        let mut values = vec![0.5f32; DIMS[0] * DIMS[1]];
        values[700] = number;
        let bytes = values.iter().flat_map(|x| x.to_le_bytes());
        let map = map(&bytes.collect::<Vec<_>>());
        let found = to(&stored(&map, GgmlDType::F32, None));
        let rows = to(&stored(&map, GgmlDType::F32, Some(&[1])));
        assert_eq!(found.is_err(), rows.is_err(), "{number}");
        found.err().map(|error| error.to_string())
    };
    let dense: [(DType, Load, f32); 3] = [
        (DType::F32, |x| x.dense(DType::F32).map(|_| ()), f32::MAX),
        (DType::F16, |x| x.dense(DType::F16).map(|_| ()), 65519.0),
        (DType::BF16, |x| x.dense(DType::BF16).map(|_| ()), 3.3895e38),
    ];
    for (dtype, to, largest) in dense {
        for number in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
            let error = errors(number, to).unwrap();
            assert!(error.contains("finite"), "{dtype:?}: {error}");
        }
        assert_eq!(errors(-largest, to), None, "{dtype:?}");
        assert_eq!(errors(largest, to), None, "{dtype:?}");
    }
    let error = errors(65520.0, dense[1].1).unwrap();
    assert!(error.contains("65520") && error.contains("f16"), "{error}");
    let blocks = |x: &Stored| x.quantised(GgmlDType::Q8_0, &Device::Cpu).map(|_| ());
    assert!(errors(f32::NAN, blocks).is_some());
    assert_eq!(errors(1.0, blocks), None);
}

#[test]
fn scales_of_blocks_that_are_not_finite_are_errors() {
    for format in BLOCKS {
        let blocks = QTensor::quantize(&numbers(), format).unwrap();
        let mut bytes = blocks.data().unwrap().to_vec();
        let whole = map(&bytes);
        assert!(stored(&whole, format, None).blocks(&Device::Cpu).is_ok());
        // In the second row; wherever the scale of a block lies, its numbers tell.
        let row = bytes.len() / DIMS[0];
        let mut found = 0;
        for at in (row..row + format.type_size()).step_by(2) {
            let kept = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            let broken = map(&bytes);
            let stored = |rows| stored(&broken, format, rows);
            let is_nan = stored(None).dense(DType::F32).is_err();
            assert_eq!(
                stored(None).blocks(&Device::Cpu).is_err(),
                is_nan,
                "{format:?} at {at}"
            );
            assert_eq!(stored(Some(&[0, 1])).blocks(&Device::Cpu).is_err(), is_nan);
            assert!(stored(Some(&[0, 2])).blocks(&Device::Cpu).is_ok());
            found += usize::from(is_nan);
            bytes[at..at + 2].copy_from_slice(&kept);
        }
        assert!(found > 0, "{format:?}");
    }
}

#[test]
fn tensors_are_the_same_if_every_number_is() {
    let count = BAND + 3;
    let dims = [count];
    let mut bytes = vec![1u8; 2 * 4 * count];
    let pair = |map: &Mmap| {
        let of = |start: usize| Stored {
            map,
            bytes: start..start + 4 * count,
            format: GgmlDType::F32,
            dims: &dims,
            rows: None,
        };
        of(0).same(&of(4 * count))
    };
    assert!(pair(&map(&bytes)));
    bytes[4 * count - 1] = 2;
    assert!(!pair(&map(&bytes)));
}

#[test]
fn tensors_longer_than_a_band_are_whole() {
    let count = 3 * BAND + 77;
    let values = (0..count).map(|i| i as f32).collect::<Vec<_>>();
    let bytes = values
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect::<Vec<_>>();
    // An odd start, as headers of safetensors files may leave it.
    let map = map(&[&[0; 3][..], &bytes].concat());
    let stored = Stored {
        map: &map,
        bytes: 3..map.len(),
        format: GgmlDType::F32,
        dims: &[count],
        rows: None,
    };
    let got = stored.dense(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got, values);
}

#[test]
fn rows_that_are_not_there_and_numbers_that_are_not_floats_are_errors() {
    let map = map(&[0; 6 * 512 * 4]);
    let beyond = stored(&map, GgmlDType::F32, Some(&[0, 6]));
    for error in [
        beyond.dense(DType::F32).err(),
        beyond.quantised(GgmlDType::Q8_0, &Device::Cpu).err(),
    ] {
        assert!(error.unwrap().to_string().contains("row 6 of 6"));
    }
    let whole = stored(&map, GgmlDType::F32, None);
    assert!(whole.dense(DType::U8).is_err());
    assert!(whole.quantised(GgmlDType::Q2K, &Device::Cpu).is_err());
    assert!(whole.blocks(&Device::Cpu).is_err());
}
