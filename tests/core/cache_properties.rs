//! What must hold for every policy, budget and chunking: bounds, order, keys, and the same kept sets for any chunking.

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::policy::{BiasForm, PlusConfig};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheError, CacheShape, Mark, PolicyKind, QuerySource, Rope, Scope,
};
use proptest::prelude::*;

const SHAPE: CacheShape = CacheShape {
    layers: 2,
    heads: 6,
    kv_heads: 2,
    head_dim: 8,
    rope: Rope::new(1e4),
    max_positions: 4096,
};

/// Every policy but `full`.
fn evicting() -> Vec<PolicyKind> {
    let all = PolicyKind::ALL.into_iter();
    all.filter(|&policy| policy != PolicyKind::Full).collect()
}

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

/// What token `index` of the stream is: units of 1 to 9 tokens, now and then an instruction, the border of a turn.
fn mark(index: u64) -> Mark {
    Mark {
        frame: None,
        starts_unit: index.is_multiple_of(9) || index % 5 == 3,
        boundary: index % 17 == 4,
        instruction: index % 40 < 6,
        ..Mark::default()
    }
}

/// Feeds the next `tokens` tokens of the stream as one chunk, or in as many pieces as the cache asks for.
fn feed(cache: &mut BoundedCache, mut tokens: usize) {
    while tokens > 0 {
        let count = cache.admissible(tokens).unwrap();
        feed_piece(cache, count);
        tokens -= count;
    }
}

fn feed_piece(cache: &mut BoundedCache, tokens: usize) {
    let first = cache.usage().tokens_seen;
    let marks = (first..first + tokens as u64).map(mark).collect::<Vec<_>>();
    let admitted = cache.admit(&marks).unwrap();
    for i in 0..SHAPE.layers {
        let salt = 10 * i as u64;
        let q = rows(first, tokens, SHAPE.heads, salt);
        let k = rows(first, tokens, SHAPE.kv_heads, salt + 1);
        let v = rows(first, tokens, SHAPE.kv_heads, salt + 2);
        cache.layer(i).attend(&q, &k, &v, &admitted).unwrap();
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

/// Every cached key is that of its token, to the bit.
fn check_keys(cache: &BoundedCache) {
    for (i, layer) in cache.layers().iter().enumerate() {
        let keys = layer.raw_keys().unwrap().to_vec3::<f32>().unwrap();
        let sets = layer.sets().collect::<Vec<_>>();
        for (head, keys) in keys.iter().enumerate() {
            let set = &sets[head.min(sets.len() - 1)];
            for (key, token) in keys.iter().zip(set) {
                let all = vectors(token.index, SHAPE.kv_heads, 10 * i as u64 + 1);
                let want = &all[head * SHAPE.head_dim..(head + 1) * SHAPE.head_dim];
                assert_eq!(key, want, "layer {i}, head {head}, {token:?}");
            }
        }
    }
}

fn any_plus() -> impl Strategy<Value = PlusConfig> {
    (
        any::<bool>(),
        prop::sample::select(vec![1, 3, 7]),
        any::<bool>(),
        prop::sample::select(vec![0.0, 0.4, 1.0]),
        0.0..=1.0,
        prop::sample::select(vec![0.0, 0.3, 1.0]),
    )
        .prop_map(
            |(units, pool, value_norms, novelty_weight, standing_weight, position_gap)| {
                PlusConfig {
                    units,
                    pool,
                    value_norms,
                    novelty_weight,
                    novelty_bias: 0.001,
                    standing_weight,
                    standing_bias: 0.001,
                    position_gap,
                }
            },
        )
}

/// Any policy with any parameters it takes, and a system prompt's length.
fn any_config() -> impl Strategy<Value = (CacheConfig, usize)> {
    (
        prop::sample::select(evicting()),
        0usize..12,
        8usize..90,
        0usize..40,
        1usize..40,
        prop::sample::select(Scope::ALL.to_vec()),
        prop::sample::select(vec![QuerySource::Stream, QuerySource::Instruction]),
        prop::sample::select(vec![
            (BiasForm::Slope, 0.0),
            (BiasForm::Slope, 0.01),
            (BiasForm::Range, 0.7),
        ]),
        prop::sample::select(vec![1.0, 0.99]),
        any_plus(),
    )
        .prop_map(
            |(policy, system, above, slack, query_window, scope, source, bias, decay, plus)| {
                let config = CacheConfig {
                    policy,
                    budget: system.max(4) + above,
                    slack: slack.min(above - 4),
                    query_window,
                    scope,
                    query_source: source,
                    bias_form: bias.0,
                    bias: bias.1,
                    h2o_decay: decay,
                    plus,
                    ..CacheConfig::default()
                };
                (config, system)
            },
        )
}

#[derive(Debug, Clone)]
enum Step {
    Feed(usize),
    Reserve(usize),
    Reset,
    /// Feed something and take it back.
    Ephemeral(usize),
    /// Take the newest queries for those of a standing instruction.
    Standing(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..100).prop_map(Step::Feed),
        3 => (0usize..64).prop_map(Step::Reserve),
        1 => Just(Step::Reset),
        1 => (1usize..100).prop_map(Step::Ephemeral),
        1 => (1usize..20).prop_map(Step::Standing),
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
                Step::Standing(tokens) => cache.capture_standing(tokens).unwrap(),
                Step::Ephemeral(tokens) => {
                    let before = (kept(&cache), cache.usage());
                    let saved = cache.snapshot().unwrap();
                    feed(&mut cache, tokens);
                    cache.restore(&saved).unwrap();
                    prop_assert_eq!(&before, &(kept(&cache), cache.usage()));
                }
            }
            check(&cache);
            prop_assert_eq!(cache.usage().bytes, bytes);
        }
        if !cache.is_empty() {
            check_keys(&cache);
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
    for policy in evicting() {
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
        check_keys(&cache);
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
    let error = cache.admit(&[Mark::default(); 3]).unwrap_err().to_string();
    assert!(
        error.contains("30 of 32") && error.contains("3 more"),
        "{error}"
    );
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
    refused(|c| c.protect_boundaries = 400, "protect_boundaries", "400");
    refused(|c| c.withdraw_layer = 2, "withdraw_layer", "2");
    refused(
        |c| {
            c.policy = PolicyKind::H2o;
            c.h2o_decay = 0.0;
        },
        "h2o_decay",
        "0",
    );
    refused(
        |c| {
            c.policy = PolicyKind::InfMllmPlus;
            c.plus.pool = 4;
        },
        "pool",
        "4",
    );
    refused(
        |c| {
            c.policy = PolicyKind::InfMllmPlus;
            c.plus.standing_weight = 1.5;
        },
        "standing_weight",
        "1.5",
    );
    refused(
        |c| {
            c.policy = PolicyKind::InfMllmPlus;
            c.plus.novelty_bias = f64::INFINITY;
        },
        "novelty_bias",
        "inf",
    );
    refused(
        |c| {
            c.policy = PolicyKind::InfMllmPlus;
            c.plus.position_gap = -0.1;
        },
        "position_gap",
        "-0.1",
    );
}
