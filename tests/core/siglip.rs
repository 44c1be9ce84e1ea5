//! The tower of SmolVLM against another implementation of it in Rust, candle-transformers'.

use candle_core::{safetensors, DType, Device, Module, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::siglip;
use inf_mllm::model::vision::{Layout, Pixels, View};
use serde_json::Value;

use crate::support::{deviation, golden, load};

#[test]
fn features_are_those_of_candle_transformers() {
    let dir = golden("families/idefics3");
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = &serde_json::from_str::<Value>(&config).unwrap()["vision_config"];
    let number = |field: &str| config[field].as_u64().unwrap() as usize;
    let side = number("image_size");
    let config = siglip::VisionConfig {
        hidden_size: number("hidden_size"),
        intermediate_size: number("intermediate_size"),
        num_hidden_layers: number("num_hidden_layers"),
        num_attention_heads: number("num_attention_heads"),
        num_channels: 3,
        image_size: side,
        patch_size: number("patch_size"),
        hidden_act: Activation::GeluPytorchTanh,
        layer_norm_eps: 1e-6,
    };
    let tensors = safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let theirs =
        siglip::VisionModel::new(&config, false, weights.pp("model.vision_model")).unwrap();

    let shape = (3, 3, side, side);
    let pixels = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let ours = load(&dir).vision.tower(&Pixels {
        layout: Layout {
            picture: (side, side),
            view: View::Image { of: 1 },
            grid: [1, 1, 2],
        },
        values: pixels.clone(),
    });
    let off = deviation(&ours.unwrap().features, &theirs.forward(&pixels).unwrap());
    assert!(
        off <= 1e-4,
        "features differ by {off}, expected at most 1e-4"
    );
}
