//! Decoding in the GPU's kernels, run on the CPU: the same answers, the same kept tokens, and logits within rounding of candle's.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, KvStorage, Mark, PolicyKind, QuerySource, Scope,
};
use inf_mllm::gpu::{address, Gpu, Launch, Mapped, Recording};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::chooser::{Chooser, Draws};
use inf_mllm::model::decoder::step::{Stepper, Unfit};
use inf_mllm::model::decoder::Decoder;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::{FinishReason, Session, SessionConfig};

use crate::support::{decoder_alone, deviation, golden, instruction, load, picture};

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

    unsafe fn launch(&self, launch: Launch) -> Result<()> {
        run(launch)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn multiprocessors(&self) -> usize {
        3
    }

    fn upload(&self, to: &Tensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let mut bytes = vec![0; to.elem_count()];
        fill(&mut bytes);
        // Safety: the tensor has as many bytes.
        unsafe {
            let target = address(to)? as *mut u8;
            target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Ok(())
    }

    fn mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        Ok(Box::new(Words(vec![0; words.div_ceil(4)].into())))
    }
}

/// # Safety
/// As [`Gpu::record`] says.
unsafe fn run(mut launch: Launch) -> Result<()> {
    let mut arguments = launch.arguments();
    let (name, grid) = (&launch.kernel, launch.grid);
    let done = kernels_on_cpu::launch(
        name,
        grid,
        launch.block,
        launch.shared,
        &mut arguments,
        0,
        1,
    );
    done.map_err(Error::wrap)
}

impl Recording for Launches {
    fn launch(&mut self) -> Result<()> {
        // Safety: as whoever recorded them has promised.
        let mut launches = self.0.iter().cloned();
        launches.try_for_each(|launch| unsafe { run(launch) })
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

pub fn kernels() -> Arc<dyn Gpu> {
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
fn kept(cache: &BoundedCache) -> impl PartialEq + Debug {
    let layers = cache.layers().iter();
    let sets = layers.flat_map(|layer| layer.sets().collect::<Vec<_>>());
    (sets.collect::<Vec<_>>(), cache.usage())
}

/// How far logits may be apart.
fn near(storage: KvStorage) -> f32 {
    match storage {
        // Where the last bit of a number falls on the border between two bytes, it is stored as the neighbour: a step of the byte is 1/127 of
        // the largest number beside it, and logits, which deviate by about 3, move by less than that part of it. 1.3e-2 has been seen.
        KvStorage::Q8 => 3.0 / 127.0,
        _ => 1e-4,
    }
}

/// How far keys may be apart, one of which was stored.
fn near_key(storage: KvStorage) -> f32 {
    match storage {
        KvStorage::Q8 => 5e-2,
        _ => 1e-4,
    }
}

/// Largest difference of logits over a stream that both ways decode greedily, whose tokens and kept sets are the same.
fn difference(
    name: &str,
    model: &dyn Fn() -> (Decoder, CacheShape),
    config: &CacheConfig,
    (temperature, ahead): (f64, bool),
) -> f32 {
    let chooser = Chooser::new(temperature, vec![0, 1]);
    let [mut draws, mut plain_draws] = [Draws::new(4), Draws::new(4)];
    let mut plain = Stream::new(model(), config);
    let mut stepped = Stream::new(model(), config);
    stepped.cache.run_on(Some(kernels())).unwrap();
    for cache in [&mut plain.cache, &mut stepped.cache] {
        cache.listen(&[0, 1]);
    }
    let mut stepper = stepped.stepper(&chooser).unwrap();
    if !ahead {
        stepper = stepper.one_at_a_time();
    }
    let mute = Chooser::new(0.0, (0..1000).collect());
    let mut broken = stepped.stepper(&mute).unwrap();
    let (mut token, mut worst) = (5, 0f32);
    for i in 0..SPOKEN {
        // Now and then a prompt comes in between.
        if i % 25 == 24 {
            stepper.settle(&mut stepped.cache).unwrap();
            plain.append(&[7, 8, 9]);
            stepped.append(&[7, 8, 9]);
        }
        // Or a step fails, which leaves everything as it was.
        if i % 20 == 7 {
            stepper.settle(&mut stepped.cache).unwrap();
            let before = format!("{:?}", kept(&stepped.cache));
            let rules = (&mute, &mut Draws::new(0));
            let error = broken.step(9, Mark::default(), &mut stepped.cache, rules);
            assert!(error
                .unwrap_err()
                .to_string()
                .contains("no token can be chosen"));
            assert_eq!(format!("{:?}", kept(&stepped.cache)), before, "{name}");
        }
        let mut logits = plain.append(&[token]);
        let rules = (&chooser, &mut draws);
        let choice = stepper.step(token, Mark::default(), &mut stepped.cache, rules);
        let choice = choice.unwrap_or_else(|error| panic!("{name}, token {i}: {error}"));
        stepped.cache.reserve(1).unwrap();
        if !ahead {
            let off = logits.iter().zip(stepper.logits().unwrap());
            worst = off.fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
        }
        let wanted = chooser.choose(&mut logits, &mut plain_draws).unwrap();
        assert_eq!(choice.token, wanted.token, "{name}, token {i}");
        assert!(
            (choice.logprob - wanted.logprob).abs() < near(config.storage),
            "{name}, token {i}"
        );
        token = wanted.token;
        // Or the answer goes on with another token than the one that was chosen.
        if i % 11 == 5 {
            token = 12;
        }
    }
    assert!(
        stepped.cache.usage().compactions > 1,
        "{name} has not evicted"
    );
    stepper.settle(&mut stepped.cache).unwrap();
    assert_eq!(kept(&stepped.cache), kept(&plain.cache), "{name}");
    // Whoever listens has heard the keys of all tokens, of whichever way they came.
    let [heard, plain] = [stepped, plain].map(|mut stream| stream.cache.heard().unwrap());
    assert_eq!(heard.len(), plain.len());
    for (heard, plain) in heard.iter().zip(&plain) {
        assert_eq!(heard.keys.dims(), plain.keys.dims(), "{name}");
        let off = deviation(&heard.keys, &plain.keys);
        assert!(
            off < near_key(config.storage),
            "{name}: keys are off by {off}"
        );
    }
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
        for storage in [KvStorage::Auto, KvStorage::Q8] {
            let config = CacheConfig {
                storage,
                ..small(PolicyKind::InfMllm)
            };
            for how in [(0.0, false), (0.0, true), (1.0, true)] {
                let off = difference(family, &model, &config, how);
                let near = near(storage);
                assert!(off < near, "{family}, {storage:?}: logits are off by {off}");
            }
        }
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
        for (scope, source, storage) in [
            (Scope::Layer, QuerySource::Stream, KvStorage::Auto),
            (Scope::KvHead, QuerySource::Instruction, KvStorage::Auto),
            (Scope::Model, QuerySource::Stream, KvStorage::Auto),
            (Scope::Layer, QuerySource::Stream, KvStorage::Q8),
            (Scope::KvHead, QuerySource::Instruction, KvStorage::Q8),
        ] {
            (config.scope, config.query_source, config.storage) = (scope, source, storage);
            let name = format!("{policy} {scope:?} {storage:?}");
            difference(&name, &model, &config, (0.0, true));
            let off = difference(&name, &model, &config, (0.0, false));
            assert!(off < near(storage), "{name}: logits are off by {off}");
        }
    }
}

#[test]
fn a_step_without_a_free_slot_is_refused_and_changes_nothing() {
    let mut config = small(PolicyKind::Full);
    config.budget = SEEN + 3;
    let chooser = Chooser::new(0.0, Vec::new());
    let mut stream = Stream::new(decoder_alone(&golden("families/llama")), &config);
    let mut stepper = stream.stepper(&chooser).unwrap();
    let mut step = |token| {
        let rules = (&chooser, &mut Draws::new(0));
        stepper.step(token, Mark::default(), &mut stream.cache, rules)
    };
    let mut token = 5;
    for _ in 0..3 {
        token = step(token).unwrap().token;
    }
    let error = step(token).unwrap_err().to_string();
    assert!(error.contains("23"), "{error}");
    assert_eq!(stream.cache.usage().used, SEEN + 3);
}

#[test]
fn there_are_no_steps_for_other_layers_and_the_reason_is_told() {
    let chooser = Chooser::new(0.0, Vec::new());
    let stream = Stream::new(
        decoder_alone(&golden("families/gpt_neox")),
        &small(PolicyKind::InfMllm),
    );
    let error = stream.stepper(&chooser).unwrap_err().to_string();
    assert!(error.contains("layers of this kind"), "{error}");
}

/// Two rounds of frames, questions that stay and one that does not; what was answered, and what is kept.
pub fn answers_and_state(
    dir: &Path,
    model: Mllm,
    storage: KvStorage,
    gpu: Option<Arc<dyn Gpu>>,
) -> (Vec<Vec<u32>>, impl PartialEq + Debug) {
    let mut config = SessionConfig {
        model_dir: dir.to_path_buf(),
        max_new_tokens: 24,
        ..SessionConfig::default()
    };
    config.cache.budget = 160;
    config.cache.storage = storage;
    if dir.ends_with("qwen3_vl") {
        // Its video processor has frames of more tokens than the budget.
        config.frame_max_pixels = 1920;
    }
    let pool = thread_pool(1, &Checkpoint::open(dir).unwrap()).unwrap();
    let steps = gpu.is_some();
    let mut session = Session::with_kernels(model, pool, config, gpu).unwrap();
    assert_eq!(session.decodes_in_kernels(), steps, "{}", dir.display());
    let mut answers = Vec::new();
    for round in 0..2 {
        for i in 0..8 {
            let colour = [(i * 30) as u8, 90, 200];
            session
                .push_frame(&picture((round * 8 + i) * 100, colour))
                .unwrap();
        }
        for ephemeral in [false, true, false] {
            let mut asked = instruction("a", "What is in view?");
            asked.ephemeral = ephemeral;
            let answer = session.ask(&asked, &|| false, &mut |_| ());
            assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
            answers.push(answer.token_ids);
        }
    }
    (answers, kept(&session.state().cache))
}

#[test]
fn sessions_of_every_multimodal_family_answer_and_keep_the_same() {
    for (family, storage) in [
        ("idefics3", KvStorage::Auto),
        ("llava", KvStorage::Auto),
        ("llava_next", KvStorage::Auto),
        ("llava_onevision", KvStorage::Auto),
        ("internvl", KvStorage::Auto),
        ("internvl3_5", KvStorage::Auto),
        ("qwen2_vl", KvStorage::Auto),
        ("qwen2_5_vl", KvStorage::Auto),
        ("qwen3_vl", KvStorage::Auto),
        ("idefics3", KvStorage::Q8),
        ("qwen2_5_vl", KvStorage::Q8),
        ("qwen3_vl", KvStorage::Q8),
    ] {
        let dir = golden("families").join(family);
        let answered = |gpu| answers_and_state(&dir, load(&dir), storage, gpu);
        let (answers, state) = answered(None);
        let (stepped_answers, stepped_state) = answered(Some(kernels()));
        assert_eq!(stepped_answers, answers, "{family}, {storage:?}");
        assert_eq!(stepped_state, state, "{family}, {storage:?}");
    }
}
