//! A policy with its parameters, as a line of text and as a key in the results.

use serde_json::Value;

use super::{parameter, EvalError};
use crate::cache::parameter::{Parameter, ParameterError, Parameters};
use crate::cache::{CacheConfig, PolicyKind};
use crate::stream::archive::ArchiveConfig;

/// Parameters that make no difference to text.
const OF_FRAMES: [&str; 2] = ["withdraw_layer", "last_frames"];

/// What a policy's name ends with that has an archive beside it.
const RECALL: &str = "+recall";

/// A policy, without an archive or with one.
#[derive(Debug, Clone)]
pub struct Recalling {
    pub cache: CacheConfig,
    pub archive: Option<ArchiveConfig>,
}

impl Recalling {
    /// Reads what [`parse`] reads, and `name+recall:parameter=value,...` with the parameters of the policy and of the archive.
    pub fn parse(line: &str, base: &CacheConfig) -> Result<Self, EvalError> {
        let (name, settings) = line.split_once(':').unwrap_or((line, ""));
        let Some(policy) = name.strip_suffix(RECALL) else {
            let cache = parse(line, base)?;
            let archive = None;
            return Ok(Self { cache, archive });
        };
        let mut archive = ArchiveConfig::default();
        let mut others = Vec::new();
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let known = setting.split_once('=');
            match known.and_then(|(name, value)| Some((ArchiveConfig::find(name).ok()?, value))) {
                Some((known, value)) => archive.set(known.name, known.parse(value)?)?,
                None => others.push(setting),
            }
        }
        let cache = parse(&format!("{policy}:{}", others.join(",")), base)?;
        if cache.policy == PolicyKind::Full {
            return Err(parameter("policy", line, "one that evicts, to recall from"));
        }
        let archive = Some(archive);
        Ok(Self { cache, archive })
    }

    /// The archive's parameters, by name; null where there is none.
    pub fn describe_archive(&self) -> Value {
        let Some(archive) = &self.archive else {
            return Value::Null;
        };
        let values = ArchiveConfig::list().into_iter().filter_map(|parameter| {
            let value = archive.get(parameter.name)?;
            Some((parameter.name.to_string(), Value::from(&value)))
        });
        Value::Object(values.collect())
    }
}

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
