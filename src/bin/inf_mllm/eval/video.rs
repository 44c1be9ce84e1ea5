//! `inf_mllm eval video`: questions about long drives, by policy and by how long ago the answer was in view.

mod table;

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::fingerprint::Fingerprint;
use inf_mllm::eval::variant::{Input, Recalling};
use inf_mllm::eval::video::drive::{black, usual_script, Drive};
use inf_mllm::eval::video::lane::{run as drive_through, LaneResult, Shown};
use inf_mllm::eval::video::report::{Lane, Report};
use inf_mllm::stream::archive::ArchiveConfig;
use inf_mllm::stream::session::EncodedFrame;
use inf_mllm::stream::{Session, SessionConfig};
use serde_json::{json, Value};

use super::common::{label_recalling, Bench, Common};

/// An archive that holds every frame, bytes.
const EVERYTHING: usize = 1 << 44;

/// Questions of each bag with `--quick`.
const QUICK: usize = 12;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Bags of drives: folders, or one file of them.
    #[arg(long, num_args = 1.., required = true)]
    bag: Vec<PathBuf>,
    /// Their instructions, one file for each bag; instructions.yaml in the bag's folder if not given.
    #[arg(long, num_args = 1..)]
    instructions: Vec<PathBuf>,
    /// Policies, each with its parameters if they are not the defaults: inf_mllm or last_frames:last_frames=8; with an archive beside the
    /// cache inf_mllm+recall or inf_mllm+recall:recall_units=4,bias=0.
    #[arg(long, num_args = 1.., default_values = [
        "last_frames", "streaming_llm", "h2o", "tova", "snapkv", "inf_mllm", "inf_mllm_plus",
        "streaming_llm+recall", "h2o+recall", "tova+recall", "snapkv+recall", "inf_mllm+recall", "inf_mllm_plus+recall",
    ])]
    policies: Vec<String>,
    /// Slots per layer, tokens.
    #[arg(long, default_value_t = 512)]
    budget: usize,
    /// Also the floor: black images in place of all frames.
    #[arg(long)]
    floor: bool,
    /// Also the oracle: for each question the frames that show its answer are recalled, from an archive that holds them all.
    #[arg(long)]
    oracle: bool,
    /// The policy of floor and oracle, with its parameters.
    #[arg(long, default_value = "inf_mllm")]
    reference: String,
    /// Only so many of each bag's questions, the first ones, and the frames up to the last of them; 0: all.
    #[arg(long, default_value_t = 0)]
    limit: usize,
}

/// The model under test, which every lane loads anew.
struct Model {
    name: String,
    weights: Fingerprint,
    config: SessionConfig,
}

/// A lane to be measured.
struct Entrant {
    name: String,
    shown: Shown,
    variant: Recalling,
}

pub fn run(args: &Args) -> Result<()> {
    let entrants = args.entrants()?;
    let config = SessionConfig {
        model_dir: args.common.model.clone(),
        ..args.common.config()?
    };
    for entrant in &entrants {
        entrant.config(&config)?;
    }
    let drives = args.drives()?;
    let shown = drives.iter().map(|drive| match args.oracle {
        true => Ok(Some(drive.shown()?)),
        false => Ok(None),
    });
    let shown = shown.collect::<Result<Vec<_>>>()?;
    let model = Model {
        name: args.common.model_name(&config),
        weights: Fingerprint::of_model(config.checkpoint()?.dir())?,
        config,
    };
    let mut bench = Bench::of(model, &args.common)?;
    let mut lanes = Vec::new();
    for entrant in &entrants {
        let mut lane = Lane::new(entrant.name.clone(), entrant.shown);
        lane.without_recall = entrant.without_recall(&entrants);
        lanes.push(lane);
    }
    for (drive, shown) in drives.iter().zip(&shown) {
        let results = measure(&mut bench, drive, shown.as_deref(), &entrants)?;
        for (lane, result) in lanes.iter_mut().zip(results) {
            lane.add(&drive.name, &result.answers);
        }
    }
    bench.bar.finish_and_clear();
    let report = Report::of(&lanes);
    let summary = args.common.out.with_extension("summary.json");
    let about = json!({
        "model": bench.model.name,
        "weights": bench.model.weights.to_string(),
        "budget": args.budget,
        "bags": drives.iter().map(|drive| &drive.name).collect::<Vec<_>>(),
        "report": report,
    });
    write(&summary, &about)?;
    crate::print(&table::markdown(&report))?;
    println!("\n{}, {}", args.common.out.display(), summary.display());
    Ok(())
}

impl Args {
    /// Floor and oracle, then the policies.
    fn entrants(&self) -> Result<Vec<Entrant>> {
        let mut entrants = Vec::new();
        let references = [
            (self.floor, "floor", Shown::Black),
            (self.oracle, "oracle", Shown::Oracle),
        ];
        for (wanted, name, shown) in references {
            if !wanted {
                continue;
            }
            let variant = self.variant(&self.reference)?;
            ensure!(
                variant.archive.is_none(),
                "reference is {}, expected a policy without recall",
                self.reference
            );
            ensure!(
                variant.cache.policy != PolicyKind::LastFrames,
                "reference is {}, expected a policy with a memory: last_frames has none that frames could be fed into",
                self.reference
            );
            entrants.push(Entrant {
                name: name.to_string(),
                shown,
                variant,
            });
        }
        for policy in &self.policies {
            let variant = self.variant(policy)?;
            let name = label_recalling(&variant);
            ensure!(
                entrants.iter().all(|other| other.name != name),
                "policy {policy} is given twice, expected each once"
            );
            entrants.push(Entrant {
                name,
                shown: Shown::Drive,
                variant,
            });
        }
        Ok(entrants)
    }

    fn variant(&self, line: &str) -> Result<Recalling> {
        let base = CacheConfig {
            budget: self.budget,
            ..CacheConfig::default()
        };
        let variant = Recalling::parse_for(Input::Frames, line, &base)?;
        ensure!(
            variant.cache.policy != PolicyKind::Full,
            "policy is {line}, expected one that evicts: a drive is longer than any budget"
        );
        Ok(variant)
    }

    fn drives(&self) -> Result<Vec<Drive>> {
        let scripts = match self.instructions.as_slice() {
            [] => self.bag.iter().map(|bag| usual_script(bag)).collect(),
            given => given.to_vec(),
        };
        ensure!(
            scripts.len() == self.bag.len(),
            "{} files of instructions, expected one for each of the {} bags",
            scripts.len(),
            self.bag.len()
        );
        let limit = match (self.limit, self.common.quick) {
            (0, false) => None,
            (0, true) => Some(QUICK),
            (limit, _) => Some(limit),
        };
        let mut drives: Vec<Drive> = Vec::new();
        for (bag, script) in self.bag.iter().zip(&scripts) {
            let drive = Drive::open(bag, script, limit)?;
            if drives.iter().any(|other| other.name == drive.name) {
                bail!(
                    "two bags are named {}, expected different names",
                    drive.name
                );
            }
            drives.push(drive);
        }
        Ok(drives)
    }
}

impl Entrant {
    /// The parameters of the session that the lane runs in.
    fn config(&self, base: &SessionConfig) -> Result<SessionConfig> {
        ensure!(
            self.variant.archive.is_none() || self.variant.cache.policy != PolicyKind::LastFrames,
            "policy is {}, expected one with a memory: last_frames has none that anything could be recalled into",
            self.name
        );
        let archive = match (self.shown, &self.variant.archive) {
            (Shown::Oracle, _) => ArchiveConfig {
                archive_bytes: EVERYTHING,
                nothing_new: 1.0,
                ..ArchiveConfig::default()
            },
            (_, Some(archive)) => archive.clone(),
            (_, None) => ArchiveConfig {
                archive_bytes: 0,
                ..ArchiveConfig::default()
            },
        };
        let config = SessionConfig {
            cache: self.variant.cache.clone(),
            archive,
            ..base.clone()
        };
        config.check()?;
        Ok(config)
    }

    fn session(&self, model: &Model, drive: &Drive) -> Result<Session> {
        let mut config = self.config(&model.config)?;
        if let Some(system_prompt) = &drive.system_prompt {
            config.system_prompt.clone_from(system_prompt);
        }
        Ok(Session::new(config)?)
    }

    /// The lane with the same policy and no recall.
    fn without_recall(&self, entrants: &[Self]) -> Option<String> {
        self.variant.archive.as_ref()?;
        let same = |other: &&Self| {
            other.shown == Shown::Drive
                && other.variant.archive.is_none()
                && other.variant.describe() == self.variant.describe()
        };
        entrants.iter().find(same).map(|other| other.name.clone())
    }

    fn key(&self, model: &Model, drive: &Drive) -> Value {
        let mut parameters = json!({ "frames": self.shown, "cache": self.variant.describe() });
        if self.variant.archive.is_some() {
            parameters["archive"] = self.variant.describe_archive();
        }
        json!({
            "eval": "video",
            "model": model.name,
            "weights": model.weights.to_string(),
            "dtype": model.config.dtype.name(),
            "bag": drive.name,
            "content": drive.fingerprint,
            "questions": drive.questions.len(),
            "parameters": parameters,
        })
    }
}

/// What every lane makes of one drive; measures what is missing.
fn measure(
    bench: &mut Bench<Model>,
    drive: &Drive,
    shown: Option<&[Vec<usize>]>,
    entrants: &[Entrant],
) -> Result<Vec<LaneResult>> {
    let mut results = Vec::new();
    for entrant in entrants {
        results.push(bench.find::<LaneResult>(&entrant.key(&bench.model, drive))?);
    }
    let missing = results.iter().filter(|result| result.is_none()).count();
    if missing > 0 {
        bench
            .bar
            .inc_length(((missing + 1) * drive.frames()) as u64);
        let frames = encode(bench, drive, &entrants[0])?;
        for (entrant, result) in entrants.iter().zip(&mut results) {
            if result.is_none() {
                *result = Some(lane(bench, drive, &frames, shown, entrant)?);
            }
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// The drive's frames through the vision tower.
fn encode(bench: &mut Bench<Model>, drive: &Drive, any: &Entrant) -> Result<Vec<EncodedFrame>> {
    bench.begin(format!("{}: vision tower", drive.name));
    let session = any.session(&bench.model, drive)?;
    let bar = &bench.bar;
    Ok(session.pool().install(|| {
        let progress = |done: usize| bar.inc(done as u64);
        drive.encode(&session, &progress)
    })?)
}

fn lane(
    bench: &mut Bench<Model>,
    drive: &Drive,
    frames: &[EncodedFrame],
    shown: Option<&[Vec<usize>]>,
    entrant: &Entrant,
) -> Result<LaneResult> {
    bench.begin(format!("{}: {}", drive.name, entrant.name));
    let mut session = entrant.session(&bench.model, drive)?;
    let bar = &bench.bar;
    let pool = session.pool();
    let result = pool.install(|| {
        let progress = |done: usize| bar.inc(done as u64);
        match entrant.shown {
            Shown::Black => {
                let frames = black(frames, &session)?;
                drive_through(&mut session, drive, &frames, None, &progress)
            }
            Shown::Oracle => drive_through(&mut session, drive, frames, shown, &progress),
            Shown::Drive => drive_through(&mut session, drive, frames, None, &progress),
        }
    });
    let result = result.with_context(|| format!("{}: {}", drive.name, entrant.name))?;
    bench.add(&entrant.key(&bench.model, drive), &result)?;
    Ok(result)
}

fn write(file: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
