//! A GPU that fails while the stream runs: once, after which everything is as it was, or for good, which ends the engine.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{bail, Result, Tensor};
use inf_mllm::gpu::{Gpu, Launch, Mapped, Recording};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineError, EngineEvents, FinishReason, Session, StreamStats,
};

use crate::steps::kernels;
use crate::support::{instruction, load, picture, tiny_config};

const PATIENCE: Duration = Duration::from_secs(60);

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

/// Hands on the answers, and fails the GPU at the first piece of one.
struct Collect {
    answers: Sender<Answer>,
    state: Arc<AtomicU8>,
    in_answer: Option<u8>,
}

impl EngineEvents for Collect {
    fn delta(&mut self, _: AnswerDelta) {
        if let Some(state) = self.in_answer.take() {
            self.state.store(state, Ordering::Release);
        }
    }

    fn answer(&mut self, answer: Answer) {
        // The test may have ended.
        let _ = self.answers.send(answer);
    }
}

/// An engine on such a GPU, which fails in the first answer with `in_answer`.
fn start(in_answer: Option<u8>) -> (Engine, Receiver<Answer>, Arc<AtomicU8>) {
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
    let (sender, answers) = channel();
    let events = Collect {
        answers: sender,
        state: state.clone(),
        in_answer,
    };
    let engine = Engine::with_session(session, Box::new(events)).unwrap();
    (engine, answers, state)
}

fn wait_for(engine: &Engine, condition: impl Fn(&StreamStats) -> bool) -> StreamStats {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = engine.stats();
        if condition(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "still {stats:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
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
    let (engine, answers, state) = start(Some(FAILS_ONCE));
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
        let (engine, answers, state) = start(in_answer.then_some(LOST));
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
