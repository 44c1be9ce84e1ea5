//! An engine on a GPU: one that fails while the stream runs, once, after which everything is as it was, or for good, which ends the
//! engine; and frames that go through the tower beside an answer.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{bail, Result, Tensor};
use inf_mllm::gpu::{Gpu, Launch, Mapped, Recording};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineError, EngineEvents, FinishReason, Session,
};

use crate::engine::wait_for;
use crate::steps::kernels;
use crate::support::{instruction, load, picture, tiny_config, PATIENCE};

const WORKS: u8 = 0;
const FAILS_ONCE: u8 = 1;
const LOST: u8 = 2;

/// The kernels on the CPU, as a GPU that fails when it is told to.
#[derive(Debug)]
struct Failing {
    kernels: Arc<dyn Gpu>,
    state: Arc<AtomicU8>,
}

fn outcome(state: &AtomicU8) -> Result<()> {
    match state.load(Ordering::Acquire) {
        WORKS => Ok(()),
        FAILS_ONCE => {
            state.store(WORKS, Ordering::Release);
            bail!("out of memory")
        }
        _ => bail!("CUDA_ERROR_ILLEGAL_ADDRESS"),
    }
}

impl Gpu for Failing {
    unsafe fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recording>> {
        Ok(Box::new(FailingRecording {
            recording: self.kernels.record(launches)?,
            state: self.state.clone(),
        }))
    }

    unsafe fn launch(&self, launch: Launch) -> Result<()> {
        outcome(&self.state)?;
        self.kernels.launch(launch)
    }

    fn check(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            LOST => outcome(&self.state),
            _ => Ok(()),
        }
    }

    fn multiprocessors(&self) -> usize {
        self.kernels.multiprocessors()
    }

    fn upload(&self, to: &Tensor, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        outcome(&self.state)?;
        self.kernels.upload(to, fill)
    }

    fn mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        self.kernels.mapped(words)
    }
}

#[derive(Debug)]
struct FailingRecording {
    recording: Box<dyn Recording>,
    state: Arc<AtomicU8>,
}

impl Recording for FailingRecording {
    fn launch(&mut self) -> Result<()> {
        outcome(&self.state)?;
        self.recording.launch()
    }

    fn wait(&mut self, ahead: usize) -> Result<()> {
        self.recording.wait(ahead)
    }
}

/// Hands on the answers, and does something at the first piece of one.
struct Collect {
    answers: Sender<Answer>,
    in_answer: Option<Box<dyn FnOnce() + Send>>,
}

impl EngineEvents for Collect {
    fn delta(&mut self, _: AnswerDelta) {
        if let Some(act) = self.in_answer.take() {
            act();
        }
    }

    fn answer(&mut self, answer: Answer) {
        // The test may have ended.
        let _ = self.answers.send(answer);
    }
}

/// A session on such a GPU.
fn session() -> (Session, Arc<AtomicU8>) {
    let config = tiny_config();
    let state = Arc::new(AtomicU8::new(WORKS));
    let gpu = Failing {
        kernels: kernels(),
        state: state.clone(),
    };
    let model = load(&config.model_dir);
    let pool = thread_pool(1, &Checkpoint::open(&config.model_dir).unwrap()).unwrap();
    let session = Session::with_kernels(model, pool, config, Some(Arc::new(gpu))).unwrap();
    assert!(session.decodes_in_kernels());
    (session, state)
}

/// An engine on it, with what happens in the first answer.
fn start_with(
    in_answer: impl FnOnce() + Send + 'static,
) -> (Engine, Receiver<Answer>, Arc<AtomicU8>) {
    let (session, state) = session();
    let (sender, answers) = channel();
    let events = Collect {
        answers: sender,
        in_answer: Some(Box::new(in_answer)),
    };
    let engine = Engine::with_session(session, Box::new(events)).unwrap();
    (engine, answers, state)
}

/// An engine on it, which fails so in the first answer.
fn start(in_answer: u8) -> (Engine, Receiver<Answer>, Arc<AtomicU8>) {
    let (sender, fails) = channel::<Arc<AtomicU8>>();
    let (engine, answers, state) = start_with(move || {
        let state = fails.recv_timeout(PATIENCE).unwrap();
        state.store(in_answer, Ordering::Release);
    });
    sender.send(state.clone()).unwrap();
    (engine, answers, state)
}

fn ask(engine: &Engine, answers: &Receiver<Answer>, id: &str) -> Answer {
    engine.instruct(instruction(id, "What is in view?"));
    answers.recv_timeout(PATIENCE).unwrap()
}

fn show(engine: &Engine, ms: i64, used: u64) {
    engine.offer_frame(picture(ms, [9, 90, 200])).unwrap();
    wait_for(engine, |stats| stats.frames_used == used);
}

#[test]
fn a_gpu_without_memory_for_a_moment_costs_a_frame_or_an_answer_and_nothing_else() {
    let (engine, answers, state) = start(FAILS_ONCE);
    show(&engine, 0, 1);
    let cut_off = ask(&engine, &answers, "a");
    assert_eq!(cut_off.finish, FinishReason::Error);
    assert!(cut_off.error.unwrap().contains("out of memory"));

    state.store(FAILS_ONCE, Ordering::Release);
    engine.offer_frame(picture(100, [200, 0, 0])).unwrap();
    let stats = wait_for(&engine, |stats| stats.frames_rejected == 1);
    assert_eq!(stats.rejected_by_reason["model"], 1);
    assert_eq!((stats.frames_used, stats.frames_seen), (1, 1));

    show(&engine, 200, 2);
    assert_eq!(ask(&engine, &answers, "b").error, None);
    assert_eq!(engine.stats().failure, "");
    assert!(engine.shutdown(PATIENCE));
}

#[test]
fn a_gpu_that_is_lost_ends_the_engine_which_says_why() {
    for in_answer in [true, false] {
        let (engine, answers, state) = start(LOST);
        show(&engine, 0, 1);
        if in_answer {
            let cut_off = ask(&engine, &answers, "a");
            assert_eq!(cut_off.finish, FinishReason::Error);
            assert!(cut_off.error.unwrap().contains("ILLEGAL_ADDRESS"));
        } else {
            state.store(LOST, Ordering::Release);
            engine.offer_frame(picture(100, [200, 0, 0])).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        while engine.is_running() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        let expected = "cpu is lost for this process: CUDA_ERROR_ILLEGAL_ADDRESS";
        let stats = wait_for(&engine, |stats| !stats.failure.is_empty());
        assert!(stats.failure.contains(expected), "{}", stats.failure);
        for why in [engine.why_stopped(), engine.reset().unwrap_err()] {
            assert!(matches!(why, EngineError::Failed(_)), "{why}");
            assert_eq!(why.to_string(), stats.failure);
        }
        assert!(engine.shutdown(PATIENCE));
    }
}

/// An engine in the middle of an answer, which goes on when it is told to.
struct Held {
    engine: Engine,
    answers: Receiver<Answer>,
    state: Arc<AtomicU8>,
    release: Sender<()>,
}

impl Held {
    fn new() -> Self {
        let (begun, has_begun) = channel();
        let (release, released) = channel();
        let (engine, answers, state) = start_with(move || {
            begun.send(()).unwrap();
            released.recv_timeout(PATIENCE).unwrap();
        });
        show(&engine, 0, 1);
        engine.instruct(instruction("a", "What is in view?"));
        has_begun.recv_timeout(PATIENCE).unwrap();
        Self {
            engine,
            answers,
            state,
            release,
        }
    }

    /// Lets the answer go on; returns it.
    fn release(&self) -> Answer {
        self.release.send(()).unwrap();
        self.answers.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn a_frame_that_was_taken_beside_an_answer_changes_no_answer() {
    let held = Held::new();
    held.engine.offer_frame(picture(100, [200, 0, 0])).unwrap();
    wait_for(&held.engine, |stats| stats.frames_ahead == 1);
    // One that comes later takes its place as ever.
    held.engine.offer_frame(picture(200, [0, 0, 200])).unwrap();
    wait_for(&held.engine, |stats| stats.frames_ahead == 2);
    let first = held.release();
    let stats = wait_for(&held.engine, |stats| stats.frames_used == 2);
    assert_eq!((stats.frames_superseded, stats.frames_seen), (1, 2));
    let second = ask(&held.engine, &held.answers, "b");

    let (mut plain, _) = session();
    let mut expected = |ms, colour, id| {
        plain.push_frame(&picture(ms, colour)).unwrap();
        let asked = instruction(id, "What is in view?");
        plain.ask(&asked, &|| false, &mut |_| ()).token_ids
    };
    assert_eq!(first.token_ids, expected(0, [9, 90, 200], "a"));
    assert_eq!(second.token_ids, expected(200, [0, 0, 200], "b"));
    assert_eq!(held.engine.stats().cache, plain.usage());
    assert!(held.engine.shutdown(PATIENCE));
}

#[test]
fn a_frame_that_fails_beside_an_answer_is_counted_and_costs_nothing_else() {
    let held = Held::new();
    held.state.store(FAILS_ONCE, Ordering::Release);
    held.engine.offer_frame(picture(100, [200, 0, 0])).unwrap();
    wait_for(&held.engine, |stats| stats.frames_ahead == 1);
    assert_eq!(held.release().error, None);
    let stats = wait_for(&held.engine, |stats| stats.frames_rejected == 1);
    assert_eq!(stats.rejected_by_reason["model"], 1);
    assert!(stats.rejected_last.contains("out of memory"));
    show(&held.engine, 200, 2);
    assert_eq!(ask(&held.engine, &held.answers, "b").error, None);
    assert!(held.engine.shutdown(PATIENCE));
}
