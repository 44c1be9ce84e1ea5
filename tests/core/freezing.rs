//! A cache whose long-kept tokens win for ever stops remembering. On a long stream, what `inf_mllm` keeps stays young.

use candle_core::Device;
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::endless::{endless, EndlessOptions};
use inf_mllm::eval::model::EvalModel;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::Quantization;

use crate::support::demo_dir;

/// The named stream: the licence and the documents of this repository, again and again.
const TEXT: &str = concat!(
    include_str!("../../LICENSE"),
    include_str!("../../docs/stream.md"),
    include_str!("../../docs/parameters.md"),
);
const TOKENS: usize = 24_000;
const BUDGET: usize = 128;

/// Share of kept tokens older than 8 budgets, mean over the second and over the last quarter of the stream.
fn stale(model: &EvalModel, bias: f64) -> [f64; 2] {
    let config = CacheConfig {
        policy: PolicyKind::InfMllm,
        budget: BUDGET,
        bias,
        ..CacheConfig::default()
    };
    let options = EndlessOptions {
        tokens: TOKENS,
        chunk: 64,
        block: 640,
        pairs: 0,
    };
    let ids = model.encode(TEXT).unwrap();
    let run = || endless(model, &ids, &config, &options, &|_| ());
    let blocks = model.install(run).unwrap().blocks;
    let quarter = blocks.len() / 4;
    [quarter..2 * quarter, blocks.len() - quarter..blocks.len()].map(|blocks_of| {
        let ages = blocks[blocks_of].iter().map(|block| block.ages.as_ref());
        let stale = ages.map(|ages| ages.unwrap().stale).collect::<Vec<_>>();
        stale.iter().sum::<f64>() / stale.len() as f64
    })
}

#[test]
fn the_share_of_old_tokens_does_not_grow_with_the_stream() {
    let model = EvalModel::load(
        &demo_dir(),
        Quantization::None,
        Precision::F32,
        &Device::Cpu,
        1,
    )
    .unwrap();
    let [early, late] = stale(&model, CacheConfig::default().bias);
    assert!(
        late < early + 0.02 && late < 0.05,
        "from {early} to {late} with the default bias"
    );
    // The paper's finding, and the proof that the measure sees it.
    let [_, frozen] = stale(&model, 0.0);
    assert!(frozen > 0.2, "{frozen} without a bias");
}
