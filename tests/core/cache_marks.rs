//! Marks: whatever was done and taken back, to the bit as if it had never been.

use std::sync::Arc;

use inf_mllm::cache::{CacheConfig, PolicyKind, RopeAxes, Scope};
use inf_mllm::gpu::Gpu;
use proptest::prelude::*;

use crate::cache_stream::{any_config, evicting, Fed, Seen, SHAPE};
use crate::steps::kernels;

#[derive(Debug, Clone)]
enum Step {
    Feed(usize),
    Reserve(usize),
    /// With so many tokens less of a system prompt.
    Reset(usize),
    /// Take the newest keys for those of a standing instruction.
    Standing(usize),
    /// A chunk that the first layers take and the next one fails on.
    Torn(usize, usize),
    /// Steps that are taken back; then, with the mark still set, the others.
    Undone(Vec<Step>, Vec<Step>),
    /// Steps under a mark that is let go.
    Kept(Vec<Step>),
}

impl Step {
    fn run(&self, fed: &mut Fed, system: usize) {
        match self {
            Self::Feed(tokens) => {
                fed.feed(*tokens);
            }
            Self::Reserve(next) => fed.cache.reserve(*next).unwrap(),
            Self::Reset(less) => fed.cache.reset(system.saturating_sub(*less)).unwrap(),
            Self::Standing(tokens) => {
                let keys = fed.cache.newest_keys(*tokens).unwrap();
                fed.cache.look_for(keys);
            }
            Self::Torn(tokens, layers) => {
                fed.cache.mark();
                fed.feed_torn(*tokens, *layers);
                fed.cache.put_back().unwrap();
                fed.cache.let_go();
            }
            Self::Undone(first, then) => {
                fed.cache.mark();
                let before = Seen::of(&fed.cache);
                for steps in [first, then] {
                    steps.iter().for_each(|step| step.run(fed, system));
                    fed.cache.put_back().unwrap();
                    assert_eq!(before, Seen::of(&fed.cache));
                }
                fed.cache.let_go();
            }
            Self::Kept(steps) => {
                fed.cache.mark();
                steps.iter().for_each(|step| step.run(fed, system));
                fed.cache.let_go();
            }
        }
    }

    /// What is left of it where nothing is ever taken back.
    fn lasting(&self) -> Vec<Step> {
        match self {
            Self::Torn(..) | Self::Undone(..) => Vec::new(),
            Self::Kept(steps) => steps.iter().flat_map(Self::lasting).collect(),
            step => vec![step.clone()],
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let step = prop_oneof![
        6 => (1usize..70).prop_map(Step::Feed),
        3 => (0usize..64).prop_map(Step::Reserve),
        1 => (0usize..9).prop_map(Step::Reset),
        1 => (1usize..20).prop_map(Step::Standing),
        3 => (1usize..50, 0..SHAPE.layers).prop_map(|(tokens, layers)| Step::Torn(tokens, layers)),
    ];
    step.prop_recursive(3, 16, 4, |step| {
        let steps = move || prop::collection::vec(step.clone(), 0..4);
        prop_oneof![
            3 => (steps(), steps()).prop_map(|(first, then)| Step::Undone(first, then)),
            1 => steps().prop_map(Step::Kept),
        ]
    })
}

fn any_axes() -> impl Strategy<Value = RopeAxes> {
    prop::sample::select(vec![
        RopeAxes::One,
        RopeAxes::One,
        RopeAxes::Sections([1, 1, 2]),
        RopeAxes::Interleaved([2, 1, 1]),
    ])
}

/// Runs steps in one cache, and what is left of them where nothing is taken back in another: they stay the same.
fn leaves_no_trace(
    (config, system): (&CacheConfig, usize),
    axes: RopeAxes,
    steps: Vec<Step>,
    gpu: Option<Arc<dyn Gpu>>,
) -> Result<(), TestCaseError> {
    let [mut one, mut twin] = [0; 2].map(|_| {
        let mut fed = Fed::new(axes, config, system).unwrap();
        fed.cache.run_on(gpu.clone()).unwrap();
        fed
    });
    for step in steps {
        step.run(&mut one, system);
        for step in step.lasting() {
            step.run(&mut twin, system);
        }
        one.check();
        prop_assert_eq!(Seen::of(&one.cache), Seen::of(&twin.cache));
    }
    one.check_keys();
    // What comes next is the same, past the next compaction.
    for _ in 0..3 {
        let next = config.budget / 2 + 1;
        prop_assert_eq!(one.feed(next), twin.feed(next));
        prop_assert_eq!(Seen::of(&one.cache), Seen::of(&twin.cache));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_taken_back_leaves_no_trace(
        (config, system) in any_config(),
        axes in any_axes(),
        steps in prop::collection::vec(any_step(), 1..8),
    ) {
        leaves_no_trace((&config, system), axes, steps, None)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_taken_back_leaves_no_trace_in_the_kernels_of_a_gpu(
        (config, system) in any_config(),
        axes in any_axes(),
        steps in prop::collection::vec(any_step(), 1..6),
    ) {
        leaves_no_trace((&config, system), axes, steps, Some(kernels()))?;
    }
}

/// The ways in which a chunk can fail, one after the other for every policy: each leaves the cache as it was.
#[test]
fn a_chunk_that_fails_in_any_layer_leaves_every_policy_s_cache_as_it_was() {
    for policy in evicting() {
        for withdraw_layer in 0..SHAPE.layers {
            let config = CacheConfig {
                policy,
                withdraw_layer,
                budget: 48,
                protect_boundaries: usize::from(policy == PolicyKind::InfMllm),
                ..CacheConfig::default()
            };
            let mut fed = Fed::new(RopeAxes::One, &config, 5).unwrap();
            for round in 0..6 {
                fed.feed(20);
                let before = Seen::of(&fed.cache);
                for layers in 0..=SHAPE.layers {
                    fed.cache.mark();
                    fed.feed_torn(17 + round, layers);
                    assert_ne!(before, Seen::of(&fed.cache), "{policy}: nothing was fed");
                    fed.cache.put_back().unwrap();
                    fed.cache.let_go();
                    assert_eq!(before, Seen::of(&fed.cache), "{policy}, layer {layers}");
                }
            }
        }
    }
}

/// Layers with one kept set for all of them stop short of where any of them is full, those without images too.
#[test]
fn a_chunk_of_text_fits_into_the_layers_that_hold_text_alone() {
    for withdraw_layer in 0..SHAPE.layers {
        let config = CacheConfig {
            policy: PolicyKind::InfMllmPlus,
            scope: Scope::Model,
            withdraw_layer,
            budget: 64,
            ..CacheConfig::default()
        };
        let mut fed = Fed::new(RopeAxes::One, &config, 5).unwrap();
        for chunk in (1..80).cycle().take(400) {
            fed.feed(chunk);
            fed.check();
        }
    }
}
