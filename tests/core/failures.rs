//! A layer that fails in the middle of a pass, as on a device without memory, or gives what is no number: the session is what it was
//! before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use candle_core::Tensor;
use inf_mllm::cache::{LayerSlots, PolicyKind, Token};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::{Block, Layer};
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::{Answer, FinishReason, RecallMode, Session, SessionConfig};

use crate::cache_stream::Seen;
use crate::support::{instruction, load, picture, tensors, tiny_config, tiny_dir};
use crate::variants::copy_of;

/// How a layer fails, and what is said of it.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    OutOfMemory,
    /// As of broken weights, or of numbers that are too large for f16.
    NoNumbers,
}

impl Failure {
    fn said(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out of memory",
            Self::NoNumbers => "NaN",
        }
    }
}

/// A layer that does its work, and fails with the `n`-th pass from now.
#[derive(Debug)]
struct Failing {
    layer: Arc<dyn Block>,
    failure: Failure,
    /// Passes until then, the failing one among them; 0: none fails.
    passes: Arc<AtomicUsize>,
}

impl Block for Failing {
    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> candle_core::Result<Tensor> {
        let out = self.layer.forward(x, tokens, caches)?;
        let left = self.passes.load(Ordering::Relaxed);
        self.passes.store(left.saturating_sub(1), Ordering::Relaxed);
        match (left, self.failure) {
            (1, Failure::OutOfMemory) => candle_core::bail!("out of memory"),
            (1, Failure::NoNumbers) => out * f64::NAN,
            _ => Ok(out),
        }
    }
}

/// A session of which layer number `layer`, which attends, fails when it is told to.
pub fn session(
    config: &SessionConfig,
    (layer, failure): (usize, Failure),
) -> (Session, Arc<AtomicUsize>) {
    let mut model = load(&config.model_dir);
    let passes = Arc::new(AtomicUsize::new(0));
    let Layer::Attention(inner) = model.decoder.layers[layer].clone() else {
        panic!("layer {layer} does not attend")
    };
    model.decoder.layers[layer] = Layer::Attention(Arc::new(Failing {
        layer: inner,
        failure,
        passes: passes.clone(),
    }));
    let checkpoint = Checkpoint::open(&config.model_dir).unwrap();
    let pool = thread_pool(1, &checkpoint).unwrap();
    let session = Session::with_model(model, pool, config.clone()).unwrap();
    (session, passes)
}

/// All that a user can see of a session's memory, and where its text and its chance have come to.
pub fn seen(session: &mut Session) -> impl PartialEq + std::fmt::Debug {
    let state = session.state();
    let memory = session.memory();
    let stream = &state.stream;
    // The next frame finds the gate as it was, too.
    let gate = [0, 10_000, 10_050].map(|ms| stream.cameras[0].gate.due(ms * 1_000_000));
    (
        Seen::of(&state.cache),
        (memory.seen(), memory.newest().cloned(), memory.oldest_ns()),
        memory.ages(),
        (stream.last_id, stream.draws, gate),
        format!("{:?}", stream.grammar),
        session.config().system_prompt.clone(),
    )
}

pub fn show(session: &mut Session, from: i64, frames: i64) {
    for i in from..from + frames {
        let colour = [(i * 40 % 256) as u8, 90, 200];
        session.push_frame(&picture(i * 100, colour)).unwrap();
    }
}

fn ask(session: &mut Session, text: &str, ephemeral: bool, most: usize) -> Answer {
    let mut question = instruction("q", text);
    question.ephemeral = ephemeral;
    let left = AtomicUsize::new(most);
    let cancelled = || {
        let before = left.load(Ordering::Relaxed);
        left.store(before.saturating_sub(1), Ordering::Relaxed);
        before == 0
    };
    session.ask(&question, &cancelled, &mut |_| ())
}

/// Two sessions, of which one fails now and then: they never differ.
fn compare(config: &SessionConfig, (layer, failure): (usize, Failure)) {
    let name = format!("{}, layer {layer}, {failure:?}", config.cache.policy);
    let remembers = config.cache.policy != PolicyKind::LastFrames;
    let (mut one, passes) = session(config, (layer, failure));
    let (mut twin, _) = session(config, (layer, failure));
    let fail_after = |count| passes.store(count, Ordering::Relaxed);
    let equal = |one: &mut Session, twin: &mut Session, what: &str| {
        assert_eq!(seen(one), seen(twin), "{name}: {what}");
    };
    // Without eviction there is room for one.
    let rounds = match config.cache.policy {
        PolicyKind::Full => 1,
        _ => 4,
    };
    for round in 0..rounds {
        let at = round * 20;
        show(&mut one, at, 9);
        show(&mut twin, at, 9);
        if remembers {
            fail_after(1);
            let error = one.push_frame(&picture((at + 9) * 100 - 1, [250, 0, 0]));
            let error = error.unwrap_err();
            assert!(error.to_string().contains(failure.said()), "{error}");
            assert_eq!(error.reason(), "model");
            // It has arrived, no more than that.
            show(&mut one, at + 9, 1);
            show(&mut twin, at + 9, 1);
            equal(&mut one, &mut twin, "a frame");
        }

        // A question fails as a whole. (Policy last_frames puts prefix and frames before it.)
        fail_after(1);
        let answer = ask(&mut one, "What is in view?", false, usize::MAX);
        assert_eq!(answer.finish, FinishReason::Error, "{name}");
        assert!(answer.error.unwrap().contains(failure.said()), "{name}");
        assert_eq!(answer.output_tokens, 0);
        equal(&mut one, &mut twin, "a question");

        // An ephemeral one too, and one that fails in its answer.
        let turn = if remembers {
            1
        } else {
            2 + config.cache.last_frames
        };
        fail_after(turn + 3);
        ask(&mut one, "Where is the box?", true, usize::MAX);
        fail_after(0);
        equal(&mut one, &mut twin, "an ephemeral question");

        // An answer that fails at its third token, if it has so many, is one of two tokens.
        fail_after(turn + 3);
        let answer = ask(&mut one, "Where is the box?", false, usize::MAX);
        fail_after(0);
        let failed = answer.finish == FinishReason::Error;
        let most = match answer.output_tokens.checked_sub(1) {
            Some(fed) if failed => fed,
            _ => usize::MAX,
        };
        if !failed || most < usize::MAX {
            let same = ask(&mut twin, "Where is the box?", false, most);
            assert_eq!(answer.token_ids[..same.token_ids.len()], same.token_ids);
        }
        equal(&mut one, &mut twin, "an answer");

        // A reset, which another prompt would have come with.
        fail_after(1);
        let error = one.reset_with("Be quite brief.".to_string()).unwrap_err();
        assert!(error.to_string().contains(failure.said()), "{error}");
        equal(&mut one, &mut twin, "a reset");
        assert_eq!(one.config().system_prompt, config.system_prompt);

        let last = [&mut one, &mut twin].map(|s| ask(s, "And now?", false, usize::MAX));
        assert_eq!(last[0].token_ids, last[1].token_ids, "{name}");
        assert_eq!(
            last[0].mean_logprob.to_bits(),
            last[1].mean_logprob.to_bits()
        );
    }
    for session in [&mut one, &mut twin] {
        session.reset_with("Be quite brief.".to_string()).unwrap();
        show(session, 0, 3);
    }
    equal(&mut one, &mut twin, "after a reset");
}

fn config(policy: PolicyKind) -> SessionConfig {
    let mut config = tiny_config();
    config.cache.policy = policy;
    // Passes are counted below; with recall there are more of them.
    config.archive.recall = RecallMode::Never;
    config.temperature = 2.0;
    if policy == PolicyKind::Full {
        config.cache.budget = 512;
    }
    config
}

#[test]
fn a_pass_that_fails_leaves_every_policy_s_session_as_it_was() {
    for policy in PolicyKind::ALL {
        for failure in [Failure::OutOfMemory, Failure::NoNumbers] {
            compare(&config(policy), (1, failure));
        }
    }
}

#[test]
fn also_in_the_first_layer_with_a_standing_instruction_a_rate_and_withdrawal() {
    for policy in [PolicyKind::InfMllmPlus, PolicyKind::InfMllm] {
        let mut config = config(policy);
        config.standing_instruction = "Where is the red box?".to_string();
        config.gate.frame_rate = 50.0;
        config.gate.min_change = 0.001;
        config.cache.withdraw_layer = 1;
        for failure in [Failure::OutOfMemory, Failure::NoNumbers] {
            compare(&config, (0, failure));
            compare(&config, (1, failure));
        }
    }
}

#[test]
fn a_jump_of_the_stamps_whose_reset_fails_is_still_to_come() {
    let mut config = config(PolicyKind::InfMllm);
    config.gate.reset_on_time_jump = true;
    let (mut session, passes) = session(&config, (1, Failure::OutOfMemory));
    show(&mut session, 0, 5);
    let at = |ms: i64, red| {
        let mut far = picture(1_000_000 + ms, [red, 2, 3]);
        far.arrival_ns = (500 + ms) * 1_000_000;
        far
    };
    // The first image of another clock is left out.
    let error = session.push_frame(&at(0, 1)).unwrap_err();
    assert_eq!(error.reason(), "other_clock");
    let before = seen(&mut session);
    passes.store(1, Ordering::Relaxed);
    let error = session.push_frame(&at(100, 1)).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
    assert_eq!(before, seen(&mut session));
    session.push_frame(&at(200, 1)).unwrap();
    assert_eq!(session.memory().seen(), 1);
    // Only once.
    session.push_frame(&at(300, 9)).unwrap();
    assert_eq!(session.memory().seen(), 2);
}

/// Weights that are numbers, one by one, and give features that are none.
#[test]
fn a_frame_whose_features_are_no_numbers_is_refused_by_every_policy() {
    let dir = copy_of(&tiny_dir());
    let file = dir.path().join("model.safetensors");
    let mut weights = tensors(&file);
    let connector = weights
        .iter_mut()
        .find(|(name, _)| name.contains("connector"))
        .unwrap()
        .1;
    *connector = connector.zeros_like().unwrap().affine(0.0, 3e38).unwrap();
    candle_core::safetensors::save(&weights, &file).unwrap();
    for policy in PolicyKind::ALL {
        let mut config = config(policy);
        config.model_dir = dir.path().to_path_buf();
        let mut session = Session::new(config).unwrap();
        let before = seen(&mut session);
        for i in 0..3 {
            let error = session.push_frame(&picture(i * 100, [200, 90, 20]));
            let error = error.unwrap_err();
            let said = error.to_string();
            let expected = "expected finite ones only: the weights are broken";
            assert!(said.starts_with("features of the vision tower: "), "{said}");
            assert!(said.contains(expected), "{said}");
            assert_eq!(error.reason(), "model");
        }
        assert_eq!(before, seen(&mut session), "{policy}");
        // Nothing is known of a picture that was not taken.
        let answer = ask(&mut session, "What is in view?", false, usize::MAX);
        assert_eq!(answer.finish, FinishReason::Error);
        assert!(answer.error.unwrap().contains("no frame has been seen yet"));
    }
}
