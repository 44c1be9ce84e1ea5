//! A policy with its parameters, as a line of text and as a key in the results.

use serde_json::Value;

use super::{parameter, EvalError};
use crate::cache::parameter::{Parameter, ParameterError, Parameters};
use crate::cache::{CacheConfig, PolicyKind};
use crate::stream::archive::ArchiveConfig;

/// What a stream is made of: some parameters make no difference to text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Text,
    Frames,
}

/// Parameters that make no difference to text.
const OF_FRAMES: [&str; 2] = ["withdraw_layer", "last_frames"];

/// Those that make none where there is one camera.
const OF_CAMERAS: [&str; 1] = ["camera_shares"];

/// What a policy's name ends with that has an archive beside it.
const RECALL: &str = "+recall";

/// A policy, without an archive or with one.
#[derive(Debug, Clone)]
pub struct Recalling {
    pub cache: CacheConfig,
    pub archive: Option<ArchiveConfig>,
    pub input: Input,
}

impl Recalling {
    /// Reads what [`parse`] reads, and `name+recall:parameter=value,...` with the parameters of the policy and of the archive.
    pub fn parse(line: &str, base: &CacheConfig) -> Result<Self, EvalError> {
        Self::parse_for(Input::Text, line, base)
    }

    /// The same for a stream of `input`.
    pub fn parse_for(input: Input, line: &str, base: &CacheConfig) -> Result<Self, EvalError> {
        let (name, settings) = line.split_once(':').unwrap_or((line, ""));
        let Some(policy) = name.strip_suffix(RECALL) else {
            return Ok(Self {
                cache: parse_for(input, line, base)?,
                archive: None,
                input,
            });
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
        let cache = parse_for(input, &format!("{policy}:{}", others.join(",")), base)?;
        if cache.policy == PolicyKind::Full {
            return Err(parameter("policy", line, "one that evicts, to recall from"));
        }
        Ok(Self {
            cache,
            archive: Some(archive),
            input,
        })
    }

    /// The policy's parameters, by name.
    pub fn describe(&self) -> Value {
        describe_for(self.input, &self.cache)
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
    parse_for(Input::Text, line, base)
}

fn parse_for(input: Input, line: &str, base: &CacheConfig) -> Result<CacheConfig, EvalError> {
    let (name, settings) = line.split_once(':').unwrap_or((line, ""));
    let mut config = base.clone();
    config.set("policy", CacheConfig::find("policy")?.parse(name)?)?;
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| parameter("policy", line, "name:parameter=value,parameter=value"))?;
        let known = read_by(config.policy, input).filter(|known| known.name != "policy");
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
    describe_for(Input::Text, config)
}

fn describe_for(input: Input, config: &CacheConfig) -> Value {
    let policy = config.policy.build(config);
    let scope = policy.map_or(config.scope, |policy| policy.scope());
    let resolved = CacheConfig {
        scope,
        ..config.clone()
    };
    let values = read_by(config.policy, input).filter_map(|parameter| {
        let value = resolved.get(parameter.name)?;
        Some((parameter.name.to_string(), Value::from(&value)))
    });
    Value::Object(values.collect())
}

/// The parameters that make a difference to a policy.
fn read_by(policy: PolicyKind, input: Input) -> impl Iterator<Item = Parameter> {
    let all = CacheConfig::list().into_iter();
    all.filter(move |parameter| {
        let counts = input == Input::Frames || !OF_FRAMES.contains(&parameter.name);
        let counts = counts && !OF_CAMERAS.contains(&parameter.name);
        counts && parameter.read_by(policy.name())
    })
}
