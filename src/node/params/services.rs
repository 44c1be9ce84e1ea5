//! The parameter services: what every ROS node has, with ranges, allowed values and reasons for a refusal.

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use r2r::builtin_interfaces::msg::Time;
use r2r::rcl_interfaces::msg as ros_msg;
use r2r::rcl_interfaces::srv;
use r2r::{Publisher, QosProfile};

use super::{checked, messages};
use crate::cache::parameter::{Parameters as _, Settable};
use crate::excerpt::{excerpt, excerpt_of_path};
use crate::node::outputs::{advertise, report, RosTime};
use crate::node::services::Services;
use crate::node::{ros, NodeError};
use crate::parameters::NodeConfig;
use crate::stream::{Engine, State};

/// The node's parameters, for all who read them while it runs.
#[derive(Clone)]
pub struct Parameters(Arc<Mutex<Served>>);

/// The values that the services give, and where changes go.
struct Served {
    config: NodeConfig,
    engine: Arc<Engine>,
    events: Publisher<ros_msg::ParameterEvent>,
    clock: RosTime,
    /// Full name of the node.
    node: String,
}

impl Parameters {
    /// With these values at the start.
    pub fn new(
        node: &mut r2r::Node,
        config: NodeConfig,
        engine: Arc<Engine>,
    ) -> Result<Self, NodeError> {
        Ok(Self(Arc::new(Mutex::new(Served {
            config,
            engine,
            events: advertise(node, "/parameter_events", QosProfile::parameter_events())?,
            clock: RosTime::of(node),
            node: ros("node name", node.fully_qualified_name())?,
        }))))
    }

    /// The values of now.
    pub fn config(&self) -> NodeConfig {
        lock(&self.0).config.clone()
    }

    /// Where the model is, as it was given, for messages that are sent again and again.
    pub fn model(&self) -> String {
        excerpt_of_path(&lock(&self.0).config.session.model_dir)
    }

    /// Serves them until the runtime ends.
    pub fn serve(&self, node: &mut r2r::Node, services: &mut Services) -> Result<(), NodeError> {
        serve(node, services, &self.0)
    }
}

fn serve(
    node: &mut r2r::Node,
    services: &mut Services,
    served: &Arc<Mutex<Served>>,
) -> Result<(), NodeError> {
    let shared = served.clone();
    services.answer::<srv::GetParameters::Service, _>(
        node,
        "~/get_parameters",
        move |request| {
            let served = lock(&shared);
            let value = |name: &String| messages::to_message(served.config.get(name).as_ref());
            ready(srv::GetParameters::Response {
                values: request.names.iter().map(value).collect(),
            })
        },
    )?;
    services.answer::<srv::GetParameterTypes::Service, _>(
        node,
        "~/get_parameter_types",
        |request| {
            let kind = |name: &String| {
                NodeConfig::find(name).map_or(0, |parameter| messages::type_of(&parameter.kind))
            };
            ready(srv::GetParameterTypes::Response {
                types: request.names.iter().map(kind).collect(),
            })
        },
    )?;
    services.answer::<srv::ListParameters::Service, _>(node, "~/list_parameters", |request| {
        // No name has a dot: every name is at depth 1 and only a prefix of itself.
        let wanted = |name: &&str| {
            request.prefixes.is_empty() || request.prefixes.iter().any(|prefix| prefix == name)
        };
        let names = NodeConfig::list()
            .into_iter()
            .map(|parameter| parameter.name);
        let names = names.filter(wanted).map(String::from).collect();
        ready(srv::ListParameters::Response {
            result: ros_msg::ListParametersResult {
                names,
                prefixes: Vec::new(),
            },
        })
    })?;
    services.answer::<srv::DescribeParameters::Service, _>(
        node,
        "~/describe_parameters",
        |request| {
            let describe = |name: &String| match NodeConfig::find(name) {
                Ok(parameter) => messages::descriptor(&parameter),
                Err(_) => ros_msg::ParameterDescriptor {
                    name: name.clone(),
                    ..Default::default()
                },
            };
            ready(srv::DescribeParameters::Response {
                descriptors: request.names.iter().map(describe).collect(),
            })
        },
    )?;
    let shared = served.clone();
    services.answer::<srv::SetParameters::Service, _>(
        node,
        "~/set_parameters",
        move |request| {
            let mut served = lock(&shared);
            let each = request.parameters.iter();
            ready(srv::SetParameters::Response {
                results: each
                    .map(|given| result(served.set(std::slice::from_ref(given))))
                    .collect(),
            })
        },
    )?;
    let shared = served.clone();
    services.answer::<srv::SetParametersAtomically::Service, _>(
        node,
        "~/set_parameters_atomically",
        move |request| {
            ready(srv::SetParametersAtomically::Response {
                result: result(lock(&shared).set(&request.parameters)),
            })
        },
    )
}

fn lock(served: &Mutex<Served>) -> MutexGuard<'_, Served> {
    // Plain values, usable after a panic elsewhere.
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

fn result(outcome: Result<(), String>) -> ros_msg::SetParametersResult {
    ros_msg::SetParametersResult {
        successful: outcome.is_ok(),
        reason: outcome.err().unwrap_or_default(),
    }
}

impl Served {
    /// Sets all of them, or says why not and sets none.
    fn set(&mut self, given: &[ros_msg::Parameter]) -> Result<(), String> {
        let mut config = self.config.clone();
        for given in given {
            self.change(&mut config, given)?;
        }
        let changes = NodeConfig::list().into_iter().filter_map(|parameter| {
            let value = config.get(parameter.name)?;
            let present = self.config.get(parameter.name);
            (present.as_ref() != Some(&value)).then_some((parameter, value))
        });
        let changes = changes.collect::<Vec<_>>();
        config.check().map_err(|error| error.to_string())?;
        let session = &config.session;
        // The last that can fail: all that follows only takes over what is right.
        if session.system_prompt != self.config.session.system_prompt {
            self.engine
                .set_system_prompt(session.system_prompt.clone())
                .map_err(|error| format!("parameter system_prompt does not fit: {error}"))?;
        }
        self.config = config;
        let unconfigured = self.engine.state() == State::Unconfigured;
        let mut changed = Vec::new();
        for (parameter, value) in changes {
            let from = match parameter.settable {
                _ if unconfigured => "is read when the node is configured",
                Settable::Reset => "takes effect at the next reset",
                _ => "holds from the next frame or instruction on",
            };
            let shown = excerpt(&value.to_string());
            tracing::info!("parameter {} set to {shown}, {from}", parameter.name);
            changed.push(ros_msg::Parameter {
                name: parameter.name.to_string(),
                value: messages::to_message(Some(&value)),
            });
            // The other kind is the system prompt's, which the engine has.
            if parameter.settable == Settable::Running {
                self.engine.set_parameter(parameter.name, value);
            }
        }
        if !changed.is_empty() {
            self.tell(changed);
        }
        Ok(())
    }

    /// Sets a parameter of `config`, if it may be set now.
    fn change(&self, config: &mut NodeConfig, given: &ros_msg::Parameter) -> Result<(), String> {
        let parameter = NodeConfig::find(&given.name).map_err(|error| error.to_string())?;
        let value = checked(&parameter, &messages::from_message(&given.value))
            .map_err(|error| error.to_string())?;
        let present = self.config.get(parameter.name);
        let state = self.engine.state();
        let instead = match parameter.settable {
            Settable::Running | Settable::Reset => None,
            Settable::Unconfigured if state == State::Unconfigured => None,
            Settable::Unconfigured if state == State::Finalized => Some(format!(
                "the node is {state}, which it stays: give it there and restart the node"
            )),
            Settable::Unconfigured => Some(format!(
                "the node is {state}: ~/change_state with {} comes first, or give it there and restart the node",
                match state {
                    State::Inactive => "cleanup",
                    _ => "deactivate, then cleanup",
                }
            )),
            Settable::Start => Some("give it there and restart the node".to_string()),
        };
        if let Some(instead) = instead.filter(|_| present.as_ref() != Some(&value)) {
            let present = present.map_or_else(String::new, |present| present.to_string());
            return Err(format!(
                "parameter {} is {present} and can be set {}: {instead}",
                parameter.name,
                parameter.settable.about()
            ));
        }
        config
            .set(parameter.name, value)
            .map_err(|error| error.to_string())
    }

    /// Tells the tools that follow /parameter_events.
    fn tell(&self, changed: Vec<ros_msg::Parameter>) {
        let now_ns = self.clock.now_ns();
        let event = ros_msg::ParameterEvent {
            stamp: Time {
                sec: i32::try_from(now_ns / 1_000_000_000).unwrap_or(i32::MAX),
                nanosec: (now_ns % 1_000_000_000).unsigned_abs() as u32,
            },
            node: self.node.clone(),
            changed_parameters: changed,
            ..Default::default()
        };
        report("/parameter_events", self.events.publish(&event));
    }
}
