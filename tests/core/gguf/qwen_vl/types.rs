//! Decoders and projectors in other types than f32.

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::vision::View;
use inf_mllm::model::weights::Quantization;

use super::super::writer::{floats, quantised, size, written, File};
use super::{
    check_same_features, decoder, features, pair, projector, published, sketch, with_sizes,
    FAMILIES,
};
use crate::support::{self, deviation};

/// `tensor` as `dtype`, if its rows are whole blocks of it.
fn as_type(tensor: &QTensor, dtype: GgmlDType) -> Option<QTensor> {
    let dense = tensor.dequantize(&Device::Cpu).unwrap();
    let width = *dense.dims().last().unwrap();
    let fits = dense.rank() == 2 && width.is_multiple_of(dtype.block_size());
    fits.then(|| QTensor::quantize(&dense, dtype).unwrap())
}

#[test]
fn projectors_of_every_type_are_read() {
    for (family, _) in FAMILIES {
        for dtype in [GgmlDType::F16, GgmlDType::BF16, GgmlDType::Q8_0] {
            let narrow = |name, tensor: QTensor| {
                let narrow = as_type(&tensor, dtype);
                (name, narrow.unwrap_or(tensor))
            };
            // The numbers that are left, as f32.
            let widen = |name, tensor: QTensor| {
                let wide = floats(&tensor.dequantize(&Device::Cpu).unwrap());
                (name, wide)
            };
            let narrow = with_sizes(projector(family), family).map(narrow);
            let given = pair(&decoder(family), &narrow);
            let wide = pair(&decoder(family), &narrow.map(widen));
            let about = format!("{family}, {dtype:?}");
            let [given, wide] = [given.path(), wide.path()].map(support::load);
            check_same_features(&given, &wide, &about);
            let exact = support::load(&published(family));
            let picture = sketch(30, 30);
            // Limits of frames are none that a file has.
            let view = View::Image { of: 1 };
            let pairs = [&given, &exact].map(|model| features(model, &picture, view).remove(0));
            let off = deviation(&pairs[0], &pairs[1]);
            assert!(off > 0.0, "{about}: nothing was narrowed");
        }
    }
}

/// A decoder of this architecture whose rows are whole blocks of every kind; `kinds` are those of its matrices in turn.
fn blocks(family: &str, kinds: &[GgmlDType]) -> File {
    const HIDDEN: usize = 256;
    let (architecture, deep) = match family {
        "qwen3_vl" => ("qwen3vl", true),
        _ => ("qwen2vl", false),
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let sections = [16, 8, 8, 0].map(Value::I32).to_vec();
    let mut file = decoder(family)
        .without_tensors()
        .set(&key("block_count"), size(1))
        .set(&key("embedding_length"), size(HIDDEN))
        .set(&key("feed_forward_length"), size(HIDDEN))
        .set(&key("attention.head_count"), size(4))
        .set(&key("attention.head_count_kv"), size(2))
        .set(&key("attention.key_length"), size(64))
        .set(&key("attention.value_length"), size(64))
        .set(&key("rope.dimension_sections"), Value::Array(sections));
    if deep {
        file = file.set(&key("n_deepstack_layers"), size(1));
    }
    let ones = |width: usize| floats(&Tensor::ones(width, DType::F32, &Device::Cpu).unwrap());
    let matrices = [
        ("token_embd", 296),
        ("output", 296),
        ("blk.0.attn_q", 256),
        ("blk.0.attn_k", 128),
        ("blk.0.attn_v", 128),
        ("blk.0.attn_output", HIDDEN),
        ("blk.0.ffn_gate", HIDDEN),
        ("blk.0.ffn_up", HIDDEN),
        ("blk.0.ffn_down", HIDDEN),
    ];
    for ((name, rows), kind) in matrices.into_iter().zip(kinds.iter().cycle()) {
        let matrix = quantised(rows, HIDDEN, *kind);
        file = file.with(&format!("{name}.weight"), matrix);
        if !deep && rows <= 256 && name.starts_with("blk.0.attn_") && !name.ends_with("output") {
            file = file.with(&format!("{name}.bias"), ones(rows));
        }
    }
    for (name, width) in [
        ("output_norm", HIDDEN),
        ("blk.0.attn_norm", HIDDEN),
        ("blk.0.ffn_norm", HIDDEN),
    ] {
        file = file.with(&format!("{name}.weight"), ones(width));
    }
    if deep {
        for name in ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"] {
            file = file.with(name, ones(64));
        }
    }
    file
}

#[test]
fn decoders_of_every_kind_of_blocks_are_read() {
    use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4K, Q4_0, Q4_1, Q5K, Q5_0, Q5_1, Q6K, Q8_0};
    for family in ["qwen2_vl", "qwen3_vl"] {
        for kinds in [
            &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F16, BF16, F32][..],
            &[Q2K, Q3K, Q4K, Q5K, Q6K],
        ] {
            let (_dir, file) = written(&blocks(family, kinds).bytes());
            let load = |quantization| {
                TextModel::load(&file, quantization, Precision::F32, &Device::Cpu).unwrap()
            };
            let [kept, wide] = [Quantization::Auto, Quantization::None].map(load);
            assert!(kept.weight_bytes < wide.weight_bytes);
            let logits = |model: &TextModel| {
                let text = model.tokenizer.encode("What is in view?").unwrap();
                support::logits(&model.decoder, model.shape, &text)
            };
            let (kept, wide) = (logits(&kept), logits(&wide));
            let off = deviation(&kept, &wide);
            let spread = wide.abs().unwrap().max_all().unwrap();
            let spread = spread.to_scalar::<f32>().unwrap();
            assert!(
                off < 0.05 * spread,
                "{family}, {kinds:?}: {off} of {spread}"
            );
        }
    }
}
