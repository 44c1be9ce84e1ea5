//! What must hold for every policy, budget and chunking: bounds, order, keys, and the same kept sets for any chunking.

use candle_core::DType;
use inf_mllm::cache::{CacheConfig, CacheError, KvStorage, Mark, PolicyKind, RopeAxes};
use proptest::prelude::*;

use crate::cache_stream::{any_config, evicting, kept, Fed, SHAPE};

fn fed(config: &CacheConfig, system_tokens: usize) -> Result<Fed, CacheError> {
    Fed::new(RopeAxes::One, config, system_tokens)
}

#[derive(Debug, Clone)]
enum Step {
    Feed(usize),
    Reserve(usize),
    MakeRoom(usize),
    Reset,
    /// Take the newest keys for those of a standing instruction.
    Standing(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..100).prop_map(Step::Feed),
        3 => (0usize..64).prop_map(Step::Reserve),
        2 => (0usize..200).prop_map(Step::MakeRoom),
        1 => Just(Step::Reset),
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
        let mut fed = fed(&config, system).unwrap();
        let bytes = fed.cache.usage().bytes;
        for step in steps {
            match step {
                Step::Feed(tokens) => {
                    fed.feed(tokens);
                }
                Step::Reserve(next) => {
                    fed.cache.reserve(next).unwrap();
                    let plan = *fed.cache.plan();
                    for layer in fed.cache.layers() {
                        prop_assert!(plan.budget - layer.len() >= next.min(plan.slack));
                    }
                }
                Step::MakeRoom(next) => {
                    let before = fed.cache.usage().compactions;
                    fed.cache.make_room(next).unwrap();
                    let plan = *fed.cache.plan();
                    prop_assert!(fed.cache.usage().compactions <= before + 1);
                    let most = plan.slack + if plan.gap > 0 { 0 } else { plan.relevant };
                    for layer in fed.cache.layers() {
                        prop_assert!(plan.budget - layer.len() >= next.min(most));
                    }
                }
                Step::Reset => fed.cache.reset(system).unwrap(),
                Step::Standing(tokens) => {
                    let keys = fed.cache.newest_keys(tokens).unwrap();
                    fed.cache.look_for(keys);
                }
            }
            fed.check();
            prop_assert_eq!(fed.cache.usage().bytes, bytes);
        }
        fed.check_keys();
    }

    #[test]
    fn the_kept_sets_do_not_depend_on_the_chunking((config, system) in any_config()) {
        let total = 3 * config.budget + 17;
        let run = |chunk: usize| {
            let mut fed = fed(&config, system).unwrap();
            let mut count = 0;
            while count < total {
                let next = chunk.min(total - count);
                fed.feed(next);
                fed.check();
                count += next;
            }
            kept(&fed.cache)
        };
        let one = run(1);
        for chunk in [7, 64, 256] {
            prop_assert_eq!(&one, &run(chunk), "chunks of {}", chunk);
        }
    }
}

#[test]
fn the_memory_told_is_that_of_what_is_stored() {
    // Of rows of 8 numbers; those of 8 bits have a scale and are filled up to whole words.
    let rows = [
        (KvStorage::Auto, 8 * 4),
        (KvStorage::F16, 8 * 2),
        (KvStorage::Q8, 8 + 2 + 2),
    ];
    for (storage, row) in rows {
        let config = CacheConfig {
            storage,
            ..CacheConfig::default()
        };
        let cache = fed(&config, 0).unwrap().cache;
        let rows = 2 * SHAPE.layers * SHAPE.kv_heads * config.budget;
        assert_eq!(cache.usage().bytes, rows * row, "{storage:?}");
        let slot = SHAPE.slot_bytes(storage.of(DType::F32));
        assert_eq!(slot as usize * config.budget, cache.usage().bytes);
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
        let mut fed = fed(&config, 6).unwrap();
        let bytes = fed.cache.usage().bytes;
        while fed.cache.usage().tokens_seen < 6400 {
            fed.feed(13);
            fed.cache.reserve(13).unwrap();
            fed.check();
        }
        assert_eq!(fed.cache.usage().bytes, bytes);
        assert!(fed.cache.usage().compactions > 100);
        fed.check_keys();
    }
}

#[test]
fn a_full_cache_without_eviction_is_an_error_with_the_numbers() {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 32,
        ..CacheConfig::default()
    };
    let mut fed = fed(&config, 0).unwrap();
    fed.feed(30);
    let error = fed.cache.admit(&[Mark::default(); 3]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("30 of 32") && error.contains("3 more"),
        "{error}"
    );
    // What still fits goes on working.
    fed.feed(2);
    assert_eq!(fed.cache.len(), 32);
}

#[test]
fn impossible_parameters_are_refused_with_name_value_and_range() {
    let refused = |change: fn(&mut CacheConfig), name: &str, value: &str| {
        let mut config = CacheConfig::default();
        change(&mut config);
        let error = fed(&config, 20).err().unwrap().to_string();
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
    refused(|c| c.withdraw_layer = 3, "withdraw_layer", "3");
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
