//! What must hold for every policy, budget and chunking (properties 1, 2, 5 and 6 of the cache's description).

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, CacheError, CacheShape, PolicyKind, Scope};
use inf_mllm::model::smolvlm::SmolVlm;
use proptest::prelude::*;

use crate::support::{deviation, load, tiny_dir};

const SHAPE: CacheShape = CacheShape {
    layers: 2,
    heads: 6,
    kv_heads: 2,
    head_dim: 8,
    rope_theta: 1e4,
    max_positions: 4096,
};

const EVICTING: [PolicyKind; 3] = [
    PolicyKind::Window,
    PolicyKind::StreamingLlm,
    PolicyKind::InfMllm,
];

fn cache(config: &CacheConfig, system_tokens: usize) -> Result<BoundedCache, CacheError> {
    BoundedCache::new(SHAPE, config, system_tokens, DType::F32, &Device::Cpu)
}

/// Random but repeatable numbers for token `index` of a stream, so that every chunking feeds the same stream.
fn vectors(index: u64, heads: usize, salt: u64) -> Vec<f32> {
    let mut state = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (salt << 32);
    (0..heads * SHAPE.head_dim)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as f32 / (1u64 << 30) as f32 - 1.0) * 2.0
        })
        .collect()
}

/// `[heads, tokens, head_dim]` for the next `tokens` tokens of a stream.
fn rows(first: u64, tokens: usize, heads: usize, salt: u64) -> Tensor {
    let values = (first..first + tokens as u64)
        .flat_map(|index| vectors(index, heads, salt))
        .collect::<Vec<_>>();
    Tensor::from_vec(values, (tokens, heads, SHAPE.head_dim), &Device::Cpu)
        .unwrap()
        .transpose(0, 1)
        .unwrap()
        .contiguous()
        .unwrap()
}

/// Feeds the next `tokens` tokens of the stream, split to the free room as the decoder does.
fn feed(cache: &mut BoundedCache, tokens: usize) {
    let mut left = tokens;
    while left > 0 {
        let taken = cache.room(left).unwrap().min(left);
        let first = cache.usage().tokens_seen;
        let admitted = cache.admit(&vec![None; taken]);
        for i in 0..SHAPE.layers {
            let salt = 10 * i as u64;
            let (layer, rotary) = cache.layer(i);
            let q = rows(first, taken, SHAPE.heads, salt);
            let k = rows(first, taken, SHAPE.kv_heads, salt + 1);
            let v = rows(first, taken, SHAPE.kv_heads, salt + 2);
            layer.attend(&q, &k, &v, &admitted, rotary).unwrap();
        }
        left -= taken;
    }
}

/// Stream indices per layer and kept set.
fn kept(cache: &BoundedCache) -> Vec<Vec<Vec<u64>>> {
    let layers = cache.layers().iter();
    layers
        .map(|layer| {
            layer
                .sets()
                .map(|set| set.iter().map(|token| token.index).collect())
                .collect()
        })
        .collect()
}

/// The invariants of a cache at rest.
fn check(cache: &BoundedCache) {
    let plan = *cache.plan();
    let usage = cache.usage();
    assert!(usage.used <= plan.budget, "{usage:?} above {plan:?}");
    assert_eq!(usage.used, usage.prefix + usage.relevant + usage.recent);
    assert_eq!(usage.tokens_seen, usage.used as u64 + usage.tokens_evicted);
    for (i, layer) in cache.layers().iter().enumerate() {
        assert_eq!(layer.len(), usage.used, "layer {i}");
        for set in layer.sets() {
            let indices = set.iter().map(|token| token.index).collect::<Vec<_>>();
            assert!(indices.windows(2).all(|w| w[0] < w[1]), "order of time");
            let prefix = plan.prefix.min(indices.len());
            assert!(
                (0..prefix).all(|slot| indices[slot] == slot as u64),
                "prefix"
            );
            let recent = plan.recent.min(indices.len());
            let newest = &indices[indices.len() - recent..];
            let expected = usage.tokens_seen - recent as u64..usage.tokens_seen;
            assert!(newest.iter().copied().eq(expected), "newest tokens");
        }
    }
}

/// Every key is its own raw key rotated to its slot, and the raw key is that of its token.
fn check_keys(cache: &mut BoundedCache) {
    for i in 0..SHAPE.layers {
        let (layer, rotary) = cache.layer(i);
        let raw = layer.raw_keys().unwrap().contiguous().unwrap();
        let fresh = rotary.rotate(&raw, 0).unwrap();
        assert!(deviation(&layer.keys().unwrap().contiguous().unwrap(), &fresh) <= 1e-6);
        for (head, set) in layer.sets().cycle().take(SHAPE.kv_heads).enumerate() {
            for (slot, token) in set.iter().enumerate() {
                let all = vectors(token.index, SHAPE.kv_heads, 10 * i as u64 + 1);
                let want = &all[head * SHAPE.head_dim..(head + 1) * SHAPE.head_dim];
                let got = raw.get(head).unwrap().get(slot).unwrap();
                assert_eq!(got.to_vec1::<f32>().unwrap(), want);
            }
        }
    }
}

fn any_config() -> impl Strategy<Value = (CacheConfig, usize)> {
    (
        prop::sample::select(EVICTING.to_vec()),
        0usize..12,
        8usize..90,
        0usize..40,
        1usize..40,
        prop::sample::select(vec![Scope::Layer, Scope::KvHead]),
    )
        .prop_map(|(policy, system, above, slack, query_window, scope)| {
            let config = CacheConfig {
                policy,
                budget: system.max(4) + above,
                slack: slack.min(above - 4),
                query_window,
                scope,
                ..CacheConfig::default()
            };
            (config, system)
        })
}

#[derive(Debug, Clone)]
enum Step {
    Feed(usize),
    Reserve(usize),
    Reset,
    /// Feed something and take it back.
    Ephemeral(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..100).prop_map(Step::Feed),
        3 => (0usize..64).prop_map(Step::Reserve),
        1 => Just(Step::Reset),
        1 => (1usize..100).prop_map(Step::Ephemeral),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_of_steps_holds_the_invariants(
        (config, system) in any_config(),
        steps in prop::collection::vec(any_step(), 1..14),
    ) {
        let mut cache = cache(&config, system).unwrap();
        let bytes = cache.usage().bytes;
        for step in steps {
            match step {
                Step::Feed(tokens) => feed(&mut cache, tokens),
                Step::Reserve(next) => {
                    cache.reserve(next).unwrap();
                    let free = cache.plan().budget - cache.len();
                    prop_assert!(free >= next.min(cache.plan().slack));
                }
                Step::Reset => cache.reset(system).unwrap(),
                Step::Ephemeral(tokens) => {
                    let before = (kept(&cache), cache.usage());
                    let saved = cache.snapshot().unwrap();
                    feed(&mut cache, tokens);
                    cache.restore(saved).unwrap();
                    prop_assert_eq!(&before, &(kept(&cache), cache.usage()));
                }
            }
            check(&cache);
            prop_assert_eq!(cache.usage().bytes, bytes);
        }
        if !cache.is_empty() {
            check_keys(&mut cache);
        }
    }

    #[test]
    fn the_kept_sets_do_not_depend_on_the_chunking((config, system) in any_config()) {
        let total = 3 * config.budget + 17;
        let run = |chunk: usize| {
            let mut cache = cache(&config, system).unwrap();
            let mut fed = 0;
            while fed < total {
                let next = chunk.min(total - fed);
                feed(&mut cache, next);
                check(&cache);
                fed += next;
            }
            kept(&cache)
        };
        let one = run(1);
        for chunk in [7, 64, 256] {
            prop_assert_eq!(&one, &run(chunk), "chunks of {}", chunk);
        }
    }
}

#[test]
fn a_stream_of_a_hundred_budgets_stays_within_one() {
    for policy in EVICTING {
        let config = CacheConfig {
            policy,
            budget: 64,
            ..CacheConfig::default()
        };
        let mut cache = cache(&config, 6).unwrap();
        let bytes = cache.usage().bytes;
        while cache.usage().tokens_seen < 6400 {
            feed(&mut cache, 13);
            cache.reserve(13).unwrap();
            check(&cache);
        }
        assert_eq!(cache.usage().bytes, bytes);
        assert!(cache.usage().compactions > 100);
        check_keys(&mut cache);
    }
}

#[test]
fn a_full_cache_without_eviction_is_an_error_with_the_numbers() {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 32,
        ..CacheConfig::default()
    };
    let mut cache = cache(&config, 0).unwrap();
    feed(&mut cache, 30);
    let error = cache.room(3).unwrap_err().to_string();
    assert!(error.contains("30 of 32") && error.contains('3'), "{error}");
    // What still fits goes on working.
    feed(&mut cache, 2);
    assert_eq!(cache.len(), 32);
}

#[test]
fn impossible_parameters_are_refused_with_name_value_and_range() {
    let refused = |change: fn(&mut CacheConfig), name: &str, value: &str| {
        let mut config = CacheConfig::default();
        change(&mut config);
        let error = cache(&config, 20).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains(value) && error.contains("expected"),
            "{error}"
        );
    };
    refused(|c| c.budget = 27, "budget", "27");
    refused(|c| c.budget = 5000, "budget", "5000");
    refused(|c| c.slack = 500, "slack", "500");
    refused(|c| c.n_recent = 600, "n_recent", "600");
    refused(|c| c.bias = -1.0, "bias", "-1");
    refused(|c| c.bias = f64::NAN, "bias", "NaN");
    refused(|c| c.query_window = 0, "query_window", "0");
}

fn ids(model: &SmolVlm, count: usize) -> Vec<u32> {
    let vocab = model.config.text_config.vocab_size as u64;
    (0..count as u64)
        .map(|i| ((i * 7919 + 13) % (vocab - 20)) as u32)
        .collect()
}

fn run_model(
    model: &SmolVlm,
    config: &CacheConfig,
    ids: &[u32],
    chunk: usize,
) -> (Tensor, BoundedCache) {
    let shape = model.config.text_config.cache_shape();
    let mut cache = BoundedCache::new(shape, config, 3, DType::F32, model.device()).unwrap();
    let mut hidden = Vec::new();
    for part in ids.chunks(chunk) {
        let x = model.embed(part, None).unwrap();
        let frames = vec![None; part.len()];
        hidden.push(model.decoder.append(&x, &frames, &mut cache).unwrap());
        cache.reserve(chunk).unwrap();
    }
    let logits = model
        .decoder
        .logits(&Tensor::cat(&hidden, 0).unwrap())
        .unwrap();
    (logits, cache)
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
    let (full, _) = run_model(&model, &config(PolicyKind::Full), &ids, 90);
    for policy in PolicyKind::ALL {
        for chunk in [1, 7, 64] {
            let (logits, cache) = run_model(&model, &config(policy), &ids, chunk);
            assert_eq!(cache.usage().compactions, 0);
            let off = deviation(&logits, &full);
            assert!(off <= 1e-4, "{policy}, chunks of {chunk}: off by {off}");
        }
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
    let (_, cache) = run_model(&model, &config, &ids, 11);
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
    let (_, fresh) = run_model(&model, &whole, &left, left.len());
    let keys = |cache: &BoundedCache| cache.layers()[0].keys().unwrap().contiguous().unwrap();
    assert!(deviation(&keys(&cache), &keys(&fresh)) <= 1e-5);
}
