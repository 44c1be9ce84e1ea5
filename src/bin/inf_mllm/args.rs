//! The parameters as options of the commands, each with its description, range and default.

use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Command, FromArgMatches};
use inf_mllm::cache::parameter::{Parameter, ParameterError, Parameters, Value};
use inf_mllm::cache::CacheConfig;
use inf_mllm::model::precision::Precision;
use inf_mllm::parameters::unread;
use inf_mllm::stream::SessionConfig;

/// Which parameters a command has options for.
pub trait Selection {
    fn takes(parameter: &Parameter) -> bool;

    /// What holds where nothing is given.
    fn defaults() -> SessionConfig {
        SessionConfig::default()
    }

    /// What the help says in the place of a default that depends on the rest.
    fn default_in_words(_parameter: &str) -> Option<&'static str> {
        None
    }
}

/// The parameters that were given to a command.
pub struct Given<S> {
    values: Vec<(&'static str, Value)>,
    selection: PhantomData<S>,
}

/// Names by which an option is known beside its own.
const ALIASES: [(&str, &str); 2] = [
    ("system_prompt", "system"),
    ("standing_instruction", "standing"),
];

impl<S: Selection> Given<S> {
    /// Whether a parameter was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(given, _)| *given == name)
    }

    /// The given values over `base`; those that make no difference are warned of.
    pub fn over(&self, base: SessionConfig) -> Result<SessionConfig, ParameterError> {
        let mut config = base;
        for (name, value) in &self.values {
            config.set(name, value.clone())?;
        }
        let given = self.values.iter().map(|(name, value)| (*name, value));
        for warning in unread::<SessionConfig>(given, config.cache.policy) {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// The given values over the command's defaults.
    pub fn config(&self) -> Result<SessionConfig, ParameterError> {
        self.over(S::defaults())
    }

    fn parameters() -> impl Iterator<Item = Parameter> {
        SessionConfig::list().into_iter().filter(S::takes)
    }
}

impl<S: Selection> clap::Args for Given<S> {
    fn augment_args(command: Command) -> Command {
        let defaults = S::defaults();
        Self::parameters().fold(command, |command, parameter| {
            let default = match S::default_in_words(parameter.name) {
                Some(words) => words.to_string(),
                None => {
                    let own = defaults.get(parameter.name);
                    own.unwrap_or_else(|| parameter.default.clone()).to_string()
                }
            };
            command.arg(option(parameter, &default))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Selection> FromArgMatches for Given<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = Self::parameters().filter_map(|parameter| {
            let value = matches.get_one::<Value>(parameter.name)?;
            Some((parameter.name, value.clone()))
        });
        Ok(Self {
            values: values.collect(),
            selection: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The option of a parameter, which is named as it is but with hyphens.
fn option(parameter: Parameter, default: &str) -> Arg {
    let unit = match parameter.unit {
        "" => String::new(),
        unit => format!(" ({unit})"),
    };
    let help = format!(
        "{} [{}{unit}; default: {default}]",
        parameter.about, parameter.kind
    );
    let mut arg = Arg::new(parameter.name)
        .long(parameter.name.replace('_', "-"))
        .help(help)
        .help_heading(parameter.section)
        .allow_hyphen_values(true);
    for (name, alias) in ALIASES {
        if name == parameter.name {
            arg = arg.visible_alias(alias);
        }
    }
    arg.value_parser(move |text: &str| parameter.parse(text))
}

/// What runs the model.
const OF_THE_MODEL: [&str; 5] = [
    "model_file",
    "projector_file",
    "device",
    "dtype",
    "quantization",
];

/// Those of a replay: all but the folder of the model, which has an option of its own, and what a replay has none of: a queue, watches,
/// pictures that grow old or come with instructions, frames that come during an answer, small pictures of frames to look at. The labels
/// of cameras come with their topics.
pub struct Replayed;

impl Selection for Replayed {
    fn takes(parameter: &Parameter) -> bool {
        ![
            "model",
            "queue_size",
            "max_frame_age",
            "cameras",
            "instruction_images_limit",
            "frames_during_answers",
            "watches_limit",
            "thumbnail_side",
        ]
        .contains(&parameter.name)
    }
}

/// Those of one prompt.
pub struct Prompted;

impl Selection for Prompted {
    fn takes(parameter: &Parameter) -> bool {
        OF_THE_MODEL.contains(&parameter.name)
            || ["max_new_tokens", "repetition_penalty", "thinking"].contains(&parameter.name)
            || CacheConfig::find(parameter.name).is_ok()
    }

    fn default_in_words(parameter: &str) -> Option<&'static str> {
        match parameter {
            "policy" => Some("full, or inf_mllm if a budget is given"),
            "budget" => Some("room for prompt and answer, or 512 if a policy is given"),
            _ => None,
        }
    }
}

/// Those that say how much memory a model takes.
pub struct Inspected;

impl Selection for Inspected {
    fn takes(parameter: &Parameter) -> bool {
        OF_THE_MODEL.contains(&parameter.name)
            || [
                "budget",
                "kv_storage",
                "frames_per_group",
                "frame_min_pixels",
                "frame_max_pixels",
            ]
            .contains(&parameter.name)
    }
}

/// Those of a comparison of numbers, in f32 unless something else is asked for.
pub struct Compared;

impl Selection for Compared {
    fn takes(parameter: &Parameter) -> bool {
        OF_THE_MODEL.contains(&parameter.name)
    }

    fn defaults() -> SessionConfig {
        SessionConfig {
            dtype: Precision::F32,
            ..SessionConfig::default()
        }
    }
}

/// Those of an evaluation, in f32 unless something else is asked for; its policies have theirs in `--policies`.
pub struct Measured;

impl Selection for Measured {
    fn takes(parameter: &Parameter) -> bool {
        ["model_file", "projector_file", "device", "dtype", "threads"].contains(&parameter.name)
    }

    fn defaults() -> SessionConfig {
        Compared::defaults()
    }
}

/// Those of a measurement of speed: the cache's, and what runs the model but for the kind of its weights.
pub struct Benched;

impl Selection for Benched {
    fn takes(parameter: &Parameter) -> bool {
        ["device", "dtype", "threads"].contains(&parameter.name)
            || CacheConfig::find(parameter.name).is_ok()
    }

    fn defaults() -> SessionConfig {
        let cache = CacheConfig {
            budget: 2048,
            ..CacheConfig::default()
        };
        SessionConfig {
            cache,
            ..SessionConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_an_option_of_the_replay_with_its_range_and_default() {
        let mut command = <Given<Replayed> as clap::Args>::augment_args(Command::new("replay"));
        let help = command.render_long_help().to_string();
        for parameter in SessionConfig::list().iter().filter(|p| Replayed::takes(p)) {
            let option = format!("--{}", parameter.name.replace('_', "-"));
            assert!(help.contains(&option), "{option}");
            assert!(help.contains(&parameter.kind.to_string()), "{option}");
            assert!(
                help.contains(&format!("default: {}", parameter.default)),
                "{option}"
            );
        }
    }
}
