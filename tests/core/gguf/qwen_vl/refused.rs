//! Files that are damaged or do not go together: an error that names the file, what is wrong and what was expected.

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};

use super::super::writer::{floats, size, text, texts, File};
use super::{decoder, pair, projector, MMPROJ, MODEL};
use crate::support::{golden, try_load};

/// Neither file is read as if it were whole: the error names the file and what is wrong.
fn refused(decoder: &File, projector: &File, words: &[&str]) {
    let dir = pair(decoder, projector);
    let error = try_load(dir.path()).err().expect("it loads").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn axes_that_do_not_fit_are_named() {
    for (family, architecture, half) in [("qwen2_vl", "qwen2vl", 6), ("qwen3_vl", "qwen3vl", 8)] {
        let key = format!("{architecture}.rope.dimension_sections");
        let with = |sections: &[i32]| {
            let sections = sections.iter().map(|&n| Value::I32(n)).collect();
            decoder(family).set(&key, Value::Array(sections))
        };
        let projector = projector(family);
        refused(
            &decoder(family).without(&key),
            &projector,
            &[MODEL, &key, "missing"],
        );
        let expected = format!("three numbers that add up to {half}");
        for sections in [
            &[2, 1, 1, 0][..],
            &[half, 1, 1, 0],
            &[half, 0, 0, 1],
            &[half],
            &[],
        ] {
            let told = format!("{sections:?}");
            refused(
                &with(sections),
                &projector,
                &[MODEL, &key, &told, &expected],
            );
        }
        refused(
            &with(&[-1, half, 1, 0]),
            &projector,
            &[MODEL, &key, "-1", "a whole number"],
        );
        refused(
            &decoder(family).set(&key, text("16, 24, 24")),
            &projector,
            &[MODEL, &key, "an array"],
        );
    }
}

#[test]
fn deeper_layers_that_do_not_fit_are_named() {
    let family = "qwen3_vl";
    let key = "qwen3vl.n_deepstack_layers";
    refused(
        &decoder(family).set(key, size(4)),
        &projector(family),
        &[MODEL, key, "4", "at most 3"],
    );
    refused(
        &decoder(family).set(key, size(1)),
        &projector(family),
        &[
            MMPROJ,
            "is_deepstack_layers",
            "2 layers",
            "expected 1",
            MODEL,
        ],
    );
    let flags = "clip.vision.is_deepstack_layers";
    let with = |layers: &[bool]| {
        let layers = layers.iter().map(|&layer| Value::Bool(layer)).collect();
        projector(family).set(flags, Value::Array(layers))
    };
    for layers in [
        &[true, true, false, false, false][..],
        &[],
        &[true, false, true, true],
    ] {
        refused(&decoder(family), &with(layers), &[MMPROJ, flags, "[0, 2]"]);
    }
    // Without flags the tensors say it.
    let dir = pair(&decoder(family), &projector(family).without(flags));
    assert!(try_load(dir.path()).is_ok());
    refused(
        &decoder(family),
        &projector(family).without("v.deepstack.2.fc1.weight"),
        &[MMPROJ, "v.deepstack.2.fc1.weight", "missing"],
    );
    let far = |name: String, tensor| (name.replace("deepstack.2.", "deepstack.7."), tensor);
    refused(
        &decoder(family),
        &projector(family).without(flags).map(far),
        &[MMPROJ, "[0, 7]", "depth (5)"],
    );
}

#[test]
fn projectors_that_do_not_fit_are_named() {
    // Of another family, of another width, of no family.
    for (family, other, architecture) in [
        ("qwen2_vl", "qwen3_vl", "qwen2vl"),
        ("qwen3_vl", "qwen2_5_vl", "qwen3vl"),
    ] {
        refused(
            &decoder(family),
            &projector(other),
            &[MMPROJ, "clip.projector_type", architecture, MODEL],
        );
    }
    refused(
        &decoder("qwen2_vl"),
        &projector("qwen2_5_vl"),
        &[MMPROJ, "width of the merger", "60", "72"],
    );
    for kind in ["qwen2.5o", "resampler"] {
        refused(
            &decoder("qwen2_vl"),
            &projector("qwen2_vl").set("clip.projector_type", text(kind)),
            &[MMPROJ, "clip.projector_type", kind, "qwen2vl_merger"],
        );
    }
    let idefics = File::read(&golden("gguf/mmproj-smolvlm.gguf"));
    refused(
        &decoder("qwen2_vl"),
        &idefics,
        &[MMPROJ, "idefics3", "qwen2vl"],
    );
}

#[test]
fn keys_and_tensors_that_are_missing_or_do_not_fit_are_named() {
    for (family, gone) in [
        ("qwen2_vl", "v.patch_embd.weight"),
        ("qwen2_vl", "v.patch_embd.weight.1"),
        ("qwen2_vl", "v.blk.1.attn_q.weight"),
        ("qwen2_vl", "v.blk.1.attn_v.bias"),
        ("qwen2_vl", "v.blk.0.ffn_up.weight"),
        ("qwen2_vl", "mm.2.weight"),
        ("qwen2_vl", "clip.vision.patch_size"),
        ("qwen2_vl", "clip.vision.embedding_length"),
        ("qwen2_vl", "clip.vision.attention.head_count"),
        ("qwen2_5_vl", "clip.vision.n_wa_pattern"),
        ("qwen2_5_vl", "v.blk.2.ffn_gate.weight"),
        ("qwen3_vl", "v.position_embd.weight"),
        ("qwen3_vl", "v.patch_embd.bias"),
        ("qwen3_vl", "v.blk.4.attn_qkv.weight"),
        ("qwen3_vl", "clip.vision.image_mean"),
    ] {
        refused(
            &decoder(family),
            &projector(family).without(gone),
            &[MMPROJ, gone, "missing"],
        );
    }
    let matrix = |rows: usize, width: usize| {
        floats(&Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap())
    };
    for (name, tensor, words) in [
        (
            "v.blk.0.attn_k.weight",
            matrix(32, 16),
            ["[32, 16]", "[32, 32]"],
        ),
        (
            "v.blk.0.attn_k.weight",
            matrix(31, 32),
            ["[95, 32]", "[96, 32]"],
        ),
        (
            "v.patch_embd.weight.1",
            matrix(32, 27),
            ["[32, 27]", "[32, 3, 3, 3]"],
        ),
        (
            "v.blk.0.attn_qkv.weight",
            matrix(96, 32),
            ["no place", "qwen2vl_merger"],
        ),
        (
            "v.blk.2.attn_q.weight",
            matrix(32, 32),
            ["no place", "2 layers"],
        ),
        (
            "v.deepstack.0.fc1.weight",
            matrix(32, 32),
            ["no place", "qwen2vl_merger"],
        ),
        (
            "a.blk.0.attn_q.weight",
            matrix(32, 32),
            ["no place", "qwen2vl_merger"],
        ),
    ] {
        refused(
            &decoder("qwen2_vl"),
            &projector("qwen2_vl").with(name, tensor),
            &[&[MMPROJ][..], &words].concat(),
        );
    }
    for (key, value, words) in [
        ("clip.vision.n_wa_pattern", size(0), ["0", "at least 1"]),
        (
            "clip.vision.window_size",
            size(5),
            ["window_size", "at least 6"],
        ),
        (
            "clip.vision.image_max_pixels",
            size(7),
            ["fewest pixels", "1 to 7"],
        ),
        (
            "clip.vision.block_count",
            Value::U64(u64::MAX >> 1),
            ["v.blk.3.", "missing"],
        ),
        (
            "clip.vision.spatial_merge_size",
            size(0),
            ["spatial_merge_size", "0"],
        ),
    ] {
        refused(
            &decoder("qwen2_5_vl"),
            &projector("qwen2_5_vl").set(key, value),
            &[&[MMPROJ][..], &words].concat(),
        );
    }
    let without = decoder("qwen2_vl");
    let tokens = without.texts("tokenizer.ggml.tokens");
    let tokens = tokens
        .iter()
        .map(|token| token.replace("<|image_pad|>", "<|picture|>"));
    let tokens = tokens.collect::<Vec<_>>();
    let tokens = tokens.iter().map(String::as_str).collect::<Vec<_>>();
    refused(
        &without.set("tokenizer.ggml.tokens", texts(&tokens)),
        &projector("qwen2_vl"),
        &[MODEL, "<|image_pad|>", "missing"],
    );
}
