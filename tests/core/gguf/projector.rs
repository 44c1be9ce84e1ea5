//! A vision tower's file beside a decoder's, which is written here from the published checkpoint that both come from.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, PolicyKind};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::text::TextModel;
use inf_mllm::model::vision::{ImageFeatures, View};
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::{Session, SessionConfig};
use tempfile::TempDir;

use super::converted::{decoder, llava_next_projector};
use super::writer::{size, text, texts, File};
use crate::support::{deviation, golden, ids, json, tensors, tiny_config, tiny_dir, try_load};

pub const MMPROJ: &str = "mmproj-model-f16.gguf";

pub fn mmproj(name: &str) -> PathBuf {
    golden("gguf").join(format!("{name}.gguf"))
}

/// A directory with a decoder's and a projector's file.
pub fn pair(decoder: &File, projector: &Path) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("decoder.gguf"), decoder.bytes()).unwrap();
    fs::copy(projector, dir.path().join(MMPROJ)).unwrap();
    dir
}

/// With the chat template of a published directory.
fn with_template(file: File, dir: &Path) -> File {
    let template = json(&dir.join("chat_template.json"));
    let template = template["chat_template"].as_str().unwrap();
    file.set("tokenizer.chat_template", text(template))
}

pub fn smolvlm() -> File {
    let decoder = decoder(&tiny_dir(), "model.text_model", "lm_head", None);
    with_template(decoder, &tiny_dir())
}

/// The decoder of a LLaVA family with the first `vocabulary` tokens, or all.
fn llava(family: &str, vocabulary: Option<usize>) -> File {
    let dir = golden("families").join(family);
    decoder(
        &dir,
        "language_model.model",
        "language_model.lm_head",
        vocabulary,
    )
}

fn encoded(model: &Mllm, inputs: &Path, view: View) -> Vec<ImageFeatures> {
    let images = model.vision.split(&tensors(inputs), view).unwrap();
    let images = images
        .iter()
        .map(|pixels| model.vision.encode(pixels).unwrap());
    images.collect()
}

fn rows(images: &[ImageFeatures]) -> Tensor {
    let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
    Tensor::cat(&rows, 0).unwrap()
}

/// The features of all images are those that transformers computes with the file's weights.
fn check_features(model: &Mllm, name: &str) {
    let about = json(&golden("gguf").join(format!("{name}.json")));
    let expected = tensors(&golden("gguf").join(format!("{name}.expected.safetensors")));
    let inputs = golden(about["inputs"].as_str().unwrap());
    let images = encoded(model, &inputs, View::Image { of: 2 });
    let off = deviation(&rows(&images), &expected["image_features"]);
    let tolerance = about["tolerance"].as_f64().unwrap() as f32;
    assert!(off <= tolerance, "{name}: image features differ by {off}");
    for (mistake, change) in about["perturbed"].as_object().unwrap() {
        assert!(change.as_f64().unwrap() > 1.0, "{name}: {mistake}");
    }
}

/// The decoder computes what the published one does, on features that were not rounded.
fn check_logits(model: &Mllm, images: &[ImageFeatures], inputs: &Path, expected: &Path) {
    let ids = ids(&tensors(inputs)["input_ids"]);
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 256,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
    let chunk = model.embed(&ids, images).unwrap();
    let hidden = model
        .decoder
        .append_embedded(&chunk.embedded, &chunk.marks(), &mut cache);
    let logits = model.decoder.logits(&hidden.unwrap()).unwrap();
    // A decoder with fewer tokens has fewer columns.
    let expected = tensors(expected)["logits"].squeeze(0).unwrap();
    let expected = expected.narrow(1, 0, logits.dim(1).unwrap()).unwrap();
    let off = deviation(&logits, &expected);
    assert!(off <= 1e-4, "logits differ by {off}");
}

/// A user's turn with two images.
fn turn(question: &str) -> Message {
    let question = Content::Text {
        text: question.to_string(),
    };
    Message {
        role: "user",
        content: vec![Content::Image, Content::Image, question],
    }
}

#[test]
fn a_smolvlm_of_two_files_is_the_published_one() {
    let dir = pair(&smolvlm(), &mmproj("mmproj-smolvlm"));
    let (model, published) = (
        try_load(dir.path()).unwrap(),
        try_load(&tiny_dir()).unwrap(),
    );
    assert_eq!(model.family.name, "SmolVLM");
    check_features(&model, "mmproj-smolvlm");
    let forward = golden("tiny_forward");
    let inputs = forward.join("inputs.safetensors");
    let images = encoded(&published, &inputs, View::Frame);
    check_logits(
        &model,
        &images,
        &inputs,
        &forward.join("expected.safetensors"),
    );

    // Template, ids and pixels.
    let about = json(&forward.join("forward.json"));
    let rendered = model
        .template
        .render(&[turn(about["question"].as_str().unwrap())]);
    assert_eq!(rendered.unwrap(), about["template_text"].as_str().unwrap());
    let prompt = model.tokenizer.encode(about["prompt"].as_str().unwrap());
    assert_eq!(prompt.unwrap(), ids(&tensors(&inputs)["input_ids"]));
    assert!(model.ends.contains(301));
    let picture = image::open(forward.join("image0.png")).unwrap().to_rgb8();
    let tiles = |model: &Mllm| model.vision.prepare(&picture, View::Frame).tiles;
    assert_eq!(tiles(&model), tiles(&published));
}

#[test]
fn a_llava_of_two_files_is_the_published_one() {
    let published_dir = golden("families/llava");
    let published = try_load(&published_dir).unwrap();
    let inputs = published_dir.join("golden/two.inputs.safetensors");
    let expected = published_dir.join("golden/two.expected.safetensors");
    let about = json(&published_dir.join("golden/forward.json"));
    let about = &about["scenes"]["two"];
    let wanted = about["template_text"].as_str().unwrap();
    for (name, decoder) in [
        (
            "mmproj-llava",
            with_template(llava("llava", None), &published_dir),
        ),
        // Decoders that know no images, and no template: the token for images is behind their vocabulary.
        ("mmproj-llava-old", llava("llava", Some(323))),
    ] {
        let dir = pair(&decoder, &mmproj(name));
        let model = try_load(dir.path()).unwrap();
        assert_eq!(model.family.name, "LLaVA-1.5");
        check_features(&model, name);
        let images = encoded(&published, &inputs, View::Image { of: 2 });
        check_logits(&model, &images, &inputs, &expected);

        let rendered = model.template.render(&[turn("What is in view?")]).unwrap();
        assert_eq!(rendered, wanted, "{name}");
        let layouts = images
            .iter()
            .map(|_| model.vision.layout((70, 52), View::Image { of: 2 }));
        let expanded = model
            .expand(&rendered, &layouts.collect::<Vec<_>>())
            .unwrap();
        let prompt = model.tokenizer.encode_prompt(&expanded).unwrap();
        assert_eq!(prompt, ids(&tensors(&inputs)["input_ids"]), "{name}");
        // A frame shows all of its picture in both, and here an image does too.
        let picture = image::open(published_dir.join("golden/two0.png"))
            .unwrap()
            .to_rgb8();
        let tiles = |model: &Mllm, view| model.vision.prepare(&picture, view).tiles;
        assert_eq!(tiles(&model, View::Frame), tiles(&published, View::Frame));
        assert_eq!(
            tiles(&model, View::Image { of: 1 }),
            tiles(&published, View::Frame)
        );
        let text = TextModel::load(dir.path(), Quantization::Auto, Precision::F32, &Device::Cpu);
        assert!(text.is_ok());
    }
}

#[test]
fn a_llava_next_of_two_files_is_the_published_one() {
    let published_dir = golden("families/llava_next");
    let published = try_load(&published_dir).unwrap();
    let decoder = with_template(llava("llava_next", None), &published_dir);
    let (_dir, projector) = super::writer::written(&llava_next_projector(&published_dir).bytes());
    let dir = pair(&decoder, &projector);
    let model = try_load(dir.path()).unwrap();
    assert_eq!(model.family.name, "LLaVA-NeXT");
    for (width, height) in [(70, 30), (20, 55), (24, 24)] {
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8 * 3, y as u8 * 4, (x * y) as u8])
        });
        for view in [View::Image { of: 1 }, View::Frame] {
            let features = |model: &Mllm| {
                let prepared = model.vision.prepare(&picture, view);
                let pixels = model.vision.pixels(&prepared).unwrap();
                model.vision.encode(&pixels).unwrap().rows
            };
            // The published file has bf16, which f32 holds.
            let off = deviation(&features(&model), &features(&published));
            assert!(off < 1e-6, "{width} x {height}: features differ by {off}");
        }
    }
}

/// A file of 8-bit blocks, as converters write them beside f16: what is in memory are the blocks, and the features are those of the floats
/// that they stand for.
#[test]
fn blocks_of_a_projector_stay_blocks() {
    let file = File::read(&mmproj("mmproj-smolvlm"));
    let file = file.map(|name, tensor| match *tensor.shape().dims() {
        [_, width] if width.is_multiple_of(32) && !name.contains("position") => {
            let wide = tensor.dequantize(&Device::Cpu).unwrap();
            (name, QTensor::quantize(&wide, GgmlDType::Q8_0).unwrap())
        }
        _ => (name, tensor),
    });
    let (_dir, projector) = super::writer::written(&file.bytes());
    let dir = pair(&smolvlm(), &projector);
    let features = |quantization| {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let model = Mllm::load(&checkpoint, quantization, Precision::F32, &Device::Cpu).unwrap();
        let inputs = golden("tiny_forward/inputs.safetensors");
        rows(&encoded(&model, &inputs, View::Frame))
    };
    let (blocks, floats) = (features(Quantization::Auto), features(Quantization::None));
    assert_eq!(deviation(&blocks, &floats), 0.0);

    let told = |quantization| {
        let session = SessionConfig {
            quantization,
            ..tiny_config()
        };
        let options = Options {
            session: &session,
            memory: None,
        };
        Report::of(dir.path(), &options)
    };
    let (blocks, floats) = (told(Quantization::Auto), told(Quantization::None));
    assert!(blocks.complete(), "{:?}", blocks.problems);
    let kept = blocks.kept["Q8_0"];
    assert!(kept.tensors > 0);
    // 34 bytes for 32 numbers of 4 each, and nothing beside them.
    let saved = kept.bytes / 34 * (32 * 4 - 34);
    assert_eq!(floats.weight_bytes - blocks.weight_bytes, saved);
    assert_eq!(blocks.repacked_bytes, 0);
}

#[test]
fn a_template_of_texts_alone_is_made_to_take_images() {
    let template = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] \
                    + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";
    let decoder = llava("llava", Some(323)).set("tokenizer.chat_template", text(template));
    let dir = pair(&decoder, &mmproj("mmproj-llava"));
    let model = try_load(dir.path()).unwrap();
    let answer = Message {
        role: "assistant",
        content: vec![Content::Text {
            text: "A box.".to_string(),
        }],
    };
    let rendered = model.template.render(&[turn("What is it?"), answer]);
    assert_eq!(
        rendered.unwrap(),
        "[INST] <image>\n<image>\nWhat is it? [/INST]A box.</s>"
    );
}

#[test]
fn two_files_are_a_model_for_a_session_and_their_decoder_one_for_text() {
    for (decoder, projector) in [
        (smolvlm(), "mmproj-smolvlm"),
        (llava("llava", Some(323)), "mmproj-llava-old"),
    ] {
        let dir = pair(&decoder, &mmproj(projector));
        let session = Session::new(SessionConfig {
            model_dir: dir.path().to_path_buf(),
            ..tiny_config()
        });
        assert_eq!(session.err().map(|error| error.to_string()), None);
        let load = |path: &Path| {
            let model =
                TextModel::load(path, Quantization::Auto, Precision::F32, &Device::Cpu).unwrap();
            model.weight_bytes
        };
        assert_eq!(load(dir.path()), load(&dir.path().join("decoder.gguf")));
    }
}

#[test]
fn a_decoder_given_by_its_file_finds_its_projector_among_those_of_others() {
    let dir = pair(&smolvlm(), &mmproj("mmproj-smolvlm"));
    let decoder = dir.path().join("decoder.gguf");
    let copied = |name: &str, as_name: &str| {
        fs::copy(mmproj(name), dir.path().join(as_name)).unwrap();
    };
    // A decoder of another model, one that was half copied, and a tower for decoders without a token for images.
    copied("qwen3", "other.gguf");
    fs::write(dir.path().join("broken.gguf"), "GGUF").unwrap();
    copied("mmproj-llava", "mmproj-llava.gguf");
    assert_eq!(try_load(&decoder).unwrap().family.name, "SmolVLM");
    // Two that fit.
    copied("mmproj-smolvlm", "mmproj-model-q8_0.gguf");
    let error = try_load(&decoder).err().unwrap().to_string();
    for word in [
        "decoder.gguf",
        MMPROJ,
        "mmproj-model-q8_0.gguf",
        "expected one",
        "projector_file",
    ] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    // For text it does not matter.
    let text = TextModel::load(&decoder, Quantization::Auto, Precision::F32, &Device::Cpu);
    assert!(text.is_ok());
    // One of another width, which is said.
    let dir = pair(&File::decoder(), &mmproj("mmproj-llava"));
    let error = try_load(&dir.path().join("decoder.gguf")).err().unwrap();
    let error = error.to_string();
    for word in [
        "decoder.gguf",
        MMPROJ,
        "mm.2.weight has 48 rows, expected 32",
    ] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn refused(dir: &TempDir, words: &[&str]) {
    let error = try_load(dir.path()).err().expect("it loads").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let projector = mmproj("mmproj-smolvlm");
    // Two decoders, and a decoder alone.
    let dir = pair(&smolvlm(), &projector);
    fs::copy(
        dir.path().join("decoder.gguf"),
        dir.path().join("other.gguf"),
    )
    .unwrap();
    refused(
        &dir,
        &[
            "several decoders",
            "decoder.gguf (llama, ",
            "other.gguf (llama, ",
            "model_file",
        ],
    );
    fs::remove_file(dir.path().join(MMPROJ)).unwrap();
    fs::remove_file(dir.path().join("other.gguf")).unwrap();
    refused(&dir, &["decoder.gguf", "a decoder alone", "mmproj"]);
    // A tower of another decoder, and one that needs a word for images.
    refused(
        &pair(
            &llava("llava", None).set("tokenizer.ggml.pre", text("smollm")),
            &projector,
        ),
        &["<fake_token_around_image>"],
    );
    let tokens = ["<|im_start|>", "<|im_end|>", "a", "b", "ab", "1"];
    let tiny = File::decoder().set("tokenizer.ggml.tokens", texts(&tokens));
    refused(
        &pair(&tiny, &projector),
        &["decoder.gguf", "<image>", "missing"],
    );
    refused(
        &pair(&tiny, &mmproj("mmproj-llava")),
        &["mm.0.weight", "[48, 32]", "expected [32, 32]"],
    );
    let (_dir, other) = super::writer::written(
        &llava_next_projector(&golden("families/llava_next"))
            .set("clip.projector_type", text("ldp"))
            .bytes(),
    );
    refused(
        &pair(&tiny, &other),
        &["clip.projector_type", "ldp", "idefics3"],
    );
    let (_dir, other) = super::writer::written(
        &llava_next_projector(&golden("families/llava_next"))
            .set("clip.vision.block_count", size(1))
            .bytes(),
    );
    refused(&pair(&tiny, &other), &["v.blk.1.", "no place", "1 layers"]);
}
