//! Start, the loop, and a clean end.

use std::future::ready;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{mpsc, Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use r2r::inf_mllm::srv::Cancel;
use r2r::std_srvs::srv::Trigger;
use tokio::runtime::Runtime;
use tokio::signal::unix::{signal, SignalKind};

use super::ask::Ask;
use super::diagnostics::{self, Diagnostics, Seeing};
use super::inputs::Inputs;
use super::lifecycle::{Changes, Lifecycle};
use super::logging::{self, Log};
use super::names::{last_error, RosArguments};
use super::namesakes::Namesakes;
use super::outputs::{Answers, Event, Sender, Statistics};
use super::params::{self, Parameters};
use super::publishers::Watch;
use super::services::Services;
use super::sight::Sight;
use super::topics::Topics;
use super::{ros, watches, NodeError, NAME};
use crate::excerpt::excerpt;
use crate::stream::engine::{Cancelled, Which};
use crate::stream::Engine;

/// Longest wait for a message; also how long the loop may take to see that it is to end.
const SPIN: Duration = Duration::from_millis(50);
/// The node has this long to end after a signal: the engine's share of it, both that of the engine and of the last messages, and all of it.
const ENGINE_GRACE: Duration = Duration::from_millis(1200);
const PUBLISH_GRACE: Duration = Duration::from_millis(1500);
const GRACE: Duration = Duration::from_millis(1800);
/// Time for the middleware to send what was published last.
const FLUSH: Duration = Duration::from_millis(100);

const STARTING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;

/// Runs the node until SIGINT or SIGTERM; what ends it otherwise is in the log.
pub fn run() -> Result<(), NodeError> {
    let mut start = Start::new().inspect_err(logging::say_without_node)?;
    let Start {
        node,
        name,
        namespace,
        ..
    } = &mut start;
    let log = Log::of_node(node, name, namespace).inspect_err(logging::say_without_node)?;
    let outcome = serve(&mut start);
    match &outcome {
        Ok(()) => tracing::info!("ended"),
        Err(error) => tracing::error!("{error}"),
    }
    std::thread::sleep(FLUSH);
    start.runtime.shutdown_background();
    log.hush(|| drop(start.node));
    outcome
}

/// A node of which nothing but its name is known.
struct Start {
    arguments: RosArguments,
    runtime: Runtime,
    phase: Arc<AtomicU8>,
    node: r2r::Node,
    name: String,
    namespace: String,
}

impl Start {
    fn new() -> Result<Self, NodeError> {
        let arguments = RosArguments::from_env()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let phase = Arc::new(AtomicU8::new(STARTING));
        watch_signals(&runtime, phase.clone())?;
        // The ROS library knows only that it failed; rcl knows why, as when there is no place for a log file.
        let context = r2r::Context::create().map_err(|_| NodeError::Context(last_error()))?;
        let node = ros("node", r2r::Node::create(context, NAME, ""))?;
        Ok(Self {
            name: ros("node name", node.name())?,
            namespace: ros("namespace", node.namespace())?,
            arguments,
            runtime,
            phase,
            node,
        })
    }
}

/// From the parameters to the end.
fn serve(start: &mut Start) -> Result<(), NodeError> {
    let Start {
        arguments,
        runtime,
        phase,
        node,
        name,
        namespace,
    } = start;
    let config = params::configure(&arguments.parameters(name, namespace)?)?;
    if config.ros.use_sim_time {
        let time = node.get_time_source();
        ros("use_sim_time", time.enable_sim_time(node))?;
    }

    let ask = Ask::advertise(node, &config.ros)?;
    let statistics = Statistics::advertise(node)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let changes = Sender(events.clone()).of_changes();
    let engine = Engine::new(&config.session, Box::new(Sender(events.clone())), changes);
    let engine = Arc::new(engine);
    let parameters = Parameters::new(node, config.clone(), engine.clone())?;
    let changes = Changes::advertise(node, parameters.clone(), &engine)?;
    let answers = Answers::advertise(node, ask.clone(), changes, config.session.watches_limit)?;
    let publishing = runtime.spawn(answers.publish_all(receiver));

    let topics = Topics::of(arguments, name, namespace, &config)?;
    let lifecycle = Lifecycle::new(node, engine.clone(), parameters.clone(), &topics);
    let mut services = Services::new(runtime.handle());
    lifecycle.serve(node, &mut services)?;
    serve_reset(node, &mut services, engine.clone())?;
    serve_cancel(node, &mut services, engine.clone())?;
    watches::serve(node, &mut services, engine.clone())?;
    ask.serve(node, &mut services, runtime.handle(), &engine)?;
    parameters.serve(node, &mut services)?;
    let mut inputs = Inputs::subscribe(node, &topics, &config.ros)?;
    let mut watch = Watch::new(&topics);
    let mut sights = Sight::of_all(node, &topics, &config.ros)?;
    let stats_period = Duration::from_secs_f64(config.ros.stats_period);
    let cameras = topics.images.iter().zip(&sights);
    let cameras = cameras.map(|(image, sight)| Seeing::new(image, sight.shared()));
    let diagnostics = Diagnostics::advertise(node, parameters, cameras.collect())?;
    let (mut namesakes, others) = (
        Namesakes::new(name, namespace, &topics.statistics),
        diagnostics.namesakes(),
    );
    let diagnostics = Arc::new(Mutex::new(diagnostics));
    let (source, regular) = (engine.clone(), diagnostics.clone());
    runtime.spawn(every(diagnostics::PERIOD, move || {
        lock(&regular).publish(source.stats());
    }));
    let source = engine.clone();
    runtime.spawn(every(stats_period, move || {
        statistics.publish(&source.stats());
    }));
    let (sender, started) = mpsc::channel();
    match config.ros.autostart {
        true => {
            // Whoever waits for it may have gone.
            runtime.spawn_blocking(move || drop(sender.send(lifecycle.start())));
        }
        false => tracing::info!("the node is unconfigured and waits for ~/change_state"),
    }

    // A signal that came before has ended the process already.
    phase.store(RUNNING, Ordering::SeqCst);
    let (mut outcome, mut graph) = (Ok(()), None);
    while phase.load(Ordering::SeqCst) != STOPPING {
        if let Some(failure) = engine.failure() {
            outcome = Err(failure.into());
            break;
        }
        if let Ok(Err(error)) = started.try_recv() {
            outcome = Err(error);
            break;
        }
        node.spin_once(SPIN);
        inputs.drain(&engine);
        services.drain();
        if let Some(publishers) = watch.look(node) {
            for (sight, publishers) in sights.iter_mut().zip(publishers) {
                sight.look(&engine, publishers, &mut graph);
            }
        }
        if let Some(count) = namesakes.look(node) {
            others.store(count, Ordering::Relaxed);
        }
    }

    let ending = Instant::now();
    if !engine.shutdown(ENGINE_GRACE) {
        tracing::warn!("the model did not stop within {ENGINE_GRACE:?}");
    }
    if outcome.is_err() {
        lock(&diagnostics).publish(engine.stats());
    }
    let _ = events.send(Event::End);
    let left = PUBLISH_GRACE.saturating_sub(ending.elapsed());
    let published = async { tokio::time::timeout(left, publishing).await };
    if runtime.block_on(published).is_err() {
        tracing::warn!("the last answers could not be published within {PUBLISH_GRACE:?}");
    }
    outcome
}

/// On SIGINT or SIGTERM: ends the process at once before the loop has begun, else asks the loop to end, and sees to it.
fn watch_signals(runtime: &Runtime, phase: Arc<AtomicU8>) -> Result<(), NodeError> {
    let _guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
        }
        if phase.swap(STOPPING, Ordering::SeqCst) == STARTING {
            std::process::exit(0);
        }
        tokio::time::sleep(GRACE).await;
        tracing::warn!("ending without waiting any longer");
        std::process::exit(0);
    });
    Ok(())
}

/// `~/reset` empties the memory and answers when that is done.
fn serve_reset(
    node: &mut r2r::Node,
    services: &mut Services,
    engine: Arc<Engine>,
) -> Result<(), NodeError> {
    services.answer::<Trigger::Service, _>(node, "~/reset", move |_| {
        let engine = engine.clone();
        async move {
            let result = tokio::task::spawn_blocking(move || engine.reset()).await;
            let (success, message) = match result {
                Ok(Ok(())) => (true, "memory is empty".to_string()),
                Ok(Err(error)) => (false, error.to_string()),
                Err(error) => (false, error.to_string()),
            };
            match success {
                true => tracing::info!("reset: {message}"),
                false => tracing::warn!("not reset: {message}"),
            }
            Trigger::Response { success, message }
        }
    })
}

/// `~/cancel` ends instructions that wait, are being answered or are watched.
fn serve_cancel(
    node: &mut r2r::Node,
    services: &mut Services,
    engine: Arc<Engine>,
) -> Result<(), NodeError> {
    services.answer::<Cancel::Service, _>(node, "~/cancel", move |request| {
        let id = request.id.as_str();
        let which = match id {
            "" => Which::All,
            _ => Which::Id(id),
        };
        let cancelled = engine.cancel(which);
        let id = excerpt(id);
        let message = match (cancelled == Cancelled::default(), id.as_str()) {
            (false, _) => format!("cancelled: {cancelled}"),
            (true, "") => "nothing waits, is being answered or is watched".to_string(),
            (true, _) => format!(
                "id is {id:?}, expected that of an instruction that waits, is being answered or is watched"
            ),
        };
        tracing::info!("cancel {id:?}: {message}");
        ready(Cancel::Response {
            success: cancelled != Cancelled::default(),
            message,
        })
    })
}

/// A thread that panicked while it published left nothing half-done behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something at once and then again and again, skipping what it was too late for.
async fn every(period: Duration, mut action: impl FnMut()) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        action();
    }
}
