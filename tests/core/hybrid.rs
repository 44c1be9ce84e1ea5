//! Decoders of which only some layers keep keys: what the others remember belongs to the state of a stream, and eviction leaves it alone.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, KvStorage, Mark, PolicyKind};
use inf_mllm::model::decoder::Decoder;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::stream::{Answer, FinishReason, Instruction, RecallMode, Session, SessionConfig};
use serde_json::Value;

use crate::cache_stream::{flat, Seen};
use crate::commands::{path, run, succeeded};
use crate::failures::{self, seen, show, Failure};
use crate::recall::{no_trace, remembering};
use crate::steps::{answers_and_state, kernels};
use crate::support::{deviation, golden, instruction, load};
use crate::watches::{by_frames, Watched};

/// With two layers that attend behind one of convolutions each, with one among three, and with two behind one of linear attention each.
const ALL: [&str; 3] = ["lfm2_vl", "lfm2_5_vl", "qwen3_5"];
const QUESTION: &str = "What is in view?";

fn family(name: &str) -> PathBuf {
    golden("families").join(name)
}

fn config(name: &str, policy: PolicyKind) -> SessionConfig {
    let mut config = SessionConfig {
        model_dir: family(name),
        system_prompt: "You are a mobile robot.".to_string(),
        max_new_tokens: 6,
        ..SessionConfig::default()
    };
    config.cache.policy = policy;
    config.cache.budget = match policy {
        // Less than the longest input of any of them.
        PolicyKind::Full => match name {
            "qwen3_5" => 900,
            _ => 500,
        },
        _ => 256,
    };
    config
}

fn ask(session: &mut Session, instruction: &Instruction) -> Answer {
    let answer = session.ask(instruction, &|| false, &mut |_| ());
    assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    answer
}

fn passing(question: Instruction) -> Instruction {
    Instruction {
        ephemeral: true,
        ..question
    }
}

/// The states of all layers that have one, by their bits.
fn states(cache: &BoundedCache) -> Vec<Vec<u32>> {
    let bits = |x: &Tensor| flat(x).into_iter().map(f32::to_bits).collect();
    let states = cache.states().iter();
    let numbers = states.flat_map(|state| [Some(state.inputs()), state.matrices()]);
    numbers.flatten().map(bits).collect()
}

#[test]
fn questions_that_are_not_to_last_leave_the_following_answers_byte_for_byte_as_if_they_had_not_come(
) {
    for name in ALL {
        for policy in PolicyKind::ALL {
            for withdraw_layer in 0..if name != ALL[1] { 2 } else { 1 } {
                let mut config = config(name, policy);
                config.cache.withdraw_layer = withdraw_layer;
                if name == ALL[2] {
                    // Its largest frame leaves choices no room in less.
                    config.cache.budget = config.cache.budget.max(384);
                }
                let session = || Session::new(config.clone()).unwrap();
                let mut sessions = [session(), session()];
                for round in 0..3 {
                    for session in &mut sessions {
                        show(session, round * 8, 8);
                    }
                    let before = states(&sessions[0].state().cache);
                    let one = passing(instruction("e", "Should the robot stop?"));
                    ask(&mut sessions[0], &one);
                    let choices = ["red", "a red box"].map(str::to_string).to_vec();
                    ask(&mut sessions[0], &Instruction { choices, ..one });
                    assert_eq!(states(&sessions[0].state().cache), before);
                    let [asked, plain] = &mut sessions;
                    assert!(seen(asked) == seen(plain), "{name}, {policy}, {round}");

                    let lasting = instruction("l", QUESTION);
                    let [one, other] = &mut sessions;
                    let answers = [ask(one, &lasting), ask(other, &lasting)];
                    assert_eq!(answers[0].token_ids, answers[1].token_ids);
                    assert!(seen(one) == seen(other), "{name}, {policy}, {round}");
                    // That one does last.
                    let after = states(&sessions[0].state().cache);
                    assert_ne!(after, before, "{name}, {policy}");
                }
            }
        }
    }
}

#[test]
fn recalled_frames_leave_no_trace_in_states() {
    for name in ALL {
        let mut recalled = 0;
        for policy in remembering() {
            let mut config = config(name, policy);
            config.archive.recall = RecallMode::Always;
            config.archive.recall_share = 0.0;
            config.archive.nothing_new = 1.0;
            config.archive.recall_units = 2;
            let session = || Session::new(config.clone()).unwrap();
            let mut sessions = [session(), session()];
            for session in &mut sessions {
                show(session, 0, 30);
            }
            let answer = ask(&mut sessions[0], &passing(instruction("e", QUESTION)));
            recalled += answer.recalled.len();
            no_trace(&answer, 2, &mut sessions).unwrap();
        }
        assert!(recalled > 0, "{name}");
    }
}

#[test]
fn a_watch_leaves_the_answers_as_they_are() {
    let config = config(ALL[0], PolicyKind::InfMllm);
    let answer = |watching: bool| {
        let watched = Watched::new(config.clone());
        if watching {
            let watch = by_frames("w", "Is the door open?");
            watched.engine.instruct(watch);
        }
        for i in 0..6 {
            watched.show(i * 100);
            if watching {
                assert_eq!(watched.answer().id, "w");
            }
        }
        watched.engine.instruct(instruction("a", QUESTION));
        loop {
            let answer = watched.answer();
            if answer.id == "a" {
                return answer.token_ids;
            }
        }
    };
    assert_eq!(answer(true), answer(false));
}

/// The convolutions in front have taken a chunk in when a layer behind them fails.
#[test]
fn a_turn_that_fails_in_the_middle_of_a_pass_puts_states_back() {
    let config = config(ALL[0], PolicyKind::InfMllm);
    for failure in [Failure::OutOfMemory, Failure::NoNumbers] {
        let (mut session, passes) = failures::session(&config, (3, failure));
        let (mut plain, _) = failures::session(&config, (3, failure));
        for session in [&mut session, &mut plain] {
            show(session, 0, 8);
        }
        passes.store(1, Ordering::Relaxed);
        let asked = instruction("f", QUESTION);
        let failed = session.ask(&asked, &|| false, &mut |_| ());
        assert_eq!(failed.finish, FinishReason::Error);
        assert!(seen(&mut session) == seen(&mut plain), "{failure:?}");
        let answers = [&mut session, &mut plain].map(|session| ask(session, &asked).token_ids);
        assert_eq!(answers[0], answers[1], "{failure:?}");
    }
}

#[test]
fn a_reset_forgets_what_states_remember() {
    for name in ALL {
        let config = config(name, PolicyKind::InfMllm);
        let mut session = Session::new(config.clone()).unwrap();
        let fresh = states(&session.state().cache);
        show(&mut session, 0, 20);
        assert_ne!(states(&session.state().cache), fresh);
        session.reset().unwrap();
        assert_eq!(states(&session.state().cache), fresh);
        let mut other = Session::new(config).unwrap();
        let answers = [&mut session, &mut other].map(|session| {
            show(session, 0, 5);
            ask(session, &instruction("a", QUESTION)).token_ids
        });
        assert_eq!(answers[0], answers[1]);
    }
}

fn cache(model: &Mllm, policy: PolicyKind, budget: usize) -> BoundedCache {
    let config = CacheConfig {
        policy,
        budget,
        ..CacheConfig::default()
    };
    BoundedCache::new(model.shape, &config, 3, DType::F32, &Device::Cpu).unwrap()
}

/// Text of a stream, in chunks of so many tokens; the last hidden states.
fn feed(
    decoder: &Decoder,
    caches: &mut [BoundedCache],
    ids: std::ops::Range<u32>,
    chunk: usize,
) -> Tensor {
    let ids = ids.map(|id| id * 37 % 250).collect::<Vec<_>>();
    let mut last = None;
    for ids in ids.chunks(chunk) {
        let x = decoder.embed(ids).unwrap();
        let x = Tensor::cat(&vec![x; caches.len()], 0).unwrap();
        let marks = vec![Mark::default(); ids.len()];
        let hidden = decoder.append_many(&x, &marks, caches).unwrap();
        let hidden = hidden.reshape((caches.len(), ids.len(), ())).unwrap();
        last = Some(hidden.narrow(1, ids.len() - 1, 1).unwrap());
        for cache in caches.iter_mut() {
            cache.reserve(chunk).unwrap();
        }
    }
    last.unwrap().squeeze(1).unwrap()
}

#[test]
fn states_and_logits_do_not_depend_on_chunks() {
    for name in ALL {
        let model = load(&family(name));
        let run = |chunk| {
            let mut cache = [cache(&model, PolicyKind::Full, 128)];
            let hidden = feed(&model.decoder, &mut cache, 0..100, chunk);
            let [cache] = cache;
            let states = cache.states().iter();
            let states = states
                .map(|state| state.inputs().clone())
                .collect::<Vec<_>>();
            (model.decoder.logits(&hidden).unwrap(), states)
        };
        let (logits, states) = run(100);
        for chunk in [1, 2, 7, 64] {
            let (in_chunks, ends) = run(chunk);
            let off = deviation(&in_chunks, &logits);
            assert!(off < 1e-4, "{name}, chunks of {chunk}: {off}");
            for (end, state) in ends.iter().zip(&states) {
                assert!(deviation(end, state) < 1e-4, "{name}, chunks of {chunk}");
            }
        }
    }
}

/// The first layer is one of convolutions, which no attention stands in front of.
#[test]
fn what_has_been_evicted_is_in_states_as_if_it_were_there() {
    let model = load(&family(ALL[0]));
    let first = |policy, budget| {
        let mut cache = [cache(&model, policy, budget)];
        feed(&model.decoder, &mut cache, 0..300, 10);
        let usage = cache[0].usage();
        (usage.tokens_evicted > 0, states(&cache[0]).remove(0))
    };
    let (evicted, whole) = first(PolicyKind::Full, 400);
    assert!(!evicted);
    for policy in crate::cache_stream::evicting() {
        assert_eq!(first(policy, 64), (true, whole.clone()), "{policy}");
    }
}

#[test]
fn streams_in_lock_step_have_states_of_their_own() {
    for name in ALL {
        let model = load(&family(name));
        let two = || [0, 1].map(|_| cache(&model, PolicyKind::InfMllm, 64));
        let (mut together, mut apart) = (two(), two());
        for (i, caches) in [&mut together, &mut apart].into_iter().enumerate() {
            for (stream, cache) in (0..).zip(caches.iter_mut()) {
                let own = stream * 501..stream * 501 + 90;
                feed(&model.decoder, std::slice::from_mut(cache), own, 9);
            }
            assert_ne!(states(&caches[0]), states(&caches[1]), "{name}, {i}");
        }
        let both = feed(&model.decoder, &mut together, 200..260, 6);
        for (stream, cache) in apart.iter_mut().enumerate() {
            let one = feed(&model.decoder, std::slice::from_mut(cache), 200..260, 6);
            let off = deviation(&both.narrow(0, stream, 1).unwrap(), &one);
            assert!(off < 1e-4, "{name}, stream {stream}: {off}");
        }
    }
}

#[test]
fn memory_counts_states_and_stays_what_inspect_says() {
    // Two inputs of 48 channels for each layer of convolutions; three of 104, and 6 matrices of 8 x 12, for each of linear attention; f32.
    let of = [
        (2 * 48, 2 * 2 * 48),
        (2 * 48, 3 * 2 * 48),
        (3 * 104, 2 * (3 * 104 + 6 * 8 * 12)),
    ];
    for (name, (inputs, numbers)) in ALL.into_iter().zip(of) {
        let dir = family(name);
        let inspect = |more: &[&str]| {
            let args = [&["inspect", path(&dir), "--budget", "256"], more].concat();
            succeeded(&run(&args))
        };
        let report = serde_json::from_str::<Value>(&inspect(&["--json"])).unwrap();
        let bytes = |field: &str| report[field].as_u64().unwrap();
        assert_eq!(bytes("state_bytes"), numbers * 4, "{name}");
        let weights = bytes("weight_bytes") + bytes("repacked_bytes");
        let kept = bytes("cache_bytes") + bytes("state_bytes");
        let all = weights + bytes("tokenizer_bytes") + kept;
        let all = all + bytes("beside_bytes") + bytes("working_bytes");
        assert_eq!(bytes("memory_bytes"), all, "{name}");
        let table = inspect(&[]);
        assert!(table.contains("states of layers without keys"), "{table}");

        let mut session = Session::new(config(name, PolicyKind::InfMllm)).unwrap();
        for round in 0..3 {
            show(&mut session, round * 20, 20);
            let usage = session.usage();
            let said = bytes("cache_bytes") + bytes("state_bytes");
            assert_eq!(usage.bytes as u64, said, "{name}, {round}");
            assert_eq!(usage.state_bytes as u64, bytes("state_bytes"));
            let state = &session.state().cache.states()[0];
            // It holds on to nothing else.
            let (storage, _) = state.inputs().storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else {
                panic!("a state that is not on the CPU")
            };
            let numbers = storage.as_slice::<f32>().unwrap().len();
            assert_eq!(numbers, inputs, "{name}, {round}");
        }
    }
}

/// There are no kernels for steps through convolutions: such a decoder goes through the tensor library's operations, and attends in kernels
/// where the device has them.
#[test]
fn on_a_gpu_answers_are_those_of_the_cpu_without_steps_of_kernels() {
    for name in ALL {
        let dir = family(name);
        let config = config(name, PolicyKind::InfMllm);
        let answers = |gpu: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let gpu = gpu.then(kernels);
            let pool = pool.unwrap();
            let mut session = Session::with_kernels(load(&dir), pool, config.clone(), gpu).unwrap();
            assert!(!session.decodes_in_kernels());
            show(&mut session, 0, 12);
            ask(&mut session, &instruction("a", QUESTION)).token_ids
        };
        assert_eq!(answers(true), answers(false), "{name}");
    }
}

#[test]
fn answers_are_the_same_each_time_whatever_keys_are_stored_as() {
    for storage in [KvStorage::Auto, KvStorage::F16, KvStorage::Q8] {
        let dir = family(ALL[1]);
        let answered = || answers_and_state(&dir, load(&dir), storage, None);
        let ((first, kept), (again, kept_again)) = (answered(), answered());
        assert_eq!(first, again, "{storage:?}");
        assert!(kept == kept_again, "{storage:?}");
    }
}

/// All that is seen of a cache shows the states, or the tests above would hold without them.
#[test]
fn a_state_that_differs_is_seen() {
    let model = load(&family(ALL[0]));
    let mut one = [cache(&model, PolicyKind::Full, 64)];
    feed(&model.decoder, &mut one, 0..9, 9);
    let before = Seen::of(&one[0]);
    let channels = one[0].states()[0].inputs().dim(1).unwrap();
    let x = Tensor::ones((1, channels), DType::F32, &Device::Cpu).unwrap();
    one[0].state(0).push(&x).unwrap();
    assert!(Seen::of(&one[0]) != before);
}
