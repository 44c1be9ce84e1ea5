//! Evidence: the frames that an answer's tokens attended to.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use inf_mllm::cache::parameter::Value;
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, Kernel, Mark, PolicyKind, QuerySource, Rope, Scope,
    StateShape,
};
use inf_mllm::gpu::Gpu;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::montage::montage;
use inf_mllm::stream::{
    Answer, Evidence, FinishReason, Recall, RecallMode, Session, SessionConfig,
};
use proptest::prelude::*;

use crate::failures::{seen, show};
use crate::recall::{archived, config as recalling, remembering, within};
use crate::steps::kernels;
use crate::support::{camera_image, instruction, load, tiny_config};

/// Frames of the cache's stream; of each `TOKENS` image tokens.
const FRAMES: usize = 7;
const TOKENS: usize = 3;
const QUESTION: &str = "Where was the red box?";

/// Numbers between -1 and 1, always the same.
struct Numbers(u64);

impl Numbers {
    fn tensor(&mut self, dims: (usize, usize, usize)) -> Tensor {
        let numbers = (0..dims.0 * dims.1 * dims.2).map(|_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
        });
        Tensor::from_vec(numbers.collect::<Vec<_>>(), dims, &Device::Cpu).unwrap()
    }
}

/// Values that tell which frame a token is of: 1 in the frame's place, 0 in all others.
fn telling(marks: &[Mark], kv_heads: usize, head_dim: usize) -> Tensor {
    let mut values = vec![0f32; kv_heads * marks.len() * head_dim];
    for (i, row) in values.chunks_exact_mut(head_dim).enumerate() {
        if let Some(frame) = marks[i % marks.len()].frame {
            row[frame as usize] = 1.0;
        }
    }
    Tensor::from_vec(values, (kv_heads, marks.len(), head_dim), &Device::Cpu).unwrap()
}

/// The attention of the last `asked` tokens to each frame by what attention gave for them, and what the cache says of it.
fn both(
    (shape, config): (CacheShape, &CacheConfig),
    chunks: &[usize],
    asked: usize,
    gpu: Option<Arc<dyn Gpu>>,
) -> (Vec<f32>, Vec<f32>) {
    let mut cache = BoundedCache::new(shape, config, 2, DType::F32, &Device::Cpu).unwrap();
    cache.run_on(gpu).unwrap();
    let mut numbers = Numbers(3);
    let mut frames = Vec::new();
    for frame in 0..FRAMES as u32 {
        frames.extend([Mark::default(); 2]);
        frames.extend([Mark::image(frame); TOKENS]);
    }
    let mut outs = vec![Vec::new(); shape.layers];
    let mut put = |cache: &mut BoundedCache, marks: &[Mark]| {
        let tokens = cache.admit(marks).unwrap();
        for (layer, outs) in outs.iter_mut().enumerate() {
            let q = numbers.tensor((shape.heads, marks.len(), shape.head_dim));
            let k = numbers.tensor((shape.kv_heads, marks.len(), shape.head_dim));
            let v = telling(marks, shape.kv_heads, shape.head_dim);
            let q = (q * 4.0).unwrap();
            outs.push(cache.layer(layer).attend(&q, &k, &v, &tokens).unwrap());
        }
    };
    put(&mut cache, &frames);
    cache.follow(32);
    for &tokens in chunks {
        put(&mut cache, &vec![Mark::default(); tokens]);
    }
    let mut wanted = vec![0.0; FRAMES];
    for outs in &outs {
        let outs = Tensor::cat(outs, 0).unwrap();
        let outs = outs.narrow(0, outs.dim(0).unwrap() - asked, asked).unwrap();
        let outs = outs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for row in outs.chunks_exact(shape.head_dim) {
            for (wanted, share) in wanted.iter_mut().zip(row) {
                *wanted += share / (asked * shape.layers * shape.heads) as f32;
            }
        }
    }
    let attended = cache.attended(asked).unwrap();
    assert_eq!(attended.tokens, asked);
    let got = (0..FRAMES as u32).map(|frame| attended.frames.get(&frame).copied().unwrap_or(0.0));
    (wanted, got.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_frames_got_is_the_attention_by_which_the_decoder_went_on(
        kv_heads in 1usize..4,
        group in prop::sample::select(vec![1, 2, 3]),
        policy in prop::sample::select(PolicyKind::ALL.to_vec()),
        scope in prop::sample::select(vec![Scope::Layer, Scope::KvHead]),
        kernel in prop::sample::select(vec![Kernel::Fused, Kernel::Eager]),
        on_gpu in any::<bool>(),
        question in 1usize..40,
        answer in 0usize..20,
    ) {
        let config = CacheConfig { policy, scope, kernel, budget: 256, ..CacheConfig::default() };
        let shape = CacheShape {
            layers: 2,
            heads: kv_heads * group,
            kv_heads,
            head_dim: 8,
            rope: Rope::new(1e4),
            max_positions: 1 << 16,
            states: StateShape::NONE,
        };
        let chunks = [vec![question], vec![1; answer]].concat();
        let gpu = on_gpu.then(kernels);
        let (wanted, got) = both((shape, &config), &chunks, answer + 1, gpu);
        for (wanted, got) in wanted.iter().zip(&got) {
            prop_assert!((wanted - got).abs() < 1e-5, "{} instead of {}", got, wanted);
        }
        prop_assert!(got.iter().sum::<f32>() <= 1.0 + 1e-5);
    }
}

fn ask(session: &mut Session, recall: Recall, ephemeral: bool) -> Answer {
    let mut question = instruction("q", QUESTION);
    (question.recall, question.ephemeral) = (recall, ephemeral);
    session.ask(&question, &|| false, &mut |_| ())
}

fn stamps(answer: &Answer) -> Vec<i64> {
    answer.evidence.iter().map(|frame| frame.stamp_ns).collect()
}

/// What must hold of any evidence of a session that was shown `shown` frames, one every 100 ms.
fn check(name: &str, answer: &Answer, shown: i64) {
    assert!(answer.error.is_none(), "{name}: {:?}", answer.error);
    let weights = answer.evidence.iter().map(|frame| frame.weight);
    let weights = weights.collect::<Vec<_>>();
    assert!(!weights.is_empty(), "{name}");
    assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)));
    assert!(weights.is_sorted_by(|a, b| a >= b), "{name}: {weights:?}");
    let all = weights.iter().sum::<f32>();
    assert!(all <= 1.0 + 1e-5, "{name}: {all}");
    let mut stamps = stamps(answer);
    for stamp_ns in &stamps {
        assert_eq!(stamp_ns % 100_000_000, 0, "{name}");
        assert!((0..shown * 100_000_000).contains(stamp_ns), "{name}");
    }
    stamps.sort_unstable();
    stamps.dedup();
    assert_eq!(stamps.len(), weights.len(), "{name}: a frame twice");
}

#[test]
fn every_policy_names_frames_that_were_shown_and_leaves_the_stream_as_without() {
    for policy in PolicyKind::ALL {
        let mut config = tiny_config();
        config.cache.policy = policy;
        let frames = match policy {
            PolicyKind::Full => 8,
            _ => 40,
        };
        let mut without = config.clone();
        without.evidence.evidence_frames = 0;
        let [mut with, mut again, mut without] =
            [&config, &config, &without].map(|config| Session::new(config.clone()).unwrap());
        for session in [&mut with, &mut again, &mut without] {
            show(session, 0, frames);
        }
        for ephemeral in [true, false] {
            let name = format!("{policy}, ephemeral {ephemeral}");
            let answers = [&mut with, &mut again, &mut without]
                .map(|session| ask(session, Recall::default(), ephemeral));
            check(&name, &answers[0], frames);
            assert_eq!(answers[0].evidence.len(), 4, "{name}");
            assert_eq!(answers[0].evidence, answers[1].evidence, "{name}");
            assert!(answers[2].evidence.is_empty(), "{name}");
            assert_eq!(answers[0].token_ids, answers[2].token_ids, "{name}");
            assert_eq!(seen(&mut with), seen(&mut without), "{name}");
            assert_eq!(archived(&with), archived(&without), "{name}");
        }
    }
}

#[test]
fn recalled_frames_are_evidence_by_the_stamps_of_their_images() {
    for policy in remembering() {
        for ephemeral in [true, false] {
            let mut config = recalling(policy);
            config.evidence.evidence_frames = 64;
            // An eighth of it is the longest turn of some.
            config.cache.budget = 512;
            let mut session = Session::new(config).unwrap();
            show(&mut session, 0, 60);
            let answer = ask(&mut session, within(0.5, 1.5), ephemeral);
            check(policy.name(), &answer, 60);
            assert!(!answer.recalled.is_empty(), "{policy}");
            let stamps = stamps(&answer);
            for recalled in &answer.recalled {
                assert!(stamps.contains(&recalled.stamp_ns), "{policy}: {stamps:?}");
            }
            // All frames that the model had before it are named: their shares add up.
            let all = answer.evidence.iter().map(|frame| frame.weight);
            let all = all.sum::<f32>();
            assert!((all - 1.0).abs() < 1e-4, "{policy}: {all}");
        }
    }
}

#[test]
fn what_is_known_of_frames_is_let_go_with_them() {
    let mut config = recalling(PolicyKind::InfMllm);
    config.archive.recall = RecallMode::Auto;
    config.archive.archive_bytes = 64 << 10;
    let mut session = Session::new(config).unwrap();
    show(&mut session, 0, 1500);
    let state = session.state();
    let frames = state.cache.retained_frames().len() + session.archive().entries().len();
    assert!(frames < 400, "{frames} can be evidence");
    let known = state.stream.glimpses.len();
    assert!(known <= 2 * frames + 65, "{known} of {frames} are known");
    check(
        "at last",
        &ask(&mut session, within(0.0, 150.0), true),
        1500,
    );
    // A thumbnail of these pictures takes less than that.
    let bytes = session.archive_stats().thumbnail_bytes;
    assert!(
        (1..2048 * known).contains(&bytes),
        "{bytes} bytes of {known}"
    );
    session.reset().unwrap();
    assert!(session.state().stream.glimpses.is_empty());
    assert_eq!(session.archive_stats().thumbnail_bytes, 0);
}

#[test]
fn an_answer_that_never_began_or_was_refused_has_no_evidence() {
    let mut session = Session::new(tiny_config()).unwrap();
    let refused = ask(&mut session, Recall::default(), false);
    assert_eq!(refused.finish, FinishReason::Error);
    assert!(refused.evidence.is_empty());
    show(&mut session, 0, 5);
    let cancelled = session.ask(&instruction("q", QUESTION), &|| true, &mut |_| ());
    assert_eq!(cancelled.finish, FinishReason::Cancelled);
    assert!(cancelled.evidence.is_empty());
    // It can be switched on and off in between.
    for frames in [0, 2] {
        let value = Value::Integer(frames);
        session.set_parameter("evidence_frames", value).unwrap();
        let answer = ask(&mut session, Recall::default(), true);
        assert_eq!(answer.evidence.len(), frames as usize);
    }
}

/// A session that decodes in the GPU's kernels, run on the CPU, or in candle's operations.
fn stepping(config: &SessionConfig, gpu: Option<Arc<dyn Gpu>>) -> Session {
    let checkpoint = Checkpoint::open(&config.model_dir).unwrap();
    let pool = thread_pool(1, &checkpoint).unwrap();
    let model = load(&config.model_dir);
    Session::with_kernels(model, pool, config.clone(), gpu).unwrap()
}

#[test]
fn answers_of_kernels_have_the_evidence_that_their_ring_of_queries_gives() {
    for (policy, source) in [
        (PolicyKind::InfMllm, QuerySource::Stream),
        (PolicyKind::InfMllm, QuerySource::Instruction),
        (PolicyKind::StreamingLlm, QuerySource::Stream),
        (PolicyKind::H2o, QuerySource::Stream),
    ] {
        let mut config = tiny_config();
        (config.cache.policy, config.cache.query_source) = (policy, source);
        config.evidence.evidence_frames = 64;
        let [mut stepped, mut plain] = [Some(kernels()), None].map(|gpu| stepping(&config, gpu));
        assert!(stepped.decodes_in_kernels());
        for session in [&mut stepped, &mut plain] {
            show(session, 0, 9);
        }
        let answers =
            [&mut stepped, &mut plain].map(|session| ask(session, Recall::default(), true));
        let name = format!("{policy}, {source:?}");
        check(&name, &answers[0], 9);
        assert_eq!(answers[0].token_ids, answers[1].token_ids, "{name}");
        if (policy, source) != (PolicyKind::InfMllm, QuerySource::Stream) {
            // Without a ring it is that of the first token alone, however long the answer.
            let mut short = instruction("q", QUESTION);
            (short.ephemeral, short.max_new_tokens) = (true, 2);
            let short = stepped.ask(&short, &|| false, &mut |_| ());
            assert!(short.output_tokens < answers[0].output_tokens, "{name}");
            assert_eq!(stamps(&short), stamps(&answers[0]), "{name}");
            assert_near(&name, &short, &answers[0]);
            continue;
        }
        assert_near(&name, &answers[0], &answers[1]);
    }
}

/// The same frames have the same weights.
fn assert_near(name: &str, one: &Answer, other: &Answer) {
    assert_eq!(one.evidence.len(), other.evidence.len(), "{name}");
    for frame in &one.evidence {
        let same = |other: &&Evidence| other.stamp_ns == frame.stamp_ns;
        let other = other.evidence.iter().find(same).unwrap().weight;
        let off = (frame.weight - other).abs();
        assert!(off < 1e-4, "{name}: {other} instead of {}", frame.weight);
    }
}

/// Frames of a session that was shown one of each of these sizes, and asked.
fn shown_in(sizes: &[(u32, u32)], side: usize) -> Answer {
    let mut config = tiny_config();
    config.evidence.evidence_frames = sizes.len();
    config.evidence.thumbnail_side = side;
    let mut session = Session::new(config).unwrap();
    for (i, &(width, height)) in sizes.iter().enumerate() {
        let colour = image::Rgb([200, 40 * i as u8, 20]);
        let picture = RgbImage::from_pixel(width, height, colour);
        let image = camera_image(&picture, i as i64 * 1_000_000_000);
        session.push_frame(&image).unwrap();
    }
    ask(&mut session, Recall::default(), true)
}

#[test]
fn the_frames_of_an_answer_are_shown_side_by_side() {
    let sizes = [(640, 480), (480, 640), (64, 32), (3, 1), (500, 4)];
    let answer = shown_in(&sizes, 128);
    assert_eq!(answer.evidence.len(), sizes.len());
    let mut seen = Vec::new();
    for frame in &answer.evidence {
        let pixels = frame.thumbnail.as_ref().unwrap().pixels().unwrap();
        let number = (frame.stamp_ns / 1_000_000_000) as usize;
        let middle = pixels.get_pixel(pixels.width() / 2, pixels.height() / 2);
        let off = middle.0[1].abs_diff(40 * number as u8);
        assert!(off < 8, "frame {number} is {middle:?}");
        seen.push((number, pixels.dimensions()));
    }
    seen.sort_unstable();
    let expected = [(128, 96), (96, 128), (64, 32), (3, 1), (128, 1)];
    assert!(seen.iter().map(|(_, size)| *size).eq(expected), "{seen:?}");
    let jpeg = montage(&answer.evidence, 4_000_000_000).unwrap();
    let image = image::load_from_memory(&jpeg).unwrap().into_rgb8();
    // Five cells of 128 pixels with gaps, and two lines of text below 128 pixels of pictures.
    assert_eq!(image.dimensions(), (5 * 134 + 6, 128 + 30 + 12));
    let bright = |pixel: &image::Rgb<u8>| pixel.0.iter().all(|&value| value > 150);
    let text = (128 + 6..128 + 36).flat_map(|y| (0..image.width()).map(move |x| (x, y)));
    let text = text.filter(|&(x, y)| bright(image.get_pixel(x, y))).count();
    assert!(text > 200, "{text} pixels of text");
}

#[test]
fn without_thumbnails_there_is_evidence_and_no_picture_of_it() {
    let answer = shown_in(&[(64, 64), (32, 32)], 0);
    assert_eq!(answer.evidence.len(), 2);
    assert!(answer
        .evidence
        .iter()
        .all(|frame| frame.thumbnail.is_none()));
    assert_eq!(montage(&answer.evidence, 0), None);
    assert_eq!(montage(&[], 0), None);
}
