//! What the measuring commands share: the model, the results' file, the progress bar, the policies to go through.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::model::EvalModel;
use inf_mllm::eval::speed::device::processor;
use inf_mllm::eval::store::Store;
use inf_mllm::eval::text::{fingerprint, Text};
use inf_mllm::eval::variant::{self, Recalling};
use inf_mllm::eval::EvalError;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::archive::ArchiveConfig;
use inf_mllm::stream::SessionConfig;
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{json, Value};

use crate::args::{Given, Measured};

#[derive(clap::Args)]
pub struct Common {
    /// Model: a .gguf file, a folder with one, a model directory, or a name on the hub (ORG/NAME) that is in the local cache.
    #[arg(long)]
    pub model: PathBuf,
    /// Results, JSON lines. Cells that are in it already are not measured again.
    #[arg(long)]
    pub out: PathBuf,
    /// A small part of everything, to see that it runs.
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    given: Given<Measured>,
}

impl Common {
    /// The parameters that were given, over the defaults of an evaluation.
    pub fn config(&self) -> Result<SessionConfig> {
        Ok(self.given.config()?)
    }

    /// What results are kept under: the folder's name, and that of the file if one was chosen in it.
    pub fn model_name(&self, config: &SessionConfig) -> String {
        let name = self.model.file_name().unwrap_or(self.model.as_os_str());
        let name = name.to_string_lossy();
        match config.model_file.as_str() {
            "" => name.into_owned(),
            file => format!("{name}/{file}"),
        }
    }
}

/// Policies and budgets to go through.
#[derive(clap::Args)]
pub struct Variants {
    /// Policies, each with its parameters if they are not the defaults: inf_mllm or inf_mllm:bias=0,scope=kv_head; for recall also
    /// inf_mllm+recall or inf_mllm+recall:recall_units=4,bias=0.
    #[arg(long, num_args = 1.., default_values_t = every_policy())]
    pub policies: Vec<String>,
    /// Slots per layer, tokens.
    #[arg(long, num_args = 1.., default_values_t = [512])]
    pub budgets: Vec<usize>,
}

fn every_policy() -> Vec<String> {
    // On text, last_frames is window.
    let on_text = |kind: &PolicyKind| *kind != PolicyKind::LastFrames;
    let kinds = PolicyKind::ALL.into_iter().filter(on_text);
    kinds.map(|kind| kind.name().to_string()).collect()
}

impl Variants {
    /// Every policy with every budget; full attention once, with all of `longest` tokens.
    pub fn configs(&self, longest: usize) -> Result<Vec<CacheConfig>> {
        self.each(longest, variant::parse, |config| config)
    }

    /// The same of policies that may have an archive beside them.
    pub fn recalling(&self, longest: usize) -> Result<Vec<Recalling>> {
        self.each(longest, Recalling::parse, |variant| &mut variant.cache)
    }

    fn each<T>(
        &self,
        longest: usize,
        parse: impl Fn(&str, &CacheConfig) -> Result<T, EvalError>,
        cache: impl Fn(&mut T) -> &mut CacheConfig,
    ) -> Result<Vec<T>> {
        let mut variants = Vec::new();
        for (i, &budget) in self.budgets.iter().enumerate() {
            for line in &self.policies {
                let base = CacheConfig {
                    budget,
                    ..CacheConfig::default()
                };
                let mut variant = parse(line, &base)?;
                let config = cache(&mut variant);
                if config.policy == PolicyKind::Full {
                    if i > 0 {
                        continue;
                    }
                    config.budget = longest;
                }
                variants.push(variant);
            }
        }
        Ok(variants)
    }
}

/// What is measured, the results so far, and the bar.
pub struct Bench<M = EvalModel> {
    pub model: M,
    pub bar: ProgressBar,
    store: Store,
    started: Instant,
}

impl Bench {
    pub fn open(common: &Common) -> Result<Self> {
        let config = common.config()?;
        let device = config.device.open()?;
        let model = EvalModel::of(
            common.model_name(&config),
            &config.checkpoint_in(&common.model)?,
            Quantization::None,
            config.dtype,
            &device,
            config.threads,
        )?;
        Self::of(model, common)
    }

    /// A cell's key: what is measured on what, and the parameters of it.
    pub fn key(&self, eval: &str, text: &Text, ids: &[u32], parameters: Value) -> Value {
        json!({
            "eval": eval,
            "model": self.model.name,
            "dtype": format!("{:?}", self.model.dtype()),
            "text": text.name,
            "ids": fingerprint(ids),
            "tokens": ids.len(),
            "parameters": parameters,
        })
    }

    /// Runs `work`, which may say how far it is, in the model's threads.
    pub fn measure<T: Send>(
        &self,
        work: impl FnOnce(&EvalModel, &(dyn Fn(usize) + Sync)) -> T + Send,
    ) -> T {
        let bar = &self.bar;
        let model = &self.model;
        model.install(|| work(model, &|done| bar.inc(done as u64)))
    }
}

impl<M> Bench<M> {
    /// A bench for `model` with the results that are there.
    pub fn of(model: M, common: &Common) -> Result<Self> {
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec}, {eta} left  {msg}")
                .context("progress bar")?,
        );
        bar.enable_steady_tick(Duration::from_secs(1));
        Ok(Self {
            store: Store::open(&common.out)?,
            started: Instant::now(),
            model,
            bar,
        })
    }

    pub fn find<T: DeserializeOwned>(&self, key: &Value) -> Result<Option<T>> {
        Ok(self.store.find(key)?)
    }

    /// The cell of that key: from the results, or else measured and added to them. `what` is shown beside the bar.
    pub fn cell<T: DeserializeOwned + Serialize>(
        &mut self,
        key: &Value,
        what: String,
        measure: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        if let Some(result) = self.find(key)? {
            return Ok(result);
        }
        self.begin(what);
        let result = measure(self)?;
        self.add(key, &result)?;
        Ok(result)
    }

    /// Says what the bar shows next.
    pub fn begin(&mut self, what: String) {
        self.bar.set_message(what);
        self.started = Instant::now();
    }

    /// Writes a finished cell.
    pub fn add(&mut self, key: &Value, result: &impl Serialize) -> Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let about = json!({
            "machine": machine(),
            "unix_time": since.map_or(0, |since| since.as_secs()),
            "seconds": self.started.elapsed().as_secs_f64(),
        });
        Ok(self.store.add(key, result, &about)?)
    }
}

/// The processor and the number of its cores that may be used.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    format!("{}, {cores} cores", processor())
}

/// A policy in a table: its name, and what differs from the defaults.
pub fn label(config: &CacheConfig) -> String {
    named(config.policy.name(), changed(config))
}

/// The same of a policy that may have an archive beside it.
pub fn label_recalling(variant: &Recalling) -> String {
    let default = Recalling {
        cache: CacheConfig {
            policy: variant.cache.policy,
            budget: variant.cache.budget,
            ..CacheConfig::default()
        },
        archive: variant.archive.as_ref().map(|_| ArchiveConfig::default()),
        input: variant.input,
    };
    let recall = match variant.archive {
        Some(_) => "+recall",
        None => "",
    };
    let own = differing(&variant.describe_archive(), &default.describe_archive());
    let changed = differing(&variant.describe(), &default.describe());
    let settings = own.into_iter().chain(changed).collect();
    named(
        &format!("{}{recall}", variant.cache.policy.name()),
        settings,
    )
}

fn named(name: &str, settings: Vec<String>) -> String {
    match settings.is_empty() {
        true => name.to_string(),
        false => format!("{name}:{}", settings.join(",")),
    }
}

/// What of a policy's parameters differs from the defaults.
fn changed(config: &CacheConfig) -> Vec<String> {
    let default = variant::describe(&CacheConfig {
        policy: config.policy,
        budget: config.budget,
        ..CacheConfig::default()
    });
    differing(&variant::describe(config), &default)
}

/// The fields of `own` that are not as in `default`, as `name=value`.
fn differing(own: &Value, default: &Value) -> Vec<String> {
    let fields = own.as_object().into_iter().flatten();
    let changed = fields.filter(|(name, value)| default[name.as_str()] != **value);
    changed
        .map(|(name, value)| format!("{name}={}", value.to_string().trim_matches('"')))
        .collect()
}
