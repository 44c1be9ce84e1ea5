//! A policy with its parameters, as a line of text and as a key in the results.

use std::str::FromStr;

use serde_json::{json, Value};

use super::{parameter, EvalError};
use crate::cache::{CacheConfig, PolicyKind};

/// Reads `name` or `name:parameter=value,...`, such as `inf_mllm:bias=0,scope=kv_head`, over the values of `base`.
pub fn parse(line: &str, base: &CacheConfig) -> Result<CacheConfig, EvalError> {
    let (name, settings) = line.split_once(':').unwrap_or((line, ""));
    let mut config = CacheConfig {
        policy: name.parse()?,
        ..base.clone()
    };
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| parameter("policy", line, "name:parameter=value,parameter=value"))?;
        set(&mut config, name, value)?;
    }
    Ok(config)
}

fn set(config: &mut CacheConfig, name: &str, value: &str) -> Result<(), EvalError> {
    let known = describe(config);
    if known.get(name).is_none() || name == "policy" {
        let known = known.as_object().into_iter().flatten();
        let names = known.map(|(name, _)| name.as_str());
        let names = names.filter(|name| *name != "policy").collect::<Vec<_>>();
        let expected = format!("one of {}", names.join(", "));
        let what = format!("{name} of {}", config.policy);
        return Err(parameter("policy", what, expected));
    }
    match name {
        "budget" => config.budget = number(name, value)?,
        "slack" => config.slack = number(name, value)?,
        "sinks" => config.sinks = number(name, value)?,
        "n_recent" => config.n_recent = number(name, value)?,
        "query_window" => config.query_window = number(name, value)?,
        "bias" => config.bias = number(name, value)?,
        "bias_form" => config.bias_form = value.parse()?,
        "scope" => config.scope = value.parse()?,
        "query_source" => config.query_source = value.parse()?,
        "h2o_decay" => config.h2o_decay = number(name, value)?,
        "units" => config.plus.units = number(name, value)?,
        "pool" => config.plus.pool = number(name, value)?,
        "value_norms" => config.plus.value_norms = number(name, value)?,
        "standing_weight" => config.plus.standing_weight = number(name, value)?,
        "standing_bias" => config.plus.standing_bias = number(name, value)?,
        "novelty_weight" => config.plus.novelty_weight = number(name, value)?,
        "position_gap" => config.plus.position_gap = number(name, value)?,
        "novelty_bias" => config.plus.novelty_bias = number(name, value)?,
        "protect_boundaries" => config.protect_boundaries = number(name, value)?,
        "kv_storage" => config.storage = value.parse()?,
        _ => return Err(parameter("policy", name, "a parameter that can be set")),
    }
    Ok(())
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, EvalError> {
    value.parse().map_err(|_| {
        parameter(
            "policy",
            format!("{name}={value}"),
            "a number, or true or false",
        )
    })
}

/// Every parameter that the policy reads, by name. Two runs with the same ones are the same run.
pub fn describe(config: &CacheConfig) -> Value {
    let policy = config.policy.build(config);
    let scope = policy.map_or(config.scope, |policy| policy.scope());
    let mut all = json!({
        "policy": config.policy.name(),
        "budget": config.budget,
        "slack": config.slack,
        "sinks": config.sinks,
        "n_recent": config.n_recent,
        "query_window": config.query_window,
        "bias": config.bias,
        "bias_form": config.bias_form.name(),
        "scope": scope.name(),
        "query_source": config.query_source.name(),
        "h2o_decay": config.h2o_decay,
        "units": config.plus.units,
        "pool": config.plus.pool,
        "value_norms": config.plus.value_norms,
        "standing_weight": config.plus.standing_weight,
        "standing_bias": config.plus.standing_bias,
        "novelty_weight": config.plus.novelty_weight,
        "novelty_bias": config.plus.novelty_bias,
        "position_gap": config.plus.position_gap,
        "protect_boundaries": config.protect_boundaries,
        "kv_storage": config.storage.name(),
    });
    if let Some(all) = all.as_object_mut() {
        all.retain(|name, _| reads(config.policy, name));
    }
    all
}

/// Whether a parameter makes a difference to a policy.
fn reads(policy: PolicyKind, name: &str) -> bool {
    use PolicyKind::{Full, H2o, InfMllm, InfMllmPlus, StreamingLlm};
    match name {
        "slack" | "protect_boundaries" => policy != Full,
        "sinks" => matches!(policy, StreamingLlm | InfMllm | InfMllmPlus),
        "n_recent" | "query_window" | "bias" | "scope" | "query_source" => {
            matches!(policy, InfMllm | InfMllmPlus)
        }
        "bias_form" => policy == InfMllm,
        "h2o_decay" => policy == H2o,
        "units" | "pool" | "value_norms" | "standing_weight" | "standing_bias"
        | "novelty_weight" | "novelty_bias" | "position_gap" => policy == InfMllmPlus,
        _ => true,
    }
}
