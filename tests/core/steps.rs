//! Decoding in the GPU's kernels, run on the CPU: the same answers, the same kept tokens, and logits within rounding of candle's.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, Mark, PolicyKind, QuerySource, Scope,
};
use inf_mllm::gpu::{Gpu, Launch, Mapped, Recording};
use inf_mllm::model::chooser::{Chooser, Draws};
use inf_mllm::model::decoder::step::{Stepper, Unfit};
use inf_mllm::model::decoder::Decoder;

use crate::support::{decoder_alone, golden};

/// The kernels on the CPU.
#[derive(Debug)]
struct KernelsOnCpu;

#[derive(Debug)]
struct Launches(Vec<Launch>);

/// In fours, for what is written all at once.
#[derive(Debug)]
struct Words(Box<[u128]>);

impl Gpu for KernelsOnCpu {
    unsafe fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recording>> {
        Ok(Box::new(Launches(launches)))
    }

    fn multiprocessors(&self) -> usize {
        3
    }

    fn mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        Ok(Box::new(Words(vec![0; words.div_ceil(4)].into())))
    }
}

impl Recording for Launches {
    fn launch(&mut self) -> Result<()> {
        for launch in &mut self.0 {
            let (kernel, grid) = (launch.kernel.clone(), launch.grid);
            let (block, shared) = (launch.block, launch.shared);
            // Safety: as whoever recorded them has promised.
            let done = unsafe {
                kernels_on_cpu::launch(&kernel, grid, block, shared, &mut launch.arguments(), 0, 1)
            };
            done.map_err(Error::wrap)?;
        }
        Ok(())
    }

    fn wait(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

impl Mapped for Words {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn word(&self, index: usize) -> u32 {
        assert!(index < 4 * self.0.len());
        // Safety: within the slice; kernels write it behind the compiler's back.
        unsafe { self.0.as_ptr().cast::<u32>().add(index).read_volatile() }
    }
}

fn kernels() -> Arc<dyn Gpu> {
    Arc::new(KernelsOnCpu)
}

/// A decoder, and a cache that it evicts from.
struct Stream {
    decoder: Decoder,
    cache: BoundedCache,
}

const SEEN: usize = 20;
const SPOKEN: usize = 60;

impl Stream {
    /// Some text has come by.
    fn new((decoder, shape): (Decoder, CacheShape), config: &CacheConfig) -> Self {
        let cache = BoundedCache::new(shape, config, 0, DType::F32, &Device::Cpu).unwrap();
        let mut stream = Self { decoder, cache };
        let ids = (0..SEEN as u32).map(|i| 3 + i * 7 % 50).collect::<Vec<_>>();
        stream.append(&ids);
        stream
    }

    /// Logits behind the last of some tokens.
    fn append(&mut self, ids: &[u32]) -> Vec<f32> {
        let x = self.decoder.embed(ids).unwrap();
        let marks = vec![Mark::default(); ids.len()];
        let hidden = self.decoder.append(&x, &marks, &mut self.cache).unwrap();
        self.cache.reserve(1).unwrap();
        let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
        let logits = self.decoder.logits(&last).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn stepper(&self, chooser: &Chooser) -> std::result::Result<Stepper, Unfit> {
        Stepper::new(&self.decoder, &kernels(), &self.cache, (chooser, &[]))
    }
}

/// Tokens kept in every set of every layer, and what has been counted.
fn kept(cache: &BoundedCache) -> impl PartialEq + std::fmt::Debug {
    let layers = cache.layers().iter();
    let sets = layers.flat_map(|layer| layer.sets().collect::<Vec<_>>());
    (sets.collect::<Vec<_>>(), cache.usage())
}

/// Largest difference of logits over a stream that both ways decode greedily, whose tokens and kept sets are the same.
fn difference(name: &str, model: &dyn Fn() -> (Decoder, CacheShape), config: &CacheConfig) -> f32 {
    let chooser = Chooser::new(0.0, vec![0, 1]);
    let mut draws = Draws::new(0);
    let mut plain = Stream::new(model(), config);
    let mut stepped = Stream::new(model(), config);
    let mut stepper = stepped.stepper(&chooser).unwrap();
    let (mut token, mut worst) = (5, 0f32);
    for i in 0..SPOKEN {
        // Now and then a prompt comes in between.
        if i % 25 == 24 {
            stepper.settle(&mut stepped.cache).unwrap();
            plain.append(&[7, 8, 9]);
            stepped.append(&[7, 8, 9]);
        }
        let mut logits = plain.append(&[token]);
        let rules = (&chooser, &mut draws);
        let choice = stepper.step(token, Mark::default(), &mut stepped.cache, rules);
        let choice = choice.unwrap_or_else(|error| panic!("{name}, token {i}: {error}"));
        stepped.cache.reserve(1).unwrap();
        let off = logits.iter().zip(stepper.logits().unwrap());
        worst = off.fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
        let wanted = chooser.choose(&mut logits, &mut draws).unwrap();
        assert_eq!(choice.token, wanted.token, "{name}, token {i}");
        assert!(
            (choice.logprob - wanted.logprob).abs() < 1e-4,
            "{name}, token {i}"
        );
        token = wanted.token;
    }
    assert!(
        stepped.cache.usage().compactions > 1,
        "{name} has not evicted"
    );
    stepper.settle(&mut stepped.cache).unwrap();
    assert_eq!(kept(&stepped.cache), kept(&plain.cache), "{name}");
    worst
}

fn small(policy: PolicyKind) -> CacheConfig {
    CacheConfig {
        policy,
        budget: 48,
        ..CacheConfig::default()
    }
}

#[test]
fn steps_are_the_decoder_of_every_family_that_is_built_like_llama() {
    for family in ["llama", "llama3", "mistral", "qwen2", "qwen3"] {
        let model = || decoder_alone(&golden("families").join(family));
        let off = difference(family, &model, &small(PolicyKind::InfMllm));
        assert!(off < 1e-4, "{family}: logits are off by {off}");
    }
}

#[test]
fn steps_keep_what_every_policy_keeps() {
    let model = || decoder_alone(&golden("families/qwen3"));
    for policy in PolicyKind::ALL {
        let mut config = small(policy);
        if matches!(policy, PolicyKind::Full | PolicyKind::LastFrames) {
            continue;
        }
        for (scope, source) in [
            (Scope::Layer, QuerySource::Stream),
            (Scope::KvHead, QuerySource::Instruction),
            (Scope::Model, QuerySource::Stream),
        ] {
            (config.scope, config.query_source) = (scope, source);
            let name = format!("{policy} {scope:?}");
            let off = difference(&name, &model, &config);
            assert!(off < 1e-4, "{name}: logits are off by {off}");
        }
    }
}
