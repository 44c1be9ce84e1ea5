//! A policy with its parameters, as a line of text and as a key in the results.

use serde_json::Value;

use super::{parameter, EvalError};
use crate::cache::parameter::{Parameter, ParameterError, Parameters};
use crate::cache::{CacheConfig, PolicyKind};

/// Parameters that make no difference to text.
const OF_FRAMES: [&str; 2] = ["withdraw_layer", "last_frames"];

/// Reads `name` or `name:parameter=value,...`, such as `inf_mllm:bias=0,scope=kv_head`, over the values of `base`.
pub fn parse(line: &str, base: &CacheConfig) -> Result<CacheConfig, EvalError> {
    let (name, settings) = line.split_once(':').unwrap_or((line, ""));
    let mut config = base.clone();
    config.set("policy", CacheConfig::find("policy")?.parse(name)?)?;
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| parameter("policy", line, "name:parameter=value,parameter=value"))?;
        let known = read_by(config.policy).filter(|known| known.name != "policy");
        let mut known = known.collect::<Vec<_>>();
        let Some(at) = known.iter().position(|known| known.name == name) else {
            return Err(EvalError::PolicyParameter {
                policy: config.policy,
                error: ParameterError::unknown(name, &known),
            });
        };
        let value = known.swap_remove(at).parse(value)?;
        config.set(name, value)?;
    }
    Ok(config)
}

/// Every parameter that the policy reads, by name. Two runs with the same ones are the same run.
pub fn describe(config: &CacheConfig) -> Value {
    let policy = config.policy.build(config);
    let scope = policy.map_or(config.scope, |policy| policy.scope());
    let resolved = CacheConfig {
        scope,
        ..config.clone()
    };
    let values = read_by(config.policy).filter_map(|parameter| {
        let value = resolved.get(parameter.name)?;
        Some((parameter.name.to_string(), Value::from(&value)))
    });
    Value::Object(values.collect())
}

/// The parameters that make a difference to a policy.
fn read_by(policy: PolicyKind) -> impl Iterator<Item = Parameter> {
    let all = CacheConfig::list().into_iter();
    all.filter(move |parameter| parameter.read_by(policy) && !OF_FRAMES.contains(&parameter.name))
}
