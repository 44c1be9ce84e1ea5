//! One turn with two images: every number from the pixels to the greedy answer, against transformers.

use std::path::Path;

use candle_core::{DType, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::vision::{Layout, View};
use serde_json::Value;

use crate::support::{demo_dir, deviation, golden, json, load, tensors, tiny_dir};

/// One grey level in normalised values: transformers' two backends differ by that much, and Pillow 13 runs the passes of some
/// sizes in the other order.
const PIXEL_TOLERANCE: f32 = 2.0 / 255.0 + 1e-6;

struct Golden {
    model: Mllm,
    about: Value,
    inputs: std::collections::HashMap<String, Tensor>,
    expected: std::collections::HashMap<String, Tensor>,
    dir: std::path::PathBuf,
}

impl Golden {
    fn open(name: &str, model_dir: &Path) -> Self {
        let dir = golden(name);
        Self {
            model: load(model_dir),
            about: json(&dir.join("forward.json")),
            inputs: tensors(&dir.join("inputs.safetensors")),
            expected: tensors(&dir.join("expected.safetensors")),
            dir,
        }
    }

    fn tolerance(&self) -> f32 {
        self.about["tolerance"].as_f64().unwrap() as f32
    }

    fn ids(&self) -> Vec<u32> {
        to_ids(&self.inputs["input_ids"])
    }

    fn pixels(&self) -> Tensor {
        self.inputs["pixel_values"].squeeze(0).unwrap()
    }

    fn layout(&self) -> Layout {
        self.model.vision.layout((640, 480), View::Frame)
    }

    /// This crate's resizing and normalisation give the processor's pixels.
    fn check_pixels(&self) {
        let wanted = self.pixels();
        for (i, name) in self.about["images"].as_array().unwrap().iter().enumerate() {
            let picture = image::open(self.dir.join(name.as_str().unwrap())).unwrap();
            let vision = &self.model.vision;
            let prepared = vision.prepare(&picture.to_rgb8(), View::Frame);
            let got = vision.pixels(&prepared).unwrap().values;
            let deviation = deviation(&got, &wanted.narrow(0, i, 1).unwrap());
            assert!(
                deviation <= PIXEL_TOLERANCE,
                "{name}: pixel values differ by {deviation}"
            );
        }
    }

    /// The checkpoint's chat template and tokenizer give the published ids.
    fn check_prompt(&self) {
        let images = self.about["images"].as_array().unwrap().len();
        let mut content = vec![Content::Image; images];
        content.push(Content::Text {
            text: self.about["question"].as_str().unwrap().to_string(),
        });
        let rendered = self
            .model
            .template
            .render(&[Message {
                role: "user",
                content,
            }])
            .unwrap();
        assert_eq!(rendered, self.about["template_text"].as_str().unwrap());
        let layouts = vec![self.layout(); images];
        let expanded = self.model.expand(&rendered, &layouts).unwrap();
        assert_eq!(self.model.tokenizer.encode(&expanded).unwrap(), self.ids());
    }

    /// Vision tower, connector, decoder and greedy answer.
    fn check_numbers(&self) {
        let vision = &self.model.vision;
        let images = vision.split(&self.inputs, View::Frame).unwrap();
        let images = images
            .iter()
            .map(|pixels| vision.encode(pixels).unwrap())
            .collect::<Vec<_>>();
        let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
        let wanted = self.expected["image_features"].flatten_to(1).unwrap();
        let off = deviation(&Tensor::cat(&rows, 0).unwrap(), &wanted);
        assert!(off <= self.tolerance(), "image features differ by {off}");

        let ids = self.ids();
        let mut cache = full_cache(&self.model);
        let chunk = self.model.embed(&ids, &images).unwrap();
        let mut hidden = self
            .model
            .decoder
            .append_embedded(&chunk.embedded, &chunk.marks(), &mut cache)
            .unwrap();
        let logits = self.model.decoder.logits(&hidden).unwrap();
        let off = deviation(&logits.unsqueeze(0).unwrap(), &self.expected["logits"]);
        assert!(off <= self.tolerance(), "logits differ by {off}");

        let wanted = to_ids(&self.expected["generated_ids"]);
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            let last = hidden.narrow(0, hidden.dim(0).unwrap() - 1, 1).unwrap();
            let logits = self.model.decoder.logits(&last).unwrap();
            let token = logits.squeeze(0).unwrap().argmax(0).unwrap();
            got.push(token.to_scalar::<u32>().unwrap());
            let x = self.model.decoder.embed(&got[got.len() - 1..]).unwrap();
            hidden = self
                .model
                .decoder
                .append(&x, &[Mark::default()], &mut cache)
                .unwrap();
        }
        assert_eq!(got, wanted, "greedy answers differ");
    }

    /// A wrong mask, group order or rotation changes these logits far more than the tolerance allows.
    fn check_sensitivity(&self) {
        for mistake in ["mask_off_by_one", "swapped_groups", "no_positions"] {
            let change = self.about["perturbed"][mistake].as_f64().unwrap() as f32;
            assert!(
                change >= 100.0 * self.tolerance(),
                "{mistake} changes the logits by {change} only"
            );
        }
    }
}

fn to_ids(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn full_cache(model: &Mllm) -> BoundedCache {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 256,
        ..CacheConfig::default()
    };
    BoundedCache::new(model.shape, &config, 0, DType::F32, model.device()).unwrap()
}

#[test]
fn a_tiny_checkpoint_gives_the_numbers_of_transformers() {
    let golden = Golden::open("tiny_forward", &tiny_dir());
    golden.check_pixels();
    golden.check_prompt();
    golden.check_numbers();
    golden.check_sensitivity();
}

#[test]
fn the_demo_model_gives_the_numbers_of_transformers() {
    let golden = Golden::open("demo_forward", &demo_dir());
    golden.check_pixels();
    golden.check_prompt();
    golden.check_numbers();
    golden.check_sensitivity();
}
