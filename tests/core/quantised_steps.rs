//! Decoding weights in blocks in the GPU's kernels, run on the CPU.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;
use inf_mllm::cache::{BoundedCache, CacheConfig, CacheShape, KvStorage, Mark, PolicyKind};
use inf_mllm::eval::speed::shapes::Shape;
use inf_mllm::eval::speed::weights::RandomWeights;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::chooser::{Chooser, Draws};
use inf_mllm::model::decoder::step::Stepper;
use inf_mllm::model::decoder::Decoder;
use inf_mllm::model::linear::Linear;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::{Listed, Matrix, Planes, Quantization, Source, Weights};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::blocks::{any_blocks, KINDS};
use crate::steps::{answers_and_state, kernels};
use crate::support::demo_dir;

fn planes(blocks: &QTensor) -> Planes {
    Planes::of(blocks, &kernels()).unwrap().unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn planes_hold_what_blocks_hold(kind in 0..KINDS.len(), rows in 1..7usize, blocks in 1..4usize, seed: u64) {
        let kind = KINDS[kind];
        let blocks = any_blocks(kind, (rows, blocks * kind.block_size()), seed);
        let wanted = blocks.dequantize(&Device::Cpu).unwrap();
        let planes = planes(&blocks);
        let ids = (0..rows as u32).rev().collect::<Vec<_>>();
        let index = Tensor::from_slice(&ids, rows, &Device::Cpu).unwrap();
        let wanted = wanted.index_select(&index, 0).unwrap();
        let got = planes.select(&ids, DType::F32).unwrap();
        prop_assert_eq!(bits(&got), bits(&wanted));
        let got = planes.select(&ids, DType::F16).unwrap();
        let wanted = wanted.to_dtype(DType::F16).unwrap();
        let wide = |tensor: &Tensor| bits(&tensor.to_dtype(DType::F32).unwrap());
        prop_assert_eq!(wide(&got), wide(&wanted));
        prop_assert!(planes.size() <= blocks.storage_size_in_bytes() + 4 * 16);
    }
}

/// Normally distributed numbers, the same for the same seed: `[tokens, width]`.
fn any_input(tokens: usize, width: usize, seed: u64) -> Tensor {
    let mut random = StdRng::seed_from_u64(seed);
    let mut even = || random.random_range(f32::EPSILON..1.0);
    // Box and Muller's transform.
    let normal = (0..tokens * width).map(|_| {
        let angle = std::f32::consts::TAU * even();
        (-2.0 * even().ln()).sqrt() * angle.cos()
    });
    Tensor::from_vec(normal.collect(), (tokens, width), &Device::Cpu).unwrap()
}

#[test]
fn products_with_planes_are_those_with_blocks_for_few_tokens_and_many() {
    for (n, kind) in KINDS.into_iter().enumerate() {
        let (rows, width) = (19, 512);
        let blocks = Arc::new(any_blocks(kind, (rows, width), n as u64));
        let wide = blocks.dequantize(&Device::Cpu).unwrap();
        let layer = Linear::of(Matrix::Quantised(blocks), None);
        let laid_out = layer.for_kernels(&kernels()).unwrap();
        assert!(matches!(laid_out.weight(), Matrix::Planes(_)), "{kind:?}");
        for tokens in [1, 3, 4, 5, 40] {
            let x = any_input(tokens, width, n as u64);
            let got = laid_out.forward(&x).unwrap();
            let wanted = x.matmul(&wide.t().unwrap()).unwrap();
            // Of many tokens nothing is rounded.
            let most = if tokens > 4 { 1e-5 } else { 0.015 };
            let off = distance(&got, &wanted);
            assert!(off < most, "{kind:?}, {tokens} tokens: off by {off}");
            let off = distance(&got, &layer.forward(&x).unwrap());
            assert!(
                off < 0.02,
                "{kind:?}, {tokens} tokens: off by {off} from blocks"
            );
        }
        let error = laid_out
            .forward(&wide.narrow(1, 0, 256).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("256"), "{error}");
        let planes = planes(&any_blocks(kind, (rows, width), 0));
        let error = planes.select(&[3, 19], DType::F32).unwrap_err().to_string();
        assert!(error.contains("row 19 of 19"), "{error}");
    }
}

#[test]
fn more_weights_than_are_widened_at_a_time_are_multiplied_in_parts() {
    let (rows, width) = ((1 << 20) + 3, 32);
    let blocks = any_blocks(GgmlDType::Q4_0, (rows, width), 1);
    let x = any_input(5, width, 9);
    let wide = blocks.dequantize(&Device::Cpu).unwrap();
    let got = planes(&blocks).product(&x).unwrap();
    assert_eq!(got.dims(), [5, rows]);
    let off = distance(&got, &x.matmul(&wide.t().unwrap()).unwrap());
    assert!(off < 1e-5, "off by {off}");
}

/// Length of the difference over that of `wanted`.
fn distance(got: &Tensor, wanted: &Tensor) -> f32 {
    relative(&floats(got), &floats(wanted))
}

fn relative(got: &[f32], wanted: &[f32]) -> f32 {
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let mut off = got.iter().zip(wanted).map(|(a, b)| a - b);
    length(&mut off) / length(&mut wanted.iter().copied())
}

/// The blocks that a matrix becomes, by its name; none: floats.
type BlocksOf = fn(&str) -> Option<GgmlDType>;

/// Random numbers of the shape `tiny`, each matrix in the blocks that its name asks for.
struct Blocks {
    numbers: RandomWeights,
    of: BlocksOf,
    /// The numbers of the blocks, as floats.
    widened: bool,
}

impl Source for Blocks {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.numbers.shape(name)
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.numbers.tensor(name, rows, dtype, device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        let matrix = self.tensor(name, rows, dtype, device)?;
        let Some(blocks) = self.blocks(name) else {
            return Ok(Matrix::Dense(matrix));
        };
        let blocks = QTensor::quantize(&matrix, blocks)?;
        Ok(match self.widened {
            true => Matrix::Dense(blocks.dequantize(device)?),
            false => Matrix::Quantised(Arc::new(blocks)),
        })
    }

    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        (self.of)(name)
    }

    fn same(&self, one: &str, other: &str) -> bool {
        one == other
    }

    fn describe(&self, name: &str) -> String {
        self.numbers.describe(name)
    }

    fn list(&self) -> Vec<Listed> {
        self.numbers.list()
    }
}

fn decoder(of: BlocksOf, widened: bool) -> (Decoder, CacheShape) {
    let shape = Shape::open("tiny").unwrap();
    let numbers = RandomWeights::new(&shape, "f32".parse().unwrap());
    let source = Arc::new(Blocks {
        numbers,
        of,
        widened,
    });
    let weights = Weights::new(source, DType::F32, &Device::Cpu);
    let config = shape.config.text();
    let [text, head] = [shape.config.text_path(), shape.config.head_path()];
    let decoder = Decoder::new(config, &weights.pp(text), &weights.pp(head)).unwrap();
    (decoder, config.cache_shape().unwrap())
}

/// With blocks, laid out for the kernels.
fn laid_out(of: BlocksOf) -> (Decoder, CacheShape) {
    let (mut decoder, shape) = decoder(of, false);
    decoder.lay_out_for(Some(&kernels())).unwrap();
    (decoder, shape)
}

/// As files of the type Q4_K_M have it.
fn q4_k_m(name: &str) -> Option<GgmlDType> {
    let more = ["v_proj", "down_proj", "lm_head"];
    match more.iter().any(|part| name.contains(part)) {
        true => Some(GgmlDType::Q6K),
        false => Some(GgmlDType::Q4K),
    }
}

const MODELS: [(&str, BlocksOf); 6] = [
    ("q8_0", |_| Some(GgmlDType::Q8_0)),
    ("q4_k_m", q4_k_m),
    ("q5_k and q5_0", |name| {
        let small = name.contains("k_proj") || name.contains("up_proj");
        Some(if small {
            GgmlDType::Q5_0
        } else {
            GgmlDType::Q5K
        })
    }),
    ("q4_0 and q4_1", |name| {
        let small = name.contains("self_attn") || name.contains("embed");
        Some(if small {
            GgmlDType::Q4_0
        } else {
            GgmlDType::Q4_1
        })
    }),
    ("blocks between floats", |name| {
        (!name.contains("embed") && !name.contains("lm_head")).then_some(GgmlDType::Q5_1)
    }),
    ("floats between blocks", |name| {
        (name.contains("embed") || name.contains("lm_head")).then_some(GgmlDType::Q6K)
    }),
];

/// A decoder in candle's operations.
struct Plain {
    decoder: Decoder,
    cache: BoundedCache,
}

impl Plain {
    /// Some text has come by.
    fn new((decoder, shape): (Decoder, CacheShape), budget: usize) -> Self {
        // What is kept does not hang on scores, which can be as good as equal.
        let config = CacheConfig {
            policy: PolicyKind::StreamingLlm,
            budget,
            ..CacheConfig::default()
        };
        let cache = BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
        let mut plain = Self { decoder, cache };
        let ids = (0..20).map(|i| 3 + i * 7 % 50).collect::<Vec<_>>();
        plain.append(&ids);
        plain
    }

    /// Logits behind the last of some tokens.
    fn append(&mut self, ids: &[u32]) -> Vec<f32> {
        let x = self.decoder.embed(ids).unwrap();
        let marks = vec![Mark::default(); ids.len()];
        let hidden = self.decoder.append(&x, &marks, &mut self.cache).unwrap();
        self.cache.reserve(1).unwrap();
        let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
        floats(&self.decoder.logits(&last).unwrap())
    }
}

/// Decodes some tokens greedily in steps, and the same in candle's operations on `others`: the logits of each token in steps, then in each
/// of the others.
fn logits<const N: usize>(
    stepped: (Decoder, CacheShape),
    others: [(Decoder, CacheShape); N],
    (budget, tokens): (usize, usize),
) -> Vec<(Vec<f32>, [Vec<f32>; N])> {
    let mut stepped = Plain::new(stepped, budget);
    let mut others = others.map(|other| Plain::new(other, budget));
    stepped.cache.run_on(Some(kernels())).unwrap();
    let chooser = Chooser::new(0.0, Vec::new());
    let rules = (&chooser, &[][..]);
    let stepper = Stepper::new(&stepped.decoder, &kernels(), &stepped.cache, rules);
    let mut stepper = stepper.unwrap().one_at_a_time();
    let mut token = 5;
    let tokens = (0..tokens).map(|_| {
        let rules = (&chooser, &mut Draws::new(0));
        let choice = stepper.step(token, Mark::default(), &mut stepped.cache, rules);
        stepped.cache.reserve(1).unwrap();
        let others = others.each_mut().map(|other| other.append(&[token]));
        token = choice.unwrap().token;
        (stepper.logits().unwrap(), others)
    });
    tokens.collect()
}

/// A number of the input that lies between two integers but for rounding becomes one or the other, after which both ways are as far apart
/// as rounding to 8 bits goes.
#[test]
fn steps_with_blocks_are_the_decoder_with_the_same_rounding_through_evictions() {
    let (mut all, mut same) = (0, 0);
    for (name, of) in MODELS {
        for (got, [wanted]) in logits(laid_out(of), [laid_out(of)], (32, 24)) {
            let off = relative(&got, &wanted);
            assert!(off < 4e-2, "{name}: off by {off}");
            all += 1;
            same += usize::from(off < 1e-5);
        }
    }
    assert!(
        8 * same > all,
        "{same} of {all} tokens have the same logits"
    );
}

/// candle rounds the input of a product to 8 bits too, with a scale for 32 numbers or, of Q4_K, Q5_K and Q6_K, for 256.
#[test]
fn steps_with_blocks_are_as_near_to_unrounded_products_as_candles() {
    for (name, of) in MODELS {
        let others = [decoder(of, false), decoder(of, true)];
        let tokens = logits(laid_out(of), others, (128, 16));
        let (mut ours, mut candles) = (0.0, 0.0);
        for (got, [blocks, exact]) in &tokens {
            ours += relative(got, exact) / tokens.len() as f32;
            candles += relative(blocks, exact) / tokens.len() as f32;
        }
        assert!(ours > 1e-4, "{name}: nothing has been rounded");
        assert!(
            ours < 1.1 * candles,
            "{name}: off by {ours}, candle by {candles}"
        );
    }
}

#[test]
fn blocks_without_kernels_decode_in_operations_and_the_reason_is_told() {
    let told = |of: BlocksOf| {
        let plain = Plain::new(laid_out(of), 48);
        let chooser = Chooser::new(0.0, Vec::new());
        let stepper = Stepper::new(&plain.decoder, &kernels(), &plain.cache, (&chooser, &[]));
        stepper.unwrap_err().to_string()
    };
    let error = told(|name| name.contains("down_proj").then_some(GgmlDType::Q3K));
    assert!(error.contains("weights of Q3_K"), "{error}");
    let error = told(|name| name.contains("k_proj").then_some(GgmlDType::Q4K));
    assert!(error.contains("some are floats and some blocks"), "{error}");
}

#[test]
fn a_session_with_blocks_answers_in_steps_as_in_operations_on_the_same_planes() {
    let dir = demo_dir();
    let load = || {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let (blocks, numbers) = (Quantization::Q4K, Precision::F32);
        Mllm::load(&checkpoint, blocks, numbers, &Device::Cpu).unwrap()
    };
    let mut model = load();
    model.decoder.lay_out_for(Some(&kernels())).unwrap();
    let (answers, _) = answers_and_state(&dir, model, KvStorage::Auto, None);
    let (stepped, _) = answers_and_state(&dir, load(), KvStorage::Auto, Some(kernels()));
    assert_eq!(stepped, answers);
}
