//! Visual-token withdrawal: from some layer on, the cache holds text only.

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::stream::Session;

use crate::support::{deviation, instruction, load, picture, tiny_config, tiny_dir};

const LAYER: usize = 1;

fn cache(model: &Mllm, policy: PolicyKind, budget: usize, withdraw_layer: usize) -> BoundedCache {
    let config = CacheConfig {
        policy,
        budget,
        withdraw_layer,
        ..CacheConfig::default()
    };
    let shape = model.shape;
    BoundedCache::new(shape, &config, 3, DType::F32, &Device::Cpu).unwrap()
}

/// Feeds `text` tokens, an image of `image` tokens as frame `frame`, and `text` tokens again; returns the last hidden states.
fn feed(
    model: &Mllm,
    cache: &mut BoundedCache,
    frame: u32,
    (text, image): (usize, usize),
) -> Tensor {
    let total = 2 * text + image;
    let ids = (0..total as u32)
        .map(|i| (i * 37 + frame * 11) % 250)
        .collect::<Vec<_>>();
    let marks = (0..total)
        .map(|i| match (text..text + image).contains(&i) {
            true => Mark::image(frame),
            false => Mark::default(),
        })
        .collect::<Vec<_>>();
    let x = model.decoder.embed(&ids).unwrap();
    let hidden = model.decoder.append(&x, &marks, cache).unwrap();
    cache.reserve(total).unwrap();
    hidden
}

#[test]
fn layers_behind_the_withdrawal_hold_text_only_and_have_a_budget_of_their_own() {
    let model = load(&tiny_dir());
    for policy in [
        PolicyKind::Window,
        PolicyKind::StreamingLlm,
        PolicyKind::H2o,
        PolicyKind::Tova,
        PolicyKind::SnapKv,
        PolicyKind::InfMllm,
        PolicyKind::InfMllmPlus,
    ] {
        let mut cache = cache(&model, policy, 64, LAYER);
        for frame in 0..30 {
            let hidden = feed(&model, &mut cache, frame, (3, 9));
            assert_eq!(
                hidden.dim(0).unwrap(),
                6,
                "{policy}: text tokens at the top"
            );
        }
        for (i, layer) in cache.layers().iter().enumerate() {
            assert!(layer.len() <= 64);
            for set in layer.sets() {
                let images = set.iter().filter(|token| token.mark.frame.is_some());
                let images = images.count();
                assert_eq!(images == 0, i >= LAYER, "{policy}: {images} in layer {i}");
                assert!(set.windows(2).all(|w| w[0].index < w[1].index));
            }
        }
        // More text fits where no image takes the room: these layers look farther back.
        let text = |layer: usize| {
            let sets = cache.layers()[layer].sets();
            let count = |set: Vec<inf_mllm::cache::Token>| {
                set.iter()
                    .filter(|token| token.mark.frame.is_none())
                    .count()
            };
            sets.map(count).min().unwrap()
        };
        assert!(text(LAYER) > text(0), "{policy}");
        assert!(cache.retained_frames().values().all(|&kept| kept <= 9.0));
    }
}

#[test]
fn a_chunk_without_text_does_not_touch_them() {
    let model = load(&tiny_dir());
    let mut cache = cache(&model, PolicyKind::InfMllm, 64, LAYER);
    feed(&model, &mut cache, 0, (3, 9));
    let before = cache.layers()[LAYER].len();
    let hidden = feed(&model, &mut cache, 1, (0, 9));
    assert_eq!(hidden.dims()[0], 0);
    assert_eq!(cache.layers()[LAYER].len(), before);
    assert_eq!(cache.layers()[0].len(), 15 + 9);
}

/// What came before an image is what full attention gives; what comes after it is not, for the image is gone from the upper layers.
#[test]
fn only_what_follows_an_image_is_changed() {
    let model = load(&tiny_dir());
    let mut with = cache(&model, PolicyKind::Full, 64, LAYER);
    let mut without = cache(&model, PolicyKind::Full, 64, 0);
    let seen = feed(&model, &mut with, 0, (4, 0));
    let alone = feed(&model, &mut without, 0, (4, 0));
    assert_eq!(deviation(&seen, &alone), 0.0, "text alone is not touched");
    let seen = feed(&model, &mut with, 1, (4, 9));
    let whole = feed(&model, &mut without, 1, (4, 9));
    let before_image = whole.narrow(0, 0, 4).unwrap();
    let off = deviation(&seen.narrow(0, 0, 4).unwrap(), &before_image);
    assert!(off < 1e-5, "what came before the image: off by {off}");
    let after_image = whole.narrow(0, 13, 4).unwrap();
    let off = deviation(&seen.narrow(0, 4, 4).unwrap(), &after_image);
    assert!(
        off > 1e-3,
        "the image has left the upper layers: off by {off}"
    );
}

/// Layers with one kept set for all of them fill at their own pace where images do not reach some: long questions fit into all.
#[test]
fn long_questions_are_answered_whatever_the_policy_and_the_layer() {
    for policy in [
        PolicyKind::InfMllmPlus,
        PolicyKind::InfMllm,
        PolicyKind::H2o,
    ] {
        for layer in [1, 2] {
            let mut config = tiny_config();
            config.cache.policy = policy;
            config.cache.budget = 320;
            config.cache.withdraw_layer = layer;
            let mut session = Session::new(config).unwrap();
            let tokenizer = &session.model().tokenizer;
            let question = (1..)
                .map(|words| "a red box ".repeat(words))
                .find(|text| tokenizer.encode_text(text).unwrap().len() >= 90)
                .unwrap();
            for round in 0..12 {
                for i in 0..3 {
                    let stamp_ms = round * 1000 + i * 100;
                    session.push_frame(&picture(stamp_ms, [9, 200, 7])).unwrap();
                }
                let answer = session.ask(&instruction("a", &question), &|| false, &mut |_| ());
                assert_eq!(answer.error, None, "{policy}, layer {layer}, round {round}");
                assert!(answer.prompt_tokens >= 90);
            }
        }
    }
}
