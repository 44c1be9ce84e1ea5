//! The life cycle as ROS has it: the services of a managed node, `~/transition_event`, and `~/status`, where how the node stands waits for those
//! who listen later. `~/pause` is a short way to two of the transitions.

use std::future::ready;
use std::sync::Arc;

use r2r::inf_mllm::msg::Status as StatusMsg;
use r2r::lifecycle_msgs::msg as ros_msg;
use r2r::lifecycle_msgs::srv;
use r2r::std_srvs::srv::SetBool;
use r2r::{Publisher, QosProfile};

use super::messages::{publishable, time};
use super::outputs::{advertise, report, RosTime};
use super::params::{self, Parameters};
use super::services::Services;
use super::topics::Topics;
use super::NodeError;
use crate::stream::engine::{Change, ChangeError};
use crate::stream::lifecycle::{Asked, State, Transition, TRANSITIONS};
use crate::stream::{inspect, Engine, Session, SessionConfig};

/// The publishers of changes.
pub struct Changes {
    events: Publisher<ros_msg::TransitionEvent>,
    status: Publisher<StatusMsg>,
    parameters: Parameters,
    clock: RosTime,
}

impl Changes {
    /// Says how the node stands, and from now on what changes.
    pub fn advertise(
        node: &mut r2r::Node,
        parameters: Parameters,
        engine: &Engine,
    ) -> Result<Self, NodeError> {
        let latched = QosProfile::default().keep_last(1).transient_local();
        let changes = Self {
            events: advertise(node, "~/transition_event", QosProfile::default())?,
            status: advertise(node, "~/status", latched)?,
            parameters,
            clock: RosTime::of(node),
        };
        changes.publish(&Change {
            transition: None,
            state: engine.state(),
            hardware: String::new(),
            error: String::new(),
        });
        Ok(changes)
    }

    pub fn publish(&self, change: &Change) {
        let now_ns = self.clock.now_ns();
        if let Some(transition) = change.transition {
            let event = ros_msg::TransitionEvent {
                timestamp: u64::try_from(now_ns).unwrap_or(0),
                transition: named(transition),
                start_state: state(transition.from),
                goal_state: state(transition.to),
            };
            report("~/transition_event", self.events.publish(&event));
        }
        let status = StatusMsg {
            stamp: time(now_ns),
            state: state(change.state),
            paused: change.state == State::Inactive,
            model: publishable(&self.parameters.model()),
            device: change.hardware.clone(),
            last_error: publishable(&change.error),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        report("~/status", self.status.publish(&status));
    }
}

/// What takes the node from one state to another.
#[derive(Clone)]
pub struct Lifecycle {
    engine: Arc<Engine>,
    parameters: Parameters,
    topics: Arc<Topics>,
    /// The node's full name.
    node: String,
}

impl Lifecycle {
    pub fn new(
        node: &r2r::Node,
        engine: Arc<Engine>,
        parameters: Parameters,
        topics: &Topics,
    ) -> Self {
        Self {
            engine,
            parameters,
            topics: Arc::new(topics.clone()),
            node: node.fully_qualified_name().unwrap_or_default(),
        }
    }

    /// Loads the model and begins; blocks.
    pub fn start(&self) -> Result<(), NodeError> {
        for label in ["configure", "activate"] {
            self.change(Asked::Label(label))?;
        }
        Ok(())
    }

    /// Carries a transition out and says so; blocks.
    fn change(&self, asked: Asked<'_>) -> Result<State, ChangeError> {
        let state = self.engine.change(asked, || self.load())?;
        match state {
            State::Active => self.announce(),
            state => tracing::info!("the node is {state}"),
        }
        Ok(state)
    }

    fn load(&self) -> Result<Session, String> {
        let session = params::session(&self.parameters.config());
        let session = session.map_err(|error| error.to_string())?;
        show_checkpoint(&session);
        Session::new(session).map_err(|error| error.to_string())
    }

    /// Answers those who ask for states and transitions.
    pub fn serve(&self, node: &mut r2r::Node, services: &mut Services) -> Result<(), NodeError> {
        let this = self.clone();
        services.answer::<srv::ChangeState::Service, _>(
            node,
            "~/change_state",
            move |request| {
                let (this, asked) = (this.clone(), request.transition.clone());
                async move {
                    let change = move || {
                        // As rclcpp has it, the label holds if there is one.
                        let asked = match asked.label.as_str() {
                            "" => Asked::Id(asked.id),
                            label => Asked::Label(label),
                        };
                        this.change(asked)
                    };
                    let success = match tokio::task::spawn_blocking(change).await {
                        Ok(Ok(_)) => true,
                        Ok(Err(ChangeError::Refused(refused))) => {
                            tracing::warn!("{refused}");
                            false
                        }
                        Ok(Err(ChangeError::Failed(error))) => {
                            tracing::error!("{error}");
                            false
                        }
                        Err(error) => {
                            tracing::error!("the transition ended early: {error}");
                            false
                        }
                    };
                    srv::ChangeState::Response { success }
                }
            },
        )?;
        let engine = self.engine.clone();
        services.answer::<srv::GetState::Service, _>(node, "~/get_state", move |_| {
            let current_state = state(engine.state());
            ready(srv::GetState::Response { current_state })
        })?;
        services.answer::<srv::GetAvailableStates::Service, _>(
            node,
            "~/get_available_states",
            |_| {
                // Tools list one more, in which no node is.
                let unknown = ros_msg::State {
                    id: ros_msg::State::PRIMARY_STATE_UNKNOWN as u8,
                    label: "unknown".to_string(),
                };
                let states = State::ALL.map(state).into_iter();
                ready(srv::GetAvailableStates::Response {
                    available_states: [unknown].into_iter().chain(states).collect(),
                })
            },
        )?;
        let engine = self.engine.clone();
        let name = "~/get_available_transitions";
        services.answer::<srv::GetAvailableTransitions::Service, _>(node, name, move |_| {
            ready(described(engine.state().transitions()))
        })?;
        services.answer::<srv::GetAvailableTransitions::Service, _>(
            node,
            "~/get_transition_graph",
            |_| ready(described(TRANSITIONS.iter())),
        )?;
        self.serve_pause(node, services)
    }

    /// `~/pause` deactivates the node and activates it again, unless it is what it is to be.
    fn serve_pause(&self, node: &mut r2r::Node, services: &mut Services) -> Result<(), NodeError> {
        let engine = self.engine.clone();
        services.answer::<SetBool::Service, _>(node, "~/pause", move |request| {
            let changed = engine.pause(request.data);
            let success = changed.is_ok();
            let message = match (changed, request.data) {
                (Ok(_), true) => "paused".to_string(),
                (Ok(_), false) => "running".to_string(),
                (Err(error), _) => error.to_string(),
            };
            match success {
                true => tracing::info!("{message}"),
                false => tracing::warn!("pause {}: {message}", request.data),
            }
            ready(SetBool::Response { success, message })
        })
    }

    /// One line that says what runs.
    fn announce(&self) {
        let (config, stats) = (self.parameters.config(), self.engine.stats());
        let topics = &*self.topics;
        let images = topics.images.iter().map(ToString::to_string);
        tracing::info!(
            node = self.node,
            image = %images.collect::<Vec<_>>().join(", "),
            instructions = %format!("{}, {}", topics.instruction, topics.instruction_text),
            publishes = topics.published.join(", "),
            services = topics.services.join(", "),
            action = %topics.action,
            model = %config.session.model_dir.display(),
            device = stats.hardware,
            policy = %config.session.cache.policy,
            budget_tokens = stats.cache.budget,
            budget_bytes = stats.cache.bytes,
            "ready"
        );
        if cfg!(not(feature = "vision_msgs")) && stats.detects {
            tracing::warn!(
                "boxes in answers are not published on ~/detections: the node was built where there is no vision_msgs; \
                 install it (ros-jazzy-vision-msgs on Jazzy) and build the package anew"
            );
        }
    }
}

/// What the checkpoint is and what it needs, a line of the log for each line of the report.
fn show_checkpoint(session: &SessionConfig) {
    let options = inspect::Options {
        session,
        memory: None,
    };
    let report = inspect::Report::of(&session.model_dir, &options);
    for line in report.to_string().lines() {
        tracing::info!("{line}");
    }
}

fn state(state: State) -> ros_msg::State {
    ros_msg::State {
        id: state.id(),
        label: state.label().to_string(),
    }
}

fn named(transition: &Transition) -> ros_msg::Transition {
    ros_msg::Transition {
        id: transition.id,
        label: transition.label.to_string(),
    }
}

fn described(
    transitions: impl Iterator<Item = &'static Transition>,
) -> srv::GetAvailableTransitions::Response {
    let described = transitions.map(|transition| ros_msg::TransitionDescription {
        transition: named(transition),
        start_state: state(transition.from),
        goal_state: state(transition.to),
    });
    srv::GetAvailableTransitions::Response {
        available_transitions: described.collect(),
    }
}
