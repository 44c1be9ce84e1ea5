//! The engine's life: what it takes in in which state, what stays and what is let go, and transitions that fail or come at a wrong time.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use inf_mllm::stream::engine::{Change, ChangeError};
use inf_mllm::stream::lifecycle::Asked;
use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineEvents, FinishReason, Session, SessionConfig, State,
};

use crate::engine::wait_for;
use crate::support::{instruction, picture, tiny_config};

const PATIENCE: Duration = Duration::from_secs(60);

struct Collect(Sender<Answer>);

impl EngineEvents for Collect {
    fn delta(&mut self, _: AnswerDelta) {}

    fn answer(&mut self, answer: Answer) {
        // The test may have ended.
        let _ = self.0.send(answer);
    }
}

struct Node {
    engine: Engine,
    answers: Receiver<Answer>,
    changes: Receiver<Change>,
}

impl Node {
    fn new() -> Self {
        let ((answer, answers), (change, changes)) = (channel(), channel());
        let told = move |now| drop(change.send(now));
        Self {
            engine: Engine::new(&tiny_config(), Box::new(Collect(answer)), Box::new(told)),
            answers,
            changes,
        }
    }

    fn change(&self, label: &str) -> Result<State, ChangeError> {
        self.configured(label, tiny_config())
    }

    /// A transition that loads a session of these parameters, if it loads one.
    fn configured(&self, label: &str, config: SessionConfig) -> Result<State, ChangeError> {
        let load = || Session::new(config).map_err(|error| error.to_string());
        self.engine.change(Asked::Label(label), load)
    }

    fn ask(&self, id: &str) -> Answer {
        self.engine.instruct(instruction(id, "What is in view?"));
        let answer = self.answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answer.id, id);
        answer
    }

    /// Why an instruction is refused.
    fn refusal(&self, id: &str) -> String {
        let answer = self.ask(id);
        assert_eq!(
            (answer.finish, answer.text.as_str()),
            (FinishReason::Error, "")
        );
        answer.error.unwrap()
    }

    /// The states that have been told since this was asked last.
    fn told(&self) -> Vec<State> {
        self.changes.try_iter().map(|change| change.state).collect()
    }
}

#[test]
fn only_an_active_engine_takes_something_in_and_says_in_every_other_state_why() {
    let node = Node::new();
    assert!(node.refusal("a").contains("the node is unconfigured"));
    node.engine.offer_frame(picture(0, [9; 3])).unwrap();
    assert!(node
        .engine
        .reset()
        .unwrap_err()
        .to_string()
        .contains("unconfigured"));
    assert_eq!(node.change("configure").unwrap(), State::Inactive);
    assert!(node.refusal("b").contains("inactive"));
    node.engine.offer_frame(picture(100, [9; 3])).unwrap();
    assert_eq!(node.change("activate").unwrap(), State::Active);
    node.engine.offer_frame(picture(200, [9; 3])).unwrap();
    wait_for(&node.engine, |stats| stats.frames_used == 1);
    assert_ne!(node.ask("c").finish, FinishReason::Error);
    assert_eq!(node.change("shutdown").unwrap(), State::Finalized);
    assert!(node.refusal("d").contains("finalized"));
    let stats = node.engine.stats();
    let skipped = stats.frames_skipped.paused;
    assert_eq!((stats.frames_received, skipped), (3, 2));
    assert_eq!(
        (stats.instructions_answered, stats.instructions_failed),
        (1, 3)
    );
    use State::*;
    let all = [
        Configuring,
        Inactive,
        Activating,
        Active,
        ShuttingDown,
        Finalized,
    ];
    assert_eq!(node.told(), all);
}

#[test]
fn what_was_seen_is_kept_while_inactive_and_gone_after_cleanup() {
    let node = Node::new();
    node.change("configure").unwrap();
    node.change("activate").unwrap();
    node.engine.offer_frame(picture(0, [9; 3])).unwrap();
    let before = wait_for(&node.engine, |stats| stats.frames_used == 1);
    node.change("deactivate").unwrap();
    node.change("activate").unwrap();
    let after = node.engine.stats();
    assert_eq!(after.cache.used, before.cache.used);
    assert_eq!((after.frames_seen, node.ask("a").frames_seen), (1, 1));

    node.change("deactivate").unwrap();
    node.change("cleanup").unwrap();
    let gone = node.engine.stats();
    assert_eq!(
        (gone.cache.bytes, gone.cache.budget, gone.frames_seen),
        (0, 0, 0)
    );
    assert_eq!((gone.hardware.as_str(), gone.policy), ("", ""));
    assert_eq!((gone.frames_used, gone.instructions_answered), (1, 1));

    let mut config = tiny_config();
    config.cache.budget = before.cache.budget + 8;
    node.configured("configure", config).unwrap();
    node.change("activate").unwrap();
    let anew = node.engine.stats();
    assert_eq!(anew.cache.budget, before.cache.budget + 8);
    assert_eq!((anew.frames_seen, anew.frames_used), (0, 1));
    assert!(node.refusal("b").contains("no image has come since"));
    // The clock of before has no part in the stream that begins.
    node.engine.offer_frame(picture(0, [9; 3])).unwrap();
    wait_for(&node.engine, |stats| stats.frames_used == 2);
}

#[test]
fn a_configure_that_fails_or_panics_leaves_the_engine_unconfigured_with_the_reason() {
    let node = Node::new();
    let mut nowhere = tiny_config();
    nowhere.model_dir = "/nowhere/at/all".into();
    let failed = node.configured("configure", nowhere).unwrap_err();
    assert!(matches!(failed, ChangeError::Failed(_)));
    assert!(failed.to_string().contains("/nowhere/at/all"), "{failed}");
    let last = node.changes.try_iter().last().unwrap();
    assert_eq!(
        (last.state, last.error),
        (State::Unconfigured, failed.to_string())
    );
    let panics = || panic!("a fault of the loader, on purpose");
    let failed = node.engine.change(Asked::Label("configure"), panics);
    assert!(failed
        .unwrap_err()
        .to_string()
        .contains("loading the model has failed"));
    assert_eq!(node.engine.state(), State::Unconfigured);
    assert!(node.refusal("a").contains("unconfigured"));

    node.change("configure").unwrap();
    node.change("activate").unwrap();
    let last = node.changes.try_iter().last().unwrap();
    assert_eq!((last.state, last.error.as_str()), (State::Active, ""));
    assert!(last.hardware.starts_with("cpu"), "{}", last.hardware);
}

#[test]
fn a_session_of_other_cameras_is_refused() {
    let node = Node::new();
    let mut two = tiny_config();
    two.cameras.labels = vec!["front".to_string(), "rear".to_string()];
    let failed = node.configured("configure", two).unwrap_err().to_string();
    assert_eq!(
        failed,
        "the session has 2 cameras, the engine was made for 1"
    );
    assert_eq!(node.engine.state(), State::Unconfigured);
}

#[test]
fn an_engine_that_is_shut_down_while_it_loads_lets_go_of_what_was_loaded() {
    let node = Node::new();
    let (begun, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let load = {
        let (begun, go_on) = (begun.clone(), go_on.clone());
        move || {
            begun.wait();
            go_on.wait();
            Session::new(tiny_config()).map_err(|error| error.to_string())
        }
    };
    std::thread::scope(|scope| {
        let configured = scope.spawn(|| node.engine.change(Asked::Label("configure"), load));
        begun.wait();
        assert_eq!(node.engine.state(), State::Configuring);
        assert!(node.refusal("a").contains("configuring"));
        let second = node.change("configure").unwrap_err();
        assert!(matches!(second, ChangeError::Refused(_)));
        assert!(node.engine.shutdown(PATIENCE));
        go_on.wait();
        assert!(configured.join().unwrap().is_err());
    });
    assert_eq!(node.engine.state(), State::Finalized);
    assert!(!node.engine.is_running());
    assert_eq!(node.engine.stats().cache.bytes, 0);
    assert!(node.refusal("b").contains("finalized"));
}

#[test]
fn parameters_that_are_set_while_the_model_loads_hold_for_it() {
    let node = Node::new();
    // Of the time before: what is loaded has its own.
    node.engine.set_parameter(
        "max_new_tokens",
        inf_mllm::cache::parameter::Value::Integer(3),
    );
    let mut config = tiny_config();
    (config.temperature, config.max_new_tokens) = (100.0, 7);
    let load = || {
        let longest = inf_mllm::cache::parameter::Value::Integer(5);
        node.engine.set_parameter("max_new_tokens", longest);
        Session::new(config).map_err(|error| error.to_string())
    };
    node.engine.change(Asked::Label("configure"), load).unwrap();
    node.change("activate").unwrap();
    node.engine.offer_frame(picture(0, [9; 3])).unwrap();
    wait_for(&node.engine, |stats| stats.frames_used == 1);
    let answer = node.ask("a");
    assert_eq!(
        (answer.finish, answer.output_tokens),
        (FinishReason::Length, 5)
    );
}
