//! Quantised checkpoints that do not hold what they say: each is refused with the file, the tensor or field, and what was expected.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::DType;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::SessionConfig;
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{json, Value};
use tempfile::TempDir;

use super::load;
use crate::support::{golden, json as read_json};

const FILE: &str = "model.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// Element type, shape and bytes of a tensor.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden checkpoint, to be damaged.
struct Copy {
    dir: TempDir,
    config: Value,
    tensors: BTreeMap<String, Stored>,
}

impl Copy {
    fn of(name: &str) -> Self {
        let from = golden("quantised").join(name);
        let bytes = fs::read(from.join(FILE)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.tensors().into_iter().map(|(name, view)| {
            let stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name, stored)
        });
        Self {
            dir: TempDir::new().unwrap(),
            config: read_json(&from.join("config.json")),
            tensors: tensors.collect(),
        }
    }

    fn part(&mut self, ending: &str) -> &mut Stored {
        let name = format!("{Q}.{ending}");
        self.tensors.get_mut(&name).unwrap()
    }

    fn remove(&mut self, ending: &str) {
        self.tensors.remove(&format!("{Q}.{ending}")).unwrap();
    }

    /// Puts another shape over as many of its bytes, or zeros behind them.
    fn reshape(&mut self, ending: &str, shape: &[usize]) {
        let part = self.part(ending);
        let bytes = shape.iter().product::<usize>() * part.0.bitsize() / 8;
        part.1 = shape.to_vec();
        part.2.resize(bytes, 0);
    }

    fn write(&self) -> &Path {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name, view.unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(self.dir.path().join(FILE), bytes).unwrap();
        let config = self.config.to_string();
        fs::write(self.dir.path().join("config.json"), config).unwrap();
        self.dir.path()
    }

    /// What is said of it, whatever is to become of its matrices; `inspect` says the same if `at_sight`.
    fn refused(&self, words: &[&str], at_sight: bool) {
        let dir = self.write();
        for quantization in [Quantization::None, Quantization::Auto] {
            let error = match load(dir, quantization, DType::F32) {
                Ok(_) => panic!("{words:?}: loaded as {quantization}"),
                Err(error) => error.to_string(),
            };
            for word in words {
                assert!(error.contains(word), "{error:?} without {word:?}");
            }
        }
        let session = SessionConfig::default();
        let options = Options {
            session: &session,
            memory: None,
        };
        let report = Report::of(dir, &options);
        if at_sight {
            let problems = report.problems.join("\n");
            for word in words {
                assert!(
                    problems.contains(word),
                    "inspect: {problems:?} without {word:?}"
                );
            }
        }
    }

    fn quantised(&mut self) -> &mut Value {
        &mut self.config["quantization_config"]
    }
}

/// A golden checkpoint with a change to it.
fn changed(name: &str, change: impl FnOnce(&mut Copy)) -> Copy {
    let mut copy = Copy::of(name);
    change(&mut copy);
    copy
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    for (name, ending) in [
        ("awq_32", "qzeros"),
        ("awq_32", "scales"),
        ("gptq_4", "qzeros"),
        ("gptq_4_ordered", "g_idx"),
        ("packed_4", "weight_scale"),
        ("packed_4", "weight_shape"),
        ("packed_4_asymmetric", "weight_zero_point"),
        ("packed_4_ordered", "weight_g_idx"),
        ("bytes_8", "weight_scale"),
        ("fp8_rows", "weight_scale"),
    ] {
        let copy = changed(name, |copy| copy.remove(ending));
        let missing = format!("{Q}.{ending}, which belongs to it, is missing");
        copy.refused(&[FILE, &missing], true);
    }
    // Without the integers there is no matrix.
    let copy = changed("awq_32", |copy| copy.remove("qweight"));
    copy.refused(&[FILE, &format!("{Q}.weight"), "missing"], false);
}

#[test]
fn shapes_that_do_not_belong_together_are_told() {
    type Change = fn(&mut Copy);
    let cases: [(&str, Change, &[&str]); 14] = [
        (
            "awq_32",
            |copy| copy.reshape("scales", &[2, 56]),
            &[".qweight", "[64, 8]", ".scales", "[2, 56]"],
        ),
        (
            "awq_32",
            |copy| copy.reshape("scales", &[3, 64]),
            &["rows of 64 in 3 groups", "groups of 32"],
        ),
        (
            "awq_32",
            |copy| copy.reshape("scales", &[128]),
            &[".scales", "[128]", "two sides"],
        ),
        (
            "awq_32",
            |copy| copy.reshape("scales", &[0, 64]),
            &[".scales", "[0, 64]"],
        ),
        (
            "awq_32",
            |copy| copy.reshape("qzeros", &[1, 8]),
            &[".qzeros", "[1, 8]", "[2, 8]"],
        ),
        (
            "awq_32",
            |copy| copy.reshape("qweight", &[65, 8]),
            &["rows of 65 in 2 groups"],
        ),
        (
            "gptq_4",
            |copy| copy.reshape("qweight", &[8, 63]),
            &[".qweight", "[8, 63]", "expected 64"],
        ),
        (
            "gptq_4",
            |copy| copy.reshape("qzeros", &[2, 6]),
            &[".qzeros", "6 words for 64 zeros", "4 or 8 bits"],
        ),
        (
            "gptq_4_ordered",
            |copy| copy.reshape("g_idx", &[63]),
            &[".g_idx", "[63]", "[64]"],
        ),
        (
            "packed_4",
            |copy| copy.reshape("weight_scale", &[63, 2]),
            &[".weight_scale", "[63, 2]", "64 rows"],
        ),
        (
            "packed_4",
            |copy| copy.reshape("weight_shape", &[3]),
            &[".weight_shape", "[3]", "[2]"],
        ),
        (
            "packed_4_asymmetric",
            |copy| copy.reshape("weight_zero_point", &[64, 2]),
            &[".weight_zero_point", "[64, 2]", "[8, 2]"],
        ),
        (
            "fp8_blocks",
            |copy| copy.reshape("weight_scale_inv", &[2, 3]),
            &[".weight_scale_inv", "[2, 3]", "blocks of 32 x 32"],
        ),
        (
            "fp8_one_scale",
            |copy| copy.reshape("weight_scale", &[2]),
            &[".weight_scale", "[2]", "64 x 64", "one scale"],
        ),
    ];
    for (name, change, words) in cases {
        changed(name, change).refused(&[words, &[FILE, Q]].concat(), true);
    }
}

#[test]
fn a_shape_that_is_told_and_is_another_is_refused() {
    for told in [
        [64i64, 63],
        [64, 1 << 62],
        [-64, 64],
        [64, -1],
        [64, 0],
        [0, 0],
        [i64::MAX, i64::MAX],
    ] {
        let copy = changed("packed_4", |copy| {
            copy.part("weight_shape").2 = told.iter().flat_map(|side| side.to_le_bytes()).collect();
        });
        copy.refused(&[FILE, Q, &told[1].to_string()], true);
    }
}

#[test]
fn element_types_of_other_kinds_are_told() {
    for (name, ending, dtype, words) in [
        ("awq_32", "qweight", Dtype::F32, "F32, expected I32"),
        (
            "awq_32",
            "scales",
            Dtype::I16,
            "I16, expected F32, F16, BF16",
        ),
        ("gptq_4", "qzeros", Dtype::U32, "U32, expected I32"),
        (
            "packed_4",
            "weight_scale",
            Dtype::U16,
            "U16, expected F32, F16, BF16",
        ),
        ("packed_4", "weight_packed", Dtype::U32, "U32, expected I32"),
        (
            "fp8_rows",
            "weight_scale",
            Dtype::I16,
            "I16, expected F32, F16, BF16",
        ),
    ] {
        let copy = changed(name, |copy| copy.part(ending).0 = dtype);
        copy.refused(&[FILE, Q, ending, words], true);
    }
}

#[test]
fn numbers_that_are_none_are_refused_when_they_are_read() {
    let nan = half::f16::NAN.to_le_bytes();
    let infinite = half::bf16::INFINITY.to_le_bytes();
    for (name, ending, number, told) in [
        ("awq_32", "scales", nan, "NaN is among its scales"),
        ("gptq_8", "scales", nan, "NaN is among its scales"),
        (
            "packed_4",
            "weight_scale",
            infinite,
            "inf is among its scales",
        ),
        (
            "fp8_blocks",
            "weight_scale_inv",
            infinite,
            "inf is among its scales",
        ),
    ] {
        let copy = changed(name, |copy| {
            copy.part(ending).2[..2].copy_from_slice(&number)
        });
        copy.refused(&[FILE, Q, ending, told], false);
    }
    let copy = changed("fp8_rows", |copy| copy.part("weight").2[5] = 0x7f);
    copy.refused(&[FILE, &format!("{Q}.weight"), "NaN"], false);
}

#[test]
fn groups_that_are_not_there_are_refused() {
    for (group, told) in [
        (2, "2"),
        (-1, "-1"),
        (i32::MAX, "2147483647"),
        (i32::MIN, "-2147483648"),
    ] {
        for (name, ending) in [
            ("gptq_4_ordered", "g_idx"),
            ("packed_4_ordered", "weight_g_idx"),
        ] {
            let copy = changed(name, |copy| {
                copy.part(ending).2[8..12].copy_from_slice(&group.to_le_bytes());
            });
            let held = format!("{Q}.{ending} holds {told}, expected 0 to 1");
            copy.refused(&[FILE, &held], false);
        }
    }
}

/// What the configuration says is held against what the file has.
#[test]
fn a_configuration_that_says_otherwise_is_refused() {
    for (name, field, value, words) in [
        (
            "awq_32",
            "group_size",
            json!(48),
            ["rows of 128 in 4 groups of 4 bits", "groups of 48"],
        ),
        (
            "awq_32",
            "group_size",
            json!(0),
            ["quantization_config.group_size is 0", "from 1 on"],
        ),
        (
            "awq_32",
            "group_size",
            json!(1e30),
            ["quantization_config.group_size is 1e+30", "from 1 on"],
        ),
        (
            "awq_32",
            "group_size",
            json!(i64::MAX),
            ["rows of 128 in 4 groups", "9223372036854775807"],
        ),
        (
            "awq_32",
            "bits",
            json!(3),
            [
                "quantization_config.bits is 3 (AWQ with 3 bits)",
                "4, or weights as floats",
            ],
        ),
        (
            "gptq_4",
            "bits",
            json!(8),
            ["rows of 128 in 4 groups of 4 bits", "8 bits"],
        ),
        (
            "gptq_4",
            "bits",
            json!(3),
            [
                "quantization_config.bits is 3",
                "4 or 8, or weights as floats",
            ],
        ),
        (
            "gptq_4",
            "checkpoint_format",
            json!("marlin"),
            ["checkpoint_format is \"marlin\"", "gptq, gptq_v2"],
        ),
        (
            "fp8_blocks",
            "weight_block_size",
            json!([32, 16]),
            ["scales of [2, 4] for 64 x 128", "32 x 16"],
        ),
        (
            "fp8_blocks",
            "weight_block_size",
            json!([u64::MAX, u64::MAX]),
            ["scales of [2, 4] for 64 x 128", "blocks of"],
        ),
        (
            "packed_4",
            "format",
            json!("marlin-24"),
            [
                "format is \"marlin-24\" (compressed-tensors)",
                "pack-quantized",
            ],
        ),
    ] {
        let copy = changed(name, |copy| copy.quantised()[field] = value);
        copy.refused(&words, true);
    }
}

/// Symmetric groups whose zeros are elsewhere are no blocks, and are told; widened they are what they are.
#[test]
fn zeros_that_are_not_in_the_middle_are_told() {
    let copy = changed("gptq_4", |copy| copy.part("qzeros").2.fill(0x66));
    let error = load(copy.write(), Quantization::Auto, DType::F32)
        .err()
        .unwrap();
    let error = error.to_string();
    assert!(error.contains(&format!("{Q}.qweight")), "{error}");
    assert!(error.contains("a zero of its groups is 7"), "{error}");
    load(copy.dir.path(), Quantization::None, DType::F32).unwrap();
}

/// Modules that differ from what is said of all are read as they are stored.
#[test]
fn exceptions_of_gptq_are_read() {
    let copy = changed("gptq_4", |copy| {
        copy.quantised()["bits"] = json!(8);
        copy.quantised()["dynamic"] = json!({"+:.*": {"bits": 4}});
    });
    let read = load(copy.write(), Quantization::None, DType::F32).unwrap();
    let plain = load(&golden("quantised/gptq_4"), Quantization::None, DType::F32).unwrap();
    assert_eq!(read.bytes, plain.bytes);
}

/// A file that is cut, or whose header claims more than it holds, takes no memory for what it claims.
#[test]
fn sizes_beyond_the_file_are_refused() {
    let copy = Copy::of("awq_32");
    let dir = copy.write();
    let bytes = fs::read(dir.join(FILE)).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(dir.join(FILE), &bytes[..length]).unwrap();
        let error = load(dir, Quantization::None, DType::F32).err().unwrap();
        assert!(error.to_string().contains(FILE), "{error}");
    }
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + header_bytes]).unwrap();
    for claimed in [
        "[4611686018427387904,8]",
        "[18446744073709551615,18446744073709551615]",
    ] {
        let mut header = serde_json::from_str::<Value>(header).unwrap();
        header[format!("{Q}.qweight")]["shape"] = serde_json::from_str(claimed).unwrap();
        let header = header.to_string();
        let mut damaged = (header.len() as u64).to_le_bytes().to_vec();
        damaged.extend_from_slice(header.as_bytes());
        damaged.extend_from_slice(&bytes[8 + header_bytes..]);
        fs::write(dir.join(FILE), damaged).unwrap();
        let error = load(dir, Quantization::None, DType::F32).err().unwrap();
        assert!(error.to_string().contains(FILE), "{error}");
    }
    // Nothing times very much is nothing, and no matrix.
    let copy = changed("awq_32", |copy| {
        *copy.part("qweight") = (Dtype::I32, vec![1 << 61, 0], Vec::new());
    });
    copy.refused(&[FILE, Q, ".qweight", "none of 0"], true);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is changed in a file or its configuration: a model or an error.
    #[test]
    fn any_byte_may_be_another(
        name in prop::sample::select(vec![
            "awq_32", "gptq_4_ordered", "gptq_8_asymmetric", "packed_4_asymmetric", "packed_4_ordered", "bytes_8", "fp8_uneven_blocks",
        ]),
        at in any::<prop::sample::Index>(),
        in_config: bool,
        byte: u8,
    ) {
        let copy = Copy::of(name);
        let file = copy.write().join(if in_config { "config.json" } else { FILE });
        let mut bytes = fs::read(&file).unwrap();
        // Most of a file are weights, of which any are good: what says how they lie is at its beginning.
        let most = bytes.len().min(4096);
        bytes[at.index(most)] = byte;
        fs::write(&file, bytes).unwrap();
        for quantization in [Quantization::Auto, Quantization::None, Quantization::Q8_0] {
            load(copy.dir.path(), quantization, DType::F32).ok();
        }
    }
}
