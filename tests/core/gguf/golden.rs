//! Decoders of every architecture, with blocks of every kind: numbers by transformers, ids by the published tokenizers.

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use serde_json::Value;

use crate::support::{deviation, golden, json, tensors};

struct Golden {
    name: &'static str,
    widened: TextModel,
    kept: TextModel,
    about: Value,
    ids: Vec<u32>,
    logits: Tensor,
}

impl Golden {
    fn open(name: &'static str) -> Self {
        let dir = golden("gguf");
        let file = dir.join(format!("{name}.gguf"));
        let load = |quantization| {
            TextModel::load(&file, quantization, Precision::F32, &Device::Cpu).unwrap()
        };
        let expected = tensors(&dir.join(format!("{name}.expected.safetensors")));
        let ids = expected["input_ids"].flatten_all().unwrap();
        Self {
            name,
            widened: load(Quantization::None),
            kept: load(Quantization::Auto),
            about: json(&dir.join(format!("{name}.json"))),
            ids: ids.to_dtype(DType::U32).unwrap().to_vec1().unwrap(),
            logits: expected["logits"].squeeze(0).unwrap(),
        }
    }

    fn off(&self, model: &TextModel) -> f32 {
        let config = CacheConfig {
            policy: PolicyKind::Full,
            budget: 128,
            ..CacheConfig::default()
        };
        let cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &Device::Cpu);
        let x = model.decoder.embed(&self.ids).unwrap();
        let marks = vec![Mark::default(); self.ids.len()];
        let hidden = model.decoder.append(&x, &marks, &mut cache.unwrap());
        let logits = model.decoder.logits(&hidden.unwrap()).unwrap();
        deviation(&logits, &self.logits)
    }

    fn check_numbers(&self) {
        let number = |value: &Value| value.as_f64().unwrap() as f32;
        let tolerance = number(&self.about["tolerance"]);
        let off = self.off(&self.widened);
        assert!(off <= tolerance, "{}: logits differ by {off}", self.name);
        // What is multiplied is rounded to 8 bits; rows in the wrong order would change the logits far more.
        let off = self.off(&self.kept);
        assert!(
            off < 0.5,
            "{}, blocks kept: logits differ by {off}",
            self.name
        );
        for (mistake, change) in self.about["perturbed"].as_object().unwrap() {
            assert!(number(change) > 5.0, "{}: {mistake}", self.name);
        }
    }

    fn check_ids(&self) {
        let tokenizer = &self.kept.tokenizer;
        for case in self.about["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let wanted: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let got = tokenizer.chat().encode(text).unwrap();
            assert_eq!(got, wanted, "{}: {text:?}", self.name);
            // Qwen's tokenizers put accents and letters together.
            let whole = text.replace(
                "e\u{301}",
                if self.name.starts_with("qwen") {
                    "é"
                } else {
                    "e\u{301}"
                },
            );
            assert_eq!(tokenizer.decode(&got).unwrap(), whole, "{}", self.name);
        }
    }

    /// The embedding has the same numbers in blocks, and other ids than its own are errors.
    fn check_embedding(&self) {
        let ids = self.ids.as_slice();
        let off = deviation(
            &self.kept.decoder.embed(ids).unwrap(),
            &self.widened.decoder.embed(ids).unwrap(),
        );
        assert_eq!(off, 0.0, "{}", self.name);
        let vocabulary = self.kept.config.vocab_size() as u32;
        for model in [&self.kept, &self.widened] {
            assert!(model.decoder.embed(&[0, vocabulary - 1]).is_ok());
            assert!(model.decoder.embed(&[0, vocabulary]).is_err());
        }
    }

    /// What the file holds is in memory once, a tied embedding too. In panels some blocks take 3 % more, and the last panel of a matrix
    /// may have room for rows that are not there.
    fn check_memory(&self, bytes: u64) {
        let kept = self.kept.weight_bytes;
        let most = bytes + bytes / 32;
        assert!(
            (bytes..=most).contains(&kept),
            "{}: {kept} bytes",
            self.name
        );
        assert!(self.widened.weight_bytes > bytes, "{}", self.name);
    }

    /// `bytes` is what the tensors take, matrices of half floats as f32.
    fn check(&self, bytes: u64) {
        self.check_numbers();
        self.check_ids();
        self.check_embedding();
        self.check_memory(bytes);
    }
}

#[test]
fn llama_with_sentencepiece_and_linear_scaling() {
    let golden = Golden::open("llama");
    golden.check(172_848);
    let prompt = golden.kept.tokenizer.chat().encode_prompt("Hello").unwrap();
    assert_eq!(prompt[0], 1);
    assert!(golden.kept.tokenizer.is_end(2));
}

#[test]
fn llama3_with_k_blocks_and_scaled_frequencies() {
    let golden = Golden::open("llama3_k");
    golden.check(304_804);
    let prompt = golden.kept.tokenizer.chat().encode_prompt("Hello").unwrap();
    assert_eq!(prompt[0], 316);
}

#[test]
fn qwen2_with_biases() {
    let golden = Golden::open("qwen2");
    golden.check(132_224);
    let tokenizer = &golden.kept.tokenizer;
    let prompt = tokenizer.chat().encode_prompt("Hello").unwrap();
    assert_eq!(prompt, tokenizer.encode("Hello").unwrap());
}

#[test]
fn qwen3_with_normalised_queries_and_keys() {
    Golden::open("qwen3").check(247_808);
}
