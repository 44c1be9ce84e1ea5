//! Conversations with pictures or without: every number from the pixels to the greedy answer.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, D};
use image::RgbImage;
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::decoder::Embedded;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::vision::{ImageFeatures, Pixels, View};
use serde::Deserialize;
use serde_json::Value;

use super::model::Model;
use crate::support::{deviation, ids, json, tensors};

/// One scene of `golden/forward.json`.
#[derive(Deserialize)]
struct About {
    /// Files of the pictures.
    #[serde(default)]
    images: Vec<String>,
    #[serde(default)]
    messages: Vec<Value>,
    template_text: Option<String>,
    /// In the place of a conversation, where there is no template.
    text: Option<String>,
    perturbed: HashMap<String, f32>,
}

impl About {
    /// The pictures are one video, which has one placeholder.
    fn has_video(&self) -> bool {
        let is_video = |part: &Value| part["type"] == "video";
        let parts = self.messages.iter().map(|turn| turn["content"].as_array());
        parts.flatten().flatten().any(is_video)
    }
}

struct Scene {
    name: String,
    about: About,
    inputs: HashMap<String, Tensor>,
    expected: HashMap<String, Tensor>,
    tolerance: f32,
}

/// The scenes of a family's directory.
fn scenes(dir: &Path) -> Vec<Scene> {
    let forward = json(&dir.join("golden/forward.json"));
    let tolerance = forward["tolerance"].as_f64().unwrap() as f32;
    let scenes: HashMap<String, About> = serde_json::from_value(forward["scenes"].clone()).unwrap();
    assert!(!scenes.is_empty(), "no scenes");
    let tensors = |name: &str| tensors(&dir.join("golden").join(name));
    let scene = |(name, about): (String, About)| Scene {
        inputs: tensors(&format!("{name}.inputs.safetensors")),
        expected: tensors(&format!("{name}.expected.safetensors")),
        name,
        about,
        tolerance,
    };
    scenes.into_iter().map(scene).collect()
}

impl Scene {
    fn view(&self) -> View {
        match self.name.as_str() {
            "frames" => View::Frame,
            _ => View::Image {
                of: self.about.images.len(),
            },
        }
    }

    fn ids(&self) -> Vec<u32> {
        ids(&self.inputs["input_ids"])
    }

    /// The pictures as the published processor prepared them; frames may be one video.
    fn published(&self, model: &Mllm) -> Vec<Pixels> {
        let pictures = model.vision.split(&self.inputs, self.view()).unwrap();
        let count = match pictures.as_slice() {
            [video] if self.about.has_video() => video.layout.grid[0],
            pictures => pictures.len(),
        };
        assert_eq!(count, self.about.images.len(), "{}", self.name);
        pictures
    }

    fn pictures(&self, dir: &Path) -> Vec<RgbImage> {
        let open = |name: &String| image::open(dir.join("golden").join(name)).unwrap();
        self.about
            .images
            .iter()
            .map(|name| open(name).to_rgb8())
            .collect()
    }

    fn check(&self, what: &str, got: &Tensor, wanted: &Tensor) {
        let off = deviation(got, wanted);
        println!("{}: {what} differ by {off:.1e}", self.name);
        let tolerance = self.tolerance;
        assert!(
            off <= tolerance,
            "{}: {what} differ by {off}, expected at most {tolerance}",
            self.name
        );
    }

    /// Tower and connector.
    fn features(&self, model: &Mllm) -> Vec<ImageFeatures> {
        let (mut towers, mut images) = (Vec::new(), Vec::new());
        for pixels in self.published(model) {
            let tower = model.vision.tower(&pixels).unwrap();
            images.push(model.vision.connect(&tower, &pixels.layout).unwrap());
            let width = tower.features.dim(D::Minus1).unwrap();
            towers.push(tower.features.reshape(((), width)).unwrap());
            let tokens = model.vision.tokens(&pixels.layout);
            assert_eq!(images[images.len() - 1].rows.dim(0).unwrap(), tokens);
        }
        let wanted = self.expected["vision_features"].flatten_to(D::Minus2);
        let towers = Tensor::cat(&towers, 0).unwrap();
        self.check("vision features", &towers, &wanted.unwrap());

        let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
        let rows = Tensor::cat(&rows, 0).unwrap();
        self.check("image features", &rows, &self.expected["image_features"]);
        for layer in 0..images.first().map_or(0, |image| image.deep.len()) {
            let deep = images.iter().map(|image| &image.deep[layer]);
            let deep = Tensor::cat(&deep.collect::<Vec<_>>(), 0).unwrap();
            let wanted = &self.expected[&format!("deepstack.{layer}")];
            self.check("features for a deeper layer", &deep, wanted);
        }
        images
    }

    /// Where the tokens of the prompt stand, where the published library says so.
    fn check_positions(&self, cache: &BoundedCache) {
        let Some(wanted) = self.expected.get("position_ids") else {
            return;
        };
        let wanted = wanted.t().unwrap().to_vec2::<i64>().unwrap();
        let got = cache.positions(0).remove(0).into_iter();
        let got = got.map(|place| place.map(|axis| axis as i64).to_vec());
        assert_eq!(got.collect::<Vec<_>>(), wanted, "{}: positions", self.name);
    }

    /// The decoder's input.
    fn input(&self, model: &Model, dir: &Path) -> (Embedded, Vec<Mark>) {
        let mut ids = self.ids();
        let Model::Multimodal(model) = model else {
            let x = model.decoder().embed(&ids).unwrap();
            return (x.into(), vec![Mark::default(); ids.len()]);
        };
        if self.about.has_video() {
            let config = json(&dir.join("config.json"));
            let video = [&config["video_token_index"], &config["video_token_id"]]
                .into_iter()
                .find_map(Value::as_u64);
            let image = model.tokenizer.control(model.placeholder()).unwrap();
            for id in ids.iter_mut().filter(|id| Some(u64::from(**id)) == video) {
                *id = image;
            }
        }
        let images = match self.about.images.is_empty() {
            true => Vec::new(),
            false => self.features(model),
        };
        let chunk = model.embed(&ids, &images).unwrap();
        let marks = chunk.marks();
        (chunk.embedded, marks)
    }
}

/// Features, logits and greedy answers from the published processor's tensors.
pub fn check_forward(model: &Model, dir: &Path) {
    for scene in scenes(dir) {
        let (input, marks) = scene.input(model, dir);
        let decoder = model.decoder();
        let mut cache = full_cache(model, marks.len() + NEW_TOKENS);
        let mut hidden = decoder.append_embedded(&input, &marks, &mut cache).unwrap();
        scene.check_positions(&cache);
        let logits = decoder.logits(&hidden).unwrap().unsqueeze(0).unwrap();
        scene.check("logits", &logits, &scene.expected["logits"]);

        let wanted = ids(&scene.expected["generated_ids"]);
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            let last = hidden.narrow(0, hidden.dim(0).unwrap() - 1, 1).unwrap();
            let logits = decoder.logits(&last).unwrap().squeeze(0).unwrap();
            got.push(logits.argmax(0).unwrap().to_scalar::<u32>().unwrap());
            let x = decoder.embed(&got[got.len() - 1..]).unwrap();
            hidden = decoder.append(&x, &[Mark::default()], &mut cache).unwrap();
        }
        assert_eq!(got, wanted, "{}: greedy answers differ", scene.name);

        for (mistake, change) in &scene.about.perturbed {
            assert!(
                *change >= 3.0 * scene.tolerance,
                "{}: {mistake} changes the logits by {change} only",
                scene.name
            );
        }
    }
}

const NEW_TOKENS: usize = 32;

fn full_cache(model: &Model, tokens: usize) -> BoundedCache {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: tokens.max(64),
        ..CacheConfig::default()
    };
    BoundedCache::new(model.shape(), &config, 0, DType::F32, &Device::Cpu).unwrap()
}

/// The checkpoint's template and tokenizer make the published ids of a conversation, or of a text.
pub fn check_prompts(model: &Model, dir: &Path) {
    for scene in scenes(dir) {
        let name = &scene.name;
        let tokenizer = model.tokenizer();
        if let Some(text) = &scene.about.text {
            assert_eq!(tokenizer.encode_text(text).unwrap(), scene.ids(), "{name}");
            continue;
        }
        let template = model.template().expect("a chat template");
        let mut prompt = template.render(&scene.about.messages).unwrap();
        let wanted = scene.about.template_text.as_deref();
        assert_eq!(Some(prompt.as_str()), wanted, "{name}");
        if scene.about.has_video() {
            continue;
        }
        if let Model::Multimodal(model) = model {
            let layout = |picture: &RgbImage| {
                let size = (picture.width() as usize, picture.height() as usize);
                model.vision.layout(size, scene.view())
            };
            let layouts = scene.pictures(dir).iter().map(layout).collect::<Vec<_>>();
            prompt = model.expand(&prompt, &layouts).unwrap();
        }
        assert_eq!(
            tokenizer.encode_prompt(&prompt).unwrap(),
            scene.ids(),
            "{name}: {prompt}"
        );
    }
}

/// Of pixel values: their bytes are the same.
const ROUNDING: f32 = 1e-6;

/// This crate's processor gives the published pixel values.
pub fn check_pixels(model: &Model, dir: &Path) {
    let Model::Multimodal(model) = model else {
        return;
    };
    for scene in scenes(dir) {
        let published = scene.published(model).into_iter();
        let published = published.flat_map(|pixels| match scene.about.has_video() {
            true => frames(&pixels),
            false => vec![pixels],
        });
        for (i, (picture, wanted)) in scene.pictures(dir).iter().zip(published).enumerate() {
            let name = format!("{}, picture {i}", scene.name);
            let prepared = model.vision.prepare(picture, scene.view());
            let got = model.vision.pixels(&prepared).unwrap();
            assert_eq!(got.layout.grid, wanted.layout.grid, "{name}");
            let off = deviation(&got.values, &wanted.values);
            assert!(off <= ROUNDING, "{name}: pixel values differ by {off}");
        }
    }
}

/// The frames of a video that came as one, each for itself.
fn frames(video: &Pixels) -> Vec<Pixels> {
    let [time, rows, columns] = video.layout.grid;
    if video.values.rank() != 4 {
        return vec![video.clone()];
    }
    let frame = |i| {
        let mut frame = video.clone();
        frame.layout.grid = [1, rows, columns];
        frame.values = video.values.narrow(0, i, 1).unwrap();
        frame
    };
    (0..time).map(frame).collect()
}

/// Each frame of a video alone has the rows that it has there, and behind them those with which the video ends.
pub fn check_frames(model: &Model, dir: &Path) {
    let Model::Multimodal(model) = model else {
        return;
    };
    let scene = scenes(dir).into_iter().find(|s| s.about.has_video());
    let scene = scene.expect("a scene with a video");
    let video = scene.published(model).remove(0);
    let wanted = &scene.expected["image_features"];
    let count = video.layout.grid[0];
    let (all, whole) = (wanted.dim(0).unwrap(), model.vision.tokens(&video.layout));
    assert_eq!(all, whole);
    for (i, frame) in frames(&video).iter().enumerate() {
        let got = model.vision.encode(frame).unwrap().rows;
        let end = (got.dim(0).unwrap() * count - all) / (count - 1);
        let own = got.dim(0).unwrap() - end;
        let wanted = [
            wanted.narrow(0, i * own, own).unwrap(),
            wanted.narrow(0, count * own, end).unwrap(),
        ];
        scene.check("a frame's rows", &got, &Tensor::cat(&wanted, 0).unwrap());
    }
}
