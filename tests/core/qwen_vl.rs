//! The Qwen-VL families at work: sizes of pictures, and a conversation on the bounded cache.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::vision::View;
use serde_json::Value;

use crate::support::{deviation, golden, json, load, tensors};

const FAMILIES: [&str; 2] = ["qwen2_5_vl", "qwen3_vl"];

fn dir(family: &str) -> PathBuf {
    golden("families").join(family)
}

#[test]
fn temporary_forward() {
    for family in FAMILIES {
        let dir = dir(family);
        let model = load(&dir);
        for name in ["one", "two"] {
            let about = &json(&dir.join("golden/forward.json"))["scenes"][name];
            let inputs = tensors(&dir.join(format!("golden/{name}.inputs.safetensors")));
            let expected = tensors(&dir.join(format!("golden/{name}.expected.safetensors")));
            let view = View::Image { of: 1 };
            let (mut towers, mut images) = (Vec::new(), Vec::new());
            for (i, pixels) in model
                .vision
                .split(&inputs, view)
                .unwrap()
                .iter()
                .enumerate()
            {
                let file = about["images"][i].as_str().unwrap();
                let picture = image::open(dir.join("golden").join(file))
                    .unwrap()
                    .to_rgb8();
                let got = model
                    .vision
                    .pixels(&model.vision.prepare(&picture, view))
                    .unwrap();
                println!(
                    "{family} {name} pixels {}",
                    deviation(&got.values, &pixels.values)
                );
                let tower = model.vision.tower(pixels).unwrap();
                images.push(model.vision.connect(&tower, &pixels.layout).unwrap());
                towers.push(tower.features);
            }
            let off = deviation(
                &Tensor::cat(&towers, 0).unwrap(),
                &expected["vision_features"],
            );
            println!("{family} {name} vision {off}");
            let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
            let off = deviation(&Tensor::cat(&rows, 0).unwrap(), &expected["image_features"]);
            println!("{family} {name} image {off}");
            for layer in 0..images[0].deep.len() {
                let rows = images
                    .iter()
                    .map(|image| &image.deep[layer])
                    .collect::<Vec<_>>();
                let off = deviation(
                    &Tensor::cat(&rows, 0).unwrap(),
                    &expected[&format!("deepstack.{layer}")],
                );
                println!("{family} {name} deep {layer} {off}");
            }
            let ids = inputs["input_ids"]
                .to_dtype(DType::U32)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<u32>()
                .unwrap();
            let chunk = model.embed(&ids, &images).unwrap();
            let config = CacheConfig {
                policy: PolicyKind::Full,
                budget: 200,
                ..CacheConfig::default()
            };
            let mut cache =
                BoundedCache::new(model.shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
            let mut hidden = model
                .decoder
                .append_embedded(&chunk.embedded, &chunk.marks(), &mut cache)
                .unwrap();
            let logits = model.decoder.logits(&hidden).unwrap().unsqueeze(0).unwrap();
            println!(
                "{family} {name} logits {}",
                deviation(&logits, &expected["logits"])
            );
            let positions = expected["position_ids"].to_vec2::<i64>().unwrap();
            for (i, place) in cache.positions(0)[0].iter().enumerate() {
                for axis in 0..3 {
                    assert_eq!(place[axis] as i64, positions[axis][i]);
                }
            }
            let wanted = expected["generated_ids"]
                .to_dtype(DType::U32)
                .unwrap()
                .to_vec1::<u32>()
                .unwrap();
            let mut got = Vec::new();
            while got.len() < wanted.len() {
                let last = hidden.narrow(0, hidden.dim(0).unwrap() - 1, 1).unwrap();
                let logits = model.decoder.logits(&last).unwrap();
                let token = logits.squeeze(0).unwrap().argmax(0).unwrap();
                got.push(token.to_scalar::<u32>().unwrap());
                let x = model.decoder.embed(&got[got.len() - 1..]).unwrap();
                hidden = model
                    .decoder
                    .append(&x, &[Mark::default()], &mut cache)
                    .unwrap();
            }
            assert_eq!(got, wanted);
        }
    }
}

#[test]
fn pictures_become_the_published_sizes() {
    for family in FAMILIES {
        let model = load(&dir(family));
        let forward = json(&dir(family).join("golden/forward.json"));
        let cases: Vec<[usize; 4]> = serde_json::from_value(forward["resized"].clone()).unwrap();
        let config: Value = json(&dir(family).join("config.json"));
        let patch = config["vision_config"]["patch_size"].as_u64().unwrap() as usize;
        for [height, width, down, across] in cases {
            let layout = model.vision.layout((width, height), View::Image { of: 1 });
            let [_, rows, columns] = layout.grid;
            let got = (rows * patch, columns * patch);
            assert_eq!(got, (down, across), "{family}: {height} x {width}");
        }
    }
}
