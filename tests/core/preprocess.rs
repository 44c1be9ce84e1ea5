//! The families' image processors at the sizes of the published checkpoints, byte for byte.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::family::Family;
use inf_mllm::model::vision::{View, Vision};
use inf_mllm::model::weights::{TensorMap, Weights};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{golden, json, tensors};

/// A configuration and a turn of pictures put through it.
#[derive(Deserialize)]
struct Case {
    images: Vec<String>,
    preprocessor_config: Value,
    /// Said in the call, against the configuration.
    do_image_splitting: Option<bool>,
    /// Of the published processor's `pixel_values`.
    shape: Vec<usize>,
    rows: Option<[Vec<usize>; 1]>,
    cols: Option<[Vec<usize>; 1]>,
    #[serde(alias = "video_grid_thw")]
    image_grid_thw: Option<Vec<[usize; 3]>>,
}

impl Case {
    fn kind(&self) -> &str {
        self.preprocessor_config["image_processor_type"]
            .as_str()
            .unwrap()
    }

    /// The directory of a family that has this processor.
    fn family(&self) -> &'static str {
        match self.kind() {
            "Idefics3ImageProcessor" | "SmolVLMVideoProcessor" => "idefics3",
            "CLIPImageProcessor" => "llava",
            "LlavaNextImageProcessor" => "llava_next",
            "LlavaOnevisionImageProcessor" | "LlavaOnevisionVideoProcessor" => "llava_onevision",
            "GotOcr2ImageProcessor" | "InternVLVideoProcessor" => "internvl",
            "Lfm2VlImageProcessor" => "lfm2_5_vl",
            "Qwen2VLImageProcessor" | "Qwen2VLVideoProcessor" => "qwen2_5_vl",
            "Qwen3VLVideoProcessor" => "qwen3_vl",
            other => panic!("no family has the processor {other}"),
        }
    }

    fn view(&self) -> View {
        match self.kind().ends_with("VideoProcessor") || self.do_image_splitting == Some(false) {
            true => View::Frame,
            false => View::Image {
                of: self.images.len(),
            },
        }
    }

    /// The family's tower for pictures of the published sizes, whose weights do not matter.
    fn vision(&self) -> Box<dyn Vision> {
        let published = golden("families").join(self.family());
        let mut config = json(&published.join("config.json"));
        let vision = &mut config["vision_config"];
        let size = |name: &str| self.preprocessor_config[name].as_u64();
        let patch = match size("patch_size").or(size("encoder_patch_size")) {
            Some(patch) => {
                vision["window_size"] = (8 * patch).into();
                patch
            }
            // As many patches as before, of larger tiles.
            None => {
                let number = |value: &Value| value.as_u64().or(value[0].as_u64());
                let side = |name: &str| number(&vision[name]).unwrap();
                let patches = side("image_size") / side("patch_size");
                let size = self.shape[self.shape.len() - 1] as u64;
                vision["image_size"] = size.into();
                size / patches
            }
        };
        vision["patch_size"] = patch.into();
        config["image_grid_pinpoints"] = self.preprocessor_config["image_grid_pinpoints"].clone();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: &Value| {
            fs::write(dir.path().join(name), json.to_string()).unwrap();
        };
        write("config.json", &config);
        write("preprocessor_config.json", &self.preprocessor_config);
        if self.kind() == "SmolVLMVideoProcessor" {
            // In one file with what images are brought to.
            let mut images = self.preprocessor_config.clone();
            images["video_sampling"] = serde_json::json!({ "video_size": images["size"] });
            images["size"] = serde_json::json!({ "longest_edge": 2048 });
            write("preprocessor_config.json", &images);
        }
        if self.kind().starts_with("Qwen") && self.view() == View::Frame {
            write("video_preprocessor_config.json", &self.preprocessor_config);
            // Limits, mean and deviation of images are none of frames'.
            let mut images = self.preprocessor_config.clone();
            for name in ["min_pixels", "max_pixels"] {
                images[name] = 30_000.into();
            }
            for name in ["image_mean", "image_std"] {
                images[name] = serde_json::json!([0.25, 0.25, 0.25]);
            }
            write("preprocessor_config.json", &images);
        }

        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let tensors = TensorMap {
            tensors: weights(&published, patch as usize),
            place: "the test".to_string(),
        };
        let family = Family::find(&checkpoint).unwrap();
        let opened = (family.open)(&checkpoint).unwrap();
        let weights = Weights::new(Arc::new(tensors), DType::F32, &Device::Cpu);
        opened.vision(&checkpoint, &weights).unwrap()
    }

    /// Layouts and bytes of the turn's pictures.
    fn check(&self, name: &str) {
        let (vision, view) = (self.vision(), self.view());
        let mut values = Vec::new();
        for (i, image) in self.images.iter().enumerate() {
            let picture = image::open(golden("preprocess").join(image)).unwrap();
            let prepared = vision.prepare(&picture.to_rgb8(), view);
            if let (Some([rows]), Some([cols])) = (&self.rows, &self.cols) {
                assert_eq!(prepared.layout.grid, [1, rows[i], cols[i]], "{name}");
            }
            if let Some(grids) = &self.image_grid_thw {
                assert_eq!(prepared.layout.grid, grids[i], "{name}");
            }
            let pixels = vision.pixels(&prepared).unwrap();
            values.extend(
                pixels
                    .values
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap(),
            );
        }
        assert_eq!(values.len(), self.shape.iter().product::<usize>(), "{name}");

        let wanted = tensors(&golden("preprocess").join(format!("{name}.safetensors")));
        let index = wanted["index"].to_dtype(DType::U32).unwrap();
        let index = index.to_vec1::<u32>().unwrap();
        let levels = wanted["levels"].to_vec1::<u8>().unwrap();
        for (&at, &wanted) in index.iter().zip(&levels) {
            let at = at as usize;
            let got = self.level(values[at], at);
            assert_eq!(got, wanted, "{name}: grey level of value {at}");
        }
    }

    /// The grey level of a value, which stands at `index`.
    fn level(&self, value: f32, index: usize) -> u8 {
        let config = &self.preprocessor_config;
        let plane = match self.shape.as_slice() {
            // Patches whose pixels are whole.
            [_, _] if config["encoder_patch_size"].is_u64() => 1,
            [_, _] => {
                let size = |name: &str| config[name].as_u64().unwrap() as usize;
                size("temporal_patch_size") * size("patch_size").pow(2)
            }
            shape => shape[shape.len() - 2..].iter().product(),
        };
        let channel = index / plane % 3;
        let of_channel = |name: &str| config[name][channel].as_f64().unwrap();
        let level = (f64::from(value) * of_channel("image_std") + of_channel("image_mean")) * 255.0;
        assert!((level - level.round()).abs() < 1e-3, "{level} is no level");
        level.round() as u8
    }
}

/// A family's weights, with patches of `side` pixels.
fn weights(dir: &Path, side: usize) -> HashMap<String, Tensor> {
    let files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shards = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let mut weights = HashMap::new();
    for (name, tensor) in shards.flat_map(|shard| tensors(&shard)) {
        let is_patch = name.contains("patch_embed") && tensor.rank() > 1;
        let tensor = match is_patch {
            true => {
                let mut shape = tensor.dims().to_vec();
                match shape.as_mut_slice() {
                    [_, values] => *values = 3 * side * side,
                    [.., height, width] => [*height, *width] = [side, side],
                    _ => {}
                }
                Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
            }
            false => tensor,
        };
        weights.insert(name, tensor);
    }
    weights
}

#[test]
fn the_published_image_processors_give_these_bytes() {
    let cases = json(&golden("preprocess/cases.json"));
    let cases: HashMap<String, Case> = serde_json::from_value(cases).unwrap();
    assert!(!cases.is_empty());
    for (name, case) in &cases {
        case.check(name);
    }
}
