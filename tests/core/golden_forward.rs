//! One turn with two images: every number from the pixels to the greedy answer, against transformers.

use std::path::Path;

use candle_core::{DType, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::vision::{Layout, View};
use serde_json::Value;

use crate::support::{demo_dir, deviation, golden, ids, json, load, tensors, tiny_dir};

/// Two grey levels in normalised values: these goldens are of Pillow, whose weights are finer than torchvision's.
const PIXEL_TOLERANCE: f32 = 4.0 / 255.0 + 1e-6;
/// On average over a picture, three tenths of a level.
const MEAN_PIXEL_TOLERANCE: f32 = 0.6 / 255.0;

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
        ids(&self.inputs["input_ids"])
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
            let wanted = wanted.narrow(0, i, 1).unwrap();
            let largest = deviation(&got, &wanted);
            let mean = (got - wanted).unwrap().abs().unwrap().mean_all().unwrap();
            let mean = mean.to_scalar::<f32>().unwrap();
            assert!(
                largest <= PIXEL_TOLERANCE && mean <= MEAN_PIXEL_TOLERANCE,
                "{name}: pixel values differ by {largest}, on average by {mean}"
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

        let prompt = self.ids();
        let mut cache = full_cache(&self.model);
        let chunk = self.model.embed(&prompt, &images).unwrap();
        let mut hidden = self
            .model
            .decoder
            .append_embedded(&chunk.embedded, &chunk.marks(), &mut cache)
            .unwrap();
        let logits = self.model.decoder.logits(&hidden).unwrap();
        let off = deviation(&logits.unsqueeze(0).unwrap(), &self.expected["logits"]);
        assert!(off <= self.tolerance(), "logits differ by {off}");

        let wanted = ids(&self.expected["generated_ids"]);
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
        let shape = &self.model.shape;
        // With one query head per KV head there are no groups to swap, but an order of the heads.
        let heads = match shape.heads == shape.kv_heads {
            true => "reversed_groups",
            false => "swapped_groups",
        };
        for mistake in ["mask_off_by_one", heads, "no_positions"] {
            let change = self.about["perturbed"][mistake].as_f64().unwrap() as f32;
            assert!(
                change >= 100.0 * self.tolerance(),
                "{mistake} changes the logits by {change} only"
            );
        }
    }
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
