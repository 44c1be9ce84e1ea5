//! Checkpoints that say what they are otherwise than those of `families`: their logits are those of transformers, or of the checkpoint as
//! it was.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use serde::Deserialize;
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::support::{self, deviation, golden, json as read, tensors, weight_files};

/// A copy of a golden family's checkpoint.
pub fn copy(family: &str) -> TempDir {
    copy_of(&golden("families").join(family))
}

/// A copy of a checkpoint, with the folders that its weights lie in.
pub fn copy_of(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    let files = fs::read_dir(dir).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    for from in files.chain(weight_files(dir)).filter(|from| from.is_file()) {
        let to = copy.path().join(from.strip_prefix(dir).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&from, to).unwrap();
    }
    copy
}

/// Merges `changes` into `base`; null takes a field away (RFC 7396).
fn merge(base: &mut Value, changes: &Value) {
    let Value::Object(changes) = changes else {
        *base = changes.clone();
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (name, value) in changes {
        match value {
            Value::Null => drop(base.as_object_mut().unwrap().remove(name)),
            value => merge(&mut base[name], value),
        }
    }
}

fn merge_file(dir: &Path, name: &str, changes: &Value) {
    let file = dir.join(name);
    let mut config = read(&file);
    merge(&mut config, changes);
    fs::write(file, config.to_string()).unwrap();
}

fn leave_out(dir: &Path, beginnings: &[String]) {
    let file = dir.join("model.safetensors");
    let mut weights = tensors(&file);
    weights.retain(|name, _| !beginnings.iter().any(|start| name.starts_with(start)));
    candle_core::safetensors::save(&weights, file).unwrap();
}

/// `[tokens, vocabulary]`
fn logits(dir: &Path, ids: &[u32]) -> Result<Tensor, String> {
    logits_in(dir, ids, Precision::F32)
}

fn logits_in(dir: &Path, ids: &[u32], precision: Precision) -> Result<Tensor, String> {
    let model = TextModel::load(dir, Quantization::None, precision, &Device::Cpu);
    let model = model.map_err(|error| error.to_string())?;
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: ids.len().max(64),
        ..CacheConfig::default()
    };
    let mut cache =
        BoundedCache::new(model.shape, &config, 0, model.dtype(), &Device::Cpu).unwrap();
    let decoder = &model.decoder;
    let x = decoder.embed(ids).unwrap();
    let hidden = decoder.append(&x, &vec![Mark::default(); ids.len()], &mut cache);
    let logits = decoder.logits(&hidden.unwrap()).unwrap();
    Ok(logits.to_dtype(DType::F32).unwrap())
}

#[derive(Deserialize)]
struct Case {
    family: String,
    config: Value,
    left_out: Vec<String>,
    ids: Vec<u32>,
}

#[test]
fn logits_are_those_of_transformers() {
    let dir = golden("variants");
    let about = read(&dir.join("cases.json"));
    let tolerance = about["tolerance"].as_f64().unwrap() as f32;
    let expected = tensors(&dir.join("logits.safetensors"));
    let cases = about["cases"].as_object().unwrap();
    assert_eq!(cases.len(), expected.len());
    for (name, case) in cases {
        let case = serde_json::from_value::<Case>(case.clone()).unwrap();
        let copy = copy(&case.family);
        merge_file(copy.path(), "config.json", &case.config);
        if !case.left_out.is_empty() {
            leave_out(copy.path(), &case.left_out);
        }
        let got = logits(copy.path(), &case.ids).unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted = &expected[name];
        let last = got.narrow(0, case.ids.len() - wanted.dims()[0], wanted.dims()[0]);
        let off = deviation(&last.unwrap(), wanted);
        assert!(off < tolerance, "{name}: logits are off by {off}");
    }
}

const IDS: [u32; 12] = [5, 9, 30, 7, 44, 12, 80, 33, 6, 21, 50, 8];

/// A checkpoint that is changed in form only loads and computes the same.
fn stays(what: &str, family: &str, change: impl FnOnce(&Path)) {
    let copy = copy(family);
    let before = logits(copy.path(), &IDS).unwrap();
    change(copy.path());
    let after = logits(copy.path(), &IDS).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(deviation(&before, &after), 0.0, "{what}");
}

/// [`stays`], and the whole multimodal model loads.
fn stays_whole(what: &str, family: &str, file: &str, change: impl FnOnce(&mut Value)) {
    stays(what, family, |dir| {
        let path = dir.join(file);
        let mut config = read(&path);
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
        support::try_load(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    });
}

#[test]
fn other_forms_of_a_configuration_are_read() {
    let three = "qwen3_vl";
    let config = "config.json";
    stays_whole("null token ids", "qwen2_5_vl", config, |c| {
        for name in [
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "video_token_id",
        ] {
            c[name] = Value::Null;
        }
    });
    for family in ["qwen2_vl", "qwen2_5_vl", three] {
        stays_whole("patch_size of two sides", family, config, |c| {
            let side = c["vision_config"]["patch_size"].clone();
            c["vision_config"]["patch_size"] = json!([side, side]);
            c["vision_config"]["rope_parameters"] = Value::Null;
            c["vision_config"]["hidden_act"].take();
            c["vision_config"]["in_channels"] = Value::Null;
            c["rope_parameters"] = Value::Null;
        });
    }
    stays_whole("patch_size of two sides", "llava", config, |c| {
        let side = c["vision_config"]["patch_size"].clone();
        c["vision_config"]["patch_size"] = json!([side, side]);
        c["text_config"]["rope_parameters"] = Value::Null;
        c["text_config"]["attention_bias"] = Value::Null;
    });
    stays_whole(
        "an interleaved Qwen3-VL that does not say so",
        three,
        config,
        |c| {
            let rope = c["text_config"]["rope_scaling"].as_object_mut().unwrap();
            rope.remove("mrope_interleaved").unwrap();
        },
    );
}

#[test]
fn other_forms_of_a_processor_are_read() {
    let file = "preprocessor_config.json";
    let two_five = "qwen2_5_vl";
    stays_whole("pixels by their older names", two_five, file, |c| {
        let fields = c.as_object_mut().unwrap();
        let pixels = ["min_pixels", "max_pixels"].map(|name| fields.remove(name));
        let [min, max] = pixels.map(|pixels| pixels.unwrap_or(json!(3136)));
        c["size"] = json!({ "min_pixels": min, "max_pixels": max });
    });
    stays_whole("pictures of any size", two_five, file, |c| {
        c.as_object_mut().unwrap().remove("max_pixels");
        c["size"]["longest_edge"] = json!(1u64 << 32);
    });
    stays_whole("patch_size of two sides, nulls", two_five, file, |c| {
        c["patch_size"] = json!([c["patch_size"], c["patch_size"]]);
        c["do_resize"] = Value::Null;
        c["resample"] = Value::Null;
    });
}

/// The decoder of a multimodal model, saved alone: without its output layer, if that is tied, and with the names of its own class.
#[test]
fn decoders_of_multimodal_models_that_were_saved_alone_are_read() {
    for (family, root, alone) in [
        ("qwen2_vl", "model.", "model."),
        ("qwen2_5_vl", "model.", ""),
        ("qwen3_vl", "model.language_model.", ""),
        ("qwen3_vl", "model.language_model.", "language_model."),
    ] {
        stays(&format!("{family} as {alone:?}"), family, |dir| {
            let file = dir.join("config.json");
            let mut config = read(&file);
            let tied = config["tie_word_embeddings"].clone();
            if config["text_config"].is_object() {
                config = config["text_config"].take();
            }
            config.as_object_mut().unwrap().remove("vision_config");
            config["model_type"] = json!(format!("{family}_text"));
            config["tie_word_embeddings"] = tied;
            fs::write(file, config.to_string()).unwrap();
            let file = dir.join("model.safetensors");
            let weights = tensors(&file).into_iter().filter_map(|(name, tensor)| {
                match (name.strip_prefix(root), name.starts_with("lm_head")) {
                    (Some(rest), _) => Some((format!("{alone}{rest}"), tensor)),
                    (None, true) => Some((name, tensor)),
                    (None, false) => None,
                }
            });
            let weights = weights.collect::<std::collections::HashMap<_, _>>();
            candle_core::safetensors::save(&weights, file).unwrap();
        });
    }
}

#[test]
fn the_file_of_weights_that_the_configuration_names_is_read() {
    let name = |dir: &Path, named: &str| {
        merge_file(
            dir,
            "config.json",
            &json!({ "transformers_weights": named }),
        );
    };
    stays("weights under another name", "qwen2", |dir| {
        let published = dir.join("model.safetensors");
        fs::rename(&published, dir.join("best.safetensors")).unwrap();
        // What has the usual name does not count then.
        fs::write(published, "nothing").unwrap();
        name(dir, "best.safetensors");
    });
    stays("an index under another name", "qwen2", |dir| {
        let published = dir.join("model.safetensors");
        let names = tensors(&published).into_keys();
        let map = names.map(|name| (name, json!("part.safetensors")));
        let index = json!({ "weight_map": map.collect::<serde_json::Map<_, _>>() });
        fs::rename(&published, dir.join("part.safetensors")).unwrap();
        fs::write(dir.join("best.safetensors.index.json"), index.to_string()).unwrap();
        name(dir, "best.safetensors.index.json");
    });
    for (named, words) in [
        ("gone.safetensors", ["gone.safetensors", "missing"]),
        ("../model.safetensors", ["transformers_weights", "file"]),
        ("model.bin", ["model.bin", "safetensors file"]),
    ] {
        let copy = copy("qwen2");
        name(copy.path(), named);
        let error = logits(copy.path(), &IDS).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

#[test]
fn rotary_parameters_by_kind_of_layer_are_read() {
    stays("rope_parameters of full attention", "qwen3", |dir| {
        let file = dir.join("config.json");
        let mut config = read(&file);
        let theta = config
            .as_object_mut()
            .unwrap()
            .remove("rope_theta")
            .unwrap();
        let rope = json!({ "rope_type": "default", "rope_theta": theta });
        config["rope_parameters"] =
            json!({ "full_attention": rope, "sliding_attention": { "rope_theta": 7.0 } });
        fs::write(file, config.to_string()).unwrap();
    });
}

/// The block in `processor_config.json` beats the file of old.
#[test]
fn the_nested_image_processor_wins() {
    let dir = copy("llava");
    let file = dir.path().join("preprocessor_config.json");
    let processor = read(&file);
    let mut other = processor.clone();
    other["image_mean"] = json!([0.1, 0.2, 0.3]);
    let values = |dir: &Path| {
        let model = support::load(dir);
        let picture = image::RgbImage::from_pixel(30, 20, image::Rgb([200, 90, 30]));
        let view = inf_mllm::model::vision::View::Frame;
        let pixels = model.vision.pixels(&model.vision.prepare(&picture, view));
        pixels.unwrap().values
    };
    let published = values(dir.path());
    fs::write(&file, other.to_string()).unwrap();
    let changed = values(dir.path());
    assert!(deviation(&published, &changed) > 0.01);
    merge_file(
        dir.path(),
        "processor_config.json",
        &json!({ "image_processor": processor }),
    );
    assert_eq!(deviation(&published, &values(dir.path())), 0.0);
    fs::remove_file(file).unwrap();
    assert_eq!(deviation(&published, &values(dir.path())), 0.0);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for (tensor, number) in [
        ("model.layers.1.mlp.up_proj.weight", f32::NAN),
        ("model.norm.weight", f32::INFINITY),
        ("model.embed_tokens.weight", f32::NEG_INFINITY),
    ] {
        let dir = copy("qwen2");
        let file = dir.path().join("model.safetensors");
        let mut weights = tensors(&file);
        let shape = weights[tensor].dims().to_vec();
        let flat = weights[tensor].flatten_all().unwrap();
        let mut values = flat.to_vec1::<f32>().unwrap();
        values[17] = number;
        let changed = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        weights.insert(tensor.to_string(), changed);
        candle_core::safetensors::save(&weights, file).unwrap();
        let error = logits(dir.path(), &IDS).unwrap_err();
        for word in [tensor, "model.safetensors", "finite"] {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

/// f32 on the CPU is what f16 there is held against.
#[test]
fn f16_on_the_cpu_is_close_to_f32() {
    for family in ["llama", "qwen2", "gpt_neox"] {
        let dir = copy(family);
        let [wide, narrow] = [Precision::F32, Precision::F16]
            .map(|precision| logits_in(dir.path(), &IDS, precision).unwrap());
        let off = deviation(&wide, &narrow);
        assert!(off > 0.0 && off < 0.05, "{family}: off by {off}");
    }
}
