//! A model on the bounded cache against the same model with full attention.

use candle_core::{DType, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;

use crate::support::{deviation, load, tiny_dir};

fn ids(model: &Mllm, count: usize) -> Vec<u32> {
    let vocab = model.config.vocab_size() as u64;
    (0..count as u64)
        .map(|i| ((i * 7919 + 13) % (vocab - 20)) as u32)
        .collect()
}

/// The logits of every token, fed in chunks; after each, `reserve` slots are made free.
fn run_model(
    model: &Mllm,
    config: &CacheConfig,
    ids: &[u32],
    chunk: usize,
    reserve: usize,
) -> (Tensor, BoundedCache) {
    let shape = model.shape;
    let mut cache = BoundedCache::new(shape, config, 3, DType::F32, model.device()).unwrap();
    let logits = feed(model, &mut cache, ids, chunk, reserve);
    (logits, cache)
}

fn feed(
    model: &Mllm,
    cache: &mut BoundedCache,
    ids: &[u32],
    chunk: usize,
    reserve: usize,
) -> Tensor {
    let mut hidden = Vec::new();
    for part in ids.chunks(chunk) {
        let x = model.decoder.embed(part).unwrap();
        let marks = vec![Mark::default(); part.len()];
        hidden.push(model.decoder.append(&x, &marks, cache).unwrap());
        cache.reserve(reserve).unwrap();
    }
    let hidden = Tensor::cat(&hidden, 0).unwrap();
    model.decoder.logits(&hidden).unwrap()
}

#[test]
fn with_room_for_the_whole_stream_every_policy_equals_full_attention() {
    let model = load(&tiny_dir());
    let ids = ids(&model, 90);
    let config = |policy| CacheConfig {
        policy,
        budget: 120,
        ..CacheConfig::default()
    };
    let (full, _) = run_model(&model, &config(PolicyKind::Full), &ids, 90, 90);
    for policy in PolicyKind::ALL {
        for chunk in [1, 7, 64] {
            let (logits, cache) = run_model(&model, &config(policy), &ids, chunk, chunk);
            assert_eq!(cache.usage().compactions, 0);
            let off = deviation(&logits, &full);
            assert!(off <= 1e-4, "{policy}, chunks of {chunk}: off by {off}");
        }
    }
}

#[test]
fn a_chunk_longer_than_the_free_slots_keeps_what_single_tokens_keep() {
    let model = load(&tiny_dir());
    let ids = ids(&model, 230);
    for policy in PolicyKind::ALL {
        if policy == PolicyKind::Full {
            continue;
        }
        let config = CacheConfig {
            policy,
            budget: 64,
            ..CacheConfig::default()
        };
        let run = |chunk: usize| {
            let (logits, cache) = run_model(&model, &config, &ids, chunk, 0);
            let kept = cache.layers().iter().map(|layer| layer.sets().collect());
            (logits, kept.collect::<Vec<Vec<_>>>())
        };
        let (whole, kept) = run(230);
        let (single, kept_one_by_one) = run(1);
        assert_eq!(kept, kept_one_by_one, "{policy}");
        let off = deviation(&whole, &single);
        assert!(off <= 1e-4, "{policy}: off by {off}");
        if policy == PolicyKind::InfMllmPlus {
            let together = kept.iter().all(|sets| *sets == kept[0]);
            assert!(together, "one kept set for all layers");
        }
    }
}

#[test]
fn a_cache_that_was_reset_to_another_prompt_computes_as_a_new_one() {
    let model = load(&tiny_dir());
    let ids = ids(&model, 200);
    for policy in [PolicyKind::InfMllm, PolicyKind::InfMllmPlus] {
        let config = CacheConfig {
            policy,
            budget: 64,
            ..CacheConfig::default()
        };
        let shape = model.shape;
        let new =
            |prompt| BoundedCache::new(shape, &config, prompt, DType::F32, model.device()).unwrap();
        let stream = |cache: &mut BoundedCache| feed(&model, cache, &ids, 16, 16);
        let mut cache = new(3);
        stream(&mut cache);
        cache.reset(19).unwrap();
        let off = deviation(&stream(&mut cache), &stream(&mut new(19)));
        assert!(off == 0.0, "{policy}: off by {off}");
    }
}

#[test]
fn kept_keys_of_the_first_layer_equal_a_fresh_prefill_of_the_kept_tokens() {
    let model = load(&tiny_dir());
    let ids = ids(&model, 400);
    let config = CacheConfig {
        budget: 72,
        ..CacheConfig::default()
    };
    let (_, cache) = run_model(&model, &config, &ids, 11, 11);
    assert!(cache.usage().compactions >= 3);
    let first = &cache.layers()[0];
    let left = first
        .sets()
        .next()
        .unwrap()
        .iter()
        .map(|token| ids[token.index as usize])
        .collect::<Vec<_>>();
    let whole = CacheConfig {
        policy: PolicyKind::Full,
        budget: 120,
        ..CacheConfig::default()
    };
    let (_, fresh) = run_model(&model, &whole, &left, left.len(), 0);
    let keys = |cache: &BoundedCache| cache.layers()[0].raw_keys().unwrap();
    assert!(deviation(&keys(&cache), &keys(&fresh)) <= 1e-5);
}
