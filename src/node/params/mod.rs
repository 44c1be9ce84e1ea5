//! The node's parameters: from the command line and the parameter files at the start, and by service afterwards. What they are
//! stands in [`crate::parameters`].
//!
//! - this file: the parameters at the start
//! - `services`: getting, setting and describing them while the node runs
//! - `messages`: between ROS messages and values
//! - `find`: where the checkpoint is

mod find;
mod messages;
mod services;

use r2r::ParameterValue;

use find::find_model;
pub use services::Parameters;

use super::names::{Override, Overrides};
use super::NodeError;
use crate::cache::parameter::{Kind, Parameter, ParameterError, Parameters as _, Value};
use crate::parameters::{unread, NodeConfig};
use crate::stream::SessionConfig;

/// Names that ROS itself gives a meaning to, for any node.
const OF_ROS: [&str; 1] = ["start_type_description_service"];
/// Beginning of further ones.
const QOS_OVERRIDES: &str = "qos_overrides.";

/// The defaults with what was given, in its order; each value is checked.
///
/// Unknown names are refused; under a wildcard, where they may be another node's, they are warned of. What ROS owns is ignored.
pub fn configure(overrides: &Overrides) -> Result<NodeConfig, NodeError> {
    for warning in &overrides.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = NodeConfig::default();
    for given in &overrides.given {
        if OF_ROS.contains(&given.name.as_str()) || given.name.starts_with(QOS_OVERRIDES) {
            continue;
        }
        match take(&mut config, given) {
            Ok(()) => {}
            Err(ParameterError::Unknown { name, nearest, .. }) if given.for_many() => {
                let (file, nodes) = given.origin.clone().unwrap_or_default();
                let meant =
                    nearest.map_or_else(String::new, |nearest| format!(" (is {nearest} meant?)"));
                tracing::warn!(
                    "ignored: {name}, under {nodes} in {file}, is not a parameter of this node{meant}"
                );
            }
            Err(error) => return Err(refusal(given, error)),
        }
    }
    config.check()?;
    let values = overrides.given.iter().filter_map(|given| {
        let value = config.get(&given.name)?;
        Some((given.name.as_str(), value))
    });
    let values = values.collect::<std::collections::BTreeMap<_, _>>();
    let values = values.iter().map(|(name, value)| (*name, value));
    for warning in unread::<NodeConfig>(values, config.session.cache.policy) {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn take(config: &mut NodeConfig, given: &Override) -> Result<(), ParameterError> {
    let parameter = NodeConfig::find(&given.name)?;
    let value = checked(&parameter, &given.value)?;
    config.set(parameter.name, value)
}

/// A value of ROS as the parameter stores it.
fn checked(parameter: &Parameter, value: &ParameterValue) -> Result<Value, ParameterError> {
    let is_list = matches!(parameter.kind, Kind::Numbers(_) | Kind::Texts);
    match messages::value(value) {
        None if is_list && messages::is_empty_list(value) => {
            parameter.checked(Value::Texts(Vec::new()))
        }
        Some(Value::Numbers(_) | Value::Texts(_)) if !is_list => {
            Err(parameter.refusal(messages::kind(value)))
        }
        Some(value) => parameter.checked(value),
        None => Err(parameter.refusal(messages::kind(value))),
    }
}

/// An error that says which file is to be mended.
fn refusal(given: &Override, error: ParameterError) -> NodeError {
    match &given.origin {
        None => NodeError::Parameter(error),
        Some((file, nodes)) => NodeError::ParameterFile {
            file: file.clone(),
            nodes: nodes.clone(),
            error,
        },
    }
}

/// What the engine needs, with the checkpoint's folder found.
pub fn session(config: &NodeConfig) -> Result<SessionConfig, NodeError> {
    let mut session = config.session.clone();
    session.model_dir = find_model(&session.model_dir)?;
    Ok(session)
}
