//! Published weights from a GGUF file: ids against llama.cpp, numbers and greedy answers against transformers.

use std::path::PathBuf;
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::template::TextMessage;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use serde_json::Value;

use crate::support::{demo_dir, deviation, golden, json, load, root, tensors};

/// The file that `make weights-smollm2` fetches.
pub fn gguf() -> PathBuf {
    let file = root().join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        file.is_file(),
        "{} is missing: run make weights-smollm2",
        file.display()
    );
    file
}

static MODEL: LazyLock<TextModel> = LazyLock::new(|| {
    TextModel::load(&gguf(), Quantization::None, Precision::F32, &Device::Cpu).unwrap()
});
static ABOUT: LazyLock<Value> = LazyLock::new(|| json(&golden("smollm2").join("about.json")));

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn full_cache(model: &TextModel) -> BoundedCache {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 256,
        ..CacheConfig::default()
    };
    let shape = model.shape;
    BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu).unwrap()
}

/// Last hidden states `[ids, hidden]`.
fn feed(model: &TextModel, ids: &[u32], cache: &mut BoundedCache) -> Tensor {
    let x = model.decoder.embed(ids).unwrap();
    model
        .decoder
        .append(&x, &vec![Mark::default(); ids.len()], cache)
        .unwrap()
}

#[test]
fn text_becomes_the_ids_of_llama_cpp_and_comes_back() {
    for case in ABOUT["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let encoded = MODEL.tokenizer.encode(text).unwrap();
        assert_eq!(encoded, ids(&case["ids"]), "{text:?}");
        assert_eq!(MODEL.tokenizer.decode(&encoded).unwrap(), text);
    }
}

#[test]
fn the_chat_template_of_the_file_is_rendered() {
    let chat = &ABOUT["chat"];
    let message = |role, key: &str| TextMessage {
        role,
        content: chat[key].as_str().unwrap(),
    };
    let template = MODEL.template.as_ref().unwrap();
    let turns = [message("system", "system"), message("user", "user")];
    let text = template.render(&turns).unwrap();
    assert_eq!(text, chat["text"].as_str().unwrap());
    let encoded = MODEL.tokenizer.chat().encode(&text).unwrap();
    assert_eq!(encoded, ids(&chat["ids"]));
}

#[test]
fn control_tokens_count_only_in_the_chat_format() {
    let end = u32::try_from(ABOUT["end_id"].as_u64().unwrap()).unwrap();
    assert!(MODEL.tokenizer.is_end(end));
    assert!(!MODEL.tokenizer.is_end(end + 1));
    let text = "a<|im_end|>";
    assert!(!MODEL.tokenizer.encode(text).unwrap().contains(&end));
    let chat = MODEL.tokenizer.chat();
    assert!(chat.encode(text).unwrap().contains(&end));
    let guarded = chat.guard(text);
    assert!(!chat.encode(&guarded).unwrap().contains(&end));
}

#[test]
fn logits_are_those_of_transformers() {
    let expected = &tensors(&golden("smollm2").join("expected.safetensors"))["logits"];
    let hidden = feed(&MODEL, &ids(&ABOUT["chat"]["ids"]), &mut full_cache(&MODEL));
    let logits = MODEL.decoder.logits(&hidden).unwrap();
    let step = ABOUT["columns"].as_u64().unwrap() as u32;
    let columns = (0..logits.dim(1).unwrap() as u32)
        .step_by(step as usize)
        .collect::<Vec<_>>();
    let columns = Tensor::new(columns, &Device::Cpu).unwrap();
    let off = deviation(&logits.index_select(&columns, 1).unwrap(), expected);
    let tolerance = ABOUT["tolerance"].as_f64().unwrap() as f32;
    assert!(off <= tolerance, "logits differ by {off}");
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    for case in ABOUT["greedy"].as_array().unwrap() {
        let mut cache = full_cache(&MODEL);
        let wanted = ids(&case["new_ids"]);
        let mut next = ids(&case["ids"]);
        let mut got: Vec<u32> = Vec::new();
        while got.len() < wanted.len() {
            let hidden = feed(&MODEL, &next, &mut cache);
            let last = hidden.narrow(0, next.len() - 1, 1).unwrap();
            let logits = MODEL.decoder.logits(&last).unwrap().squeeze(0).unwrap();
            next = vec![logits.argmax(0).unwrap().to_scalar().unwrap()];
            got.extend(&next);
        }
        assert_eq!(got, wanted, "after {}", case["prompt"]);
    }
}

#[test]
fn a_directory_with_one_gguf_file_is_loaded_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &str| {
        let error = TextModel::load(dir.path(), Quantization::None, Precision::F32, &Device::Cpu)
            .err()
            .expect("a directory without a model loads")
            .to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    };
    refused("no file ends in .gguf");
    std::fs::hard_link(gguf(), dir.path().join("a.gguf"))
        .or_else(|_| std::fs::copy(gguf(), dir.path().join("a.gguf")).map(|_| ()))
        .unwrap();
    assert!(TextModel::load(dir.path(), Quantization::None, Precision::F32, &Device::Cpu).is_ok());
    std::fs::write(dir.path().join("b.gguf"), "").unwrap();
    refused("b.gguf (not a GGUF file");
    std::fs::remove_file(dir.path().join("b.gguf")).unwrap();
    // A configuration without weights of its own is that of the model which the file was made from.
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": \"gpt2\"}").unwrap();
    assert!(TextModel::load(dir.path(), Quantization::None, Precision::F32, &Device::Cpu).is_ok());
    std::fs::remove_file(dir.path().join("a.gguf")).unwrap();
    refused("model_type is gpt2");
}

/// Property 1 of the cache on real weights.
#[test]
fn with_room_for_the_whole_stream_every_policy_equals_full_attention() {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(9);
    let ids = MODEL.tokenizer.encode(&text).unwrap();
    assert!(ids.len() > 70);
    let run = |policy, chunk: usize| {
        let config = CacheConfig {
            policy,
            budget: 128,
            ..CacheConfig::default()
        };
        let shape = MODEL.shape;
        let mut cache = BoundedCache::new(shape, &config, 3, DType::F32, &Device::Cpu).unwrap();
        let chunks = ids.chunks(chunk);
        let hidden = chunks.map(|ids| feed(&MODEL, ids, &mut cache));
        let hidden = Tensor::cat(&hidden.collect::<Vec<_>>(), 0).unwrap();
        assert_eq!(cache.usage().compactions, 0);
        MODEL.decoder.logits(&hidden).unwrap()
    };
    let full = run(PolicyKind::Full, ids.len());
    for policy in PolicyKind::ALL {
        for chunk in [7, 64] {
            let off = deviation(&run(policy, chunk), &full);
            assert!(off <= 5e-4, "{policy}, chunks of {chunk}: off by {off}");
        }
    }
}

#[test]
fn the_decoder_of_a_multimodal_directory_is_a_text_model() {
    let whole = load(&demo_dir());
    let text = TextModel::load(
        &demo_dir(),
        Quantization::None,
        Precision::F32,
        &Device::Cpu,
    )
    .unwrap();
    let encoded = text.tokenizer.encode("What is in view?").unwrap();
    assert_eq!(encoded, whole.tokenizer.encode("What is in view?").unwrap());
    let end = whole.tokenizer.control("<end_of_utterance>").unwrap();
    assert!(text.tokenizer.is_end(end));
    let hidden = feed(&text, &encoded, &mut full_cache(&text));
    let x = whole.decoder.embed(&encoded).unwrap();
    let marks = vec![Mark::default(); encoded.len()];
    let wanted = whole
        .decoder
        .append(&x, &marks, &mut full_cache(&text))
        .unwrap();
    assert_eq!(deviation(&hidden, &wanted), 0.0);
    let vocabulary = whole.config.vocab_size();
    assert_eq!(text.decoder.logits(&hidden).unwrap().dims()[1], vocabulary);
}

#[test]
fn a_llama_directory_is_loaded() {
    // The demo model's decoder, written as a Llama checkpoint names it.
    let dir = tempfile::tempdir().unwrap();
    let weights = tensors(&demo_dir().join("model.safetensors"))
        .into_iter()
        .filter_map(|(name, tensor)| {
            let rest = name.strip_prefix("model.text_model.")?;
            Some((format!("model.{rest}"), tensor))
        })
        .collect::<std::collections::HashMap<_, _>>();
    candle_core::safetensors::save(&weights, dir.path().join("model.safetensors")).unwrap();
    let mut config = json(&demo_dir().join("config.json"))["text_config"].take();
    config["tie_word_embeddings"] = true.into();
    let write = |config: &Value| {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    };
    write(&config);
    let tokenizer = "tokenizer.json";
    std::fs::copy(demo_dir().join(tokenizer), dir.path().join(tokenizer)).unwrap();
    let load = |path: &std::path::Path| {
        TextModel::load(path, Quantization::None, Precision::F32, &Device::Cpu)
    };
    let (model, whole) = (load(dir.path()).unwrap(), load(&demo_dir()).unwrap());
    assert!(model.template.is_none());
    assert_eq!(model.weight_bytes, whole.weight_bytes);
    let encoded = model.tokenizer.encode("Is there a box?").unwrap();
    let hidden = feed(&model, &encoded, &mut full_cache(&model));
    let wanted = feed(&whole, &encoded, &mut full_cache(&whole));
    assert_eq!(deviation(&hidden, &wanted), 0.0);
    config["eos_token_id"] = "end".into();
    write(&config);
    let error = load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("eos_token_id is \"end\""), "{error}");
}
