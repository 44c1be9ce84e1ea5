//! `inf_mllm eval recall`: facts planted in a text and asked for after some distance, or in one long conversation.

mod chat;
mod table;

use std::path::PathBuf;

use anyhow::{bail, ensure, Result};
use inf_mllm::cache::PolicyKind;
use inf_mllm::eval::facts::{Fact, Timeline, Values, Wording};
use inf_mllm::eval::model::EvalModel;
use inf_mllm::eval::recall::{recall, Answer, RecallOptions};
use inf_mllm::eval::text::Text;
use inf_mllm::eval::variant::{describe, Recalling};
use serde_json::json;

use super::common::{label_recalling, Bench, Common, Variants};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Text file that the facts are planted in, UTF-8.
    #[arg(long)]
    text: PathBuf,
    #[command(flatten)]
    variants: Variants,
    /// Facts, each of them asked for at every distance; in a conversation the number of rounds.
    #[arg(long, default_value_t = 120)]
    facts: usize,
    /// Tokens from one fact to the next.
    #[arg(long, default_value_t = 300)]
    spacing: usize,
    /// Tokens between a fact and the question for it.
    #[arg(long, num_args = 1.., default_values_t = [50, 200, 500, 1000, 2000, 4000])]
    distances: Vec<usize>,
    /// Tokens per forward pass.
    #[arg(long, default_value_t = 64)]
    chunk: usize,
    /// How a fact is told; {key} and {value} stand for its parts.
    #[arg(long, default_value = "\n[{key}: {value}]\n")]
    statement: String,
    /// How it is asked for, up to where the value begins.
    #[arg(long, default_value = "\n[{key}:")]
    question: String,
    /// Values: words, or the number of digits of a number.
    #[arg(long, default_value = "words", value_parser = values)]
    values: Values,
    /// An example of what is to be kept, given beforehand to policies that know of one; it is no part of the stream.
    #[arg(long)]
    standing: Option<String>,
    /// One chat in which every round tells a fact and asks for an earlier one, instead of questions that are put back.
    #[arg(long)]
    conversation: bool,
    /// Conversation: text of the system turn.
    #[arg(
        long,
        default_value = "You are a helpful assistant who remembers every note."
    )]
    system: String,
    /// Conversation: what the user says to get a fact; the answer then begins with the question.
    #[arg(long, default_value = "\nWhat is the word of the {key}?")]
    request: String,
    /// Conversation: tokens of the text that each round begins with.
    #[arg(long, default_value_t = 200)]
    filler: usize,
    /// Conversation: how many rounds ago the asked fact was told, by turns.
    #[arg(long, num_args = 1.., default_values_t = [1, 0, 2, 5, 17])]
    lags: Vec<usize>,
}

fn values(text: &str) -> Result<Values, String> {
    match (text, text.parse()) {
        ("words", _) => Ok(Values::Words),
        (_, Ok(digits @ 1..=9)) => Ok(Values::Digits(digits)),
        _ => Err("expected words, or 1 to 9 digits".to_string()),
    }
}

impl Args {
    fn wording(&self) -> Wording {
        Wording {
            statement: self.statement.replace("\\n", "\n"),
            question: self.question.replace("\\n", "\n"),
            request: self.request.replace("\\n", "\n"),
            values: self.values,
        }
    }

    fn facts(&self, model: &EvalModel) -> Result<Vec<Fact>> {
        let count = if self.common.quick { 6 } else { self.facts };
        let wording = self.wording();
        Ok((0..count)
            .map(|i| Fact::new(i, &wording, model))
            .collect::<Result<_, _>>()?)
    }
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        !args.distances.is_empty(),
        "no distances, expected at least one"
    );
    let mut bench = Bench::open(&args.common)?;
    let facts = args.facts(&bench.model)?;
    if args.conversation {
        return chat::run(args, &mut bench, &facts);
    }
    let longest = args.distances.iter().copied().max().unwrap_or(0);
    let needed = facts.len() * args.spacing + longest;
    let text = Text::load(&args.text, needed, &bench.model)?;
    let standing = match &args.standing {
        Some(instruction) => bench.model.encode(instruction)?,
        None => Vec::new(),
    };
    let mut rows = Vec::new();
    for variant in args.variants.recalling(bench.model.context())? {
        let mut parameters = json!({
            "cache": describe(&variant.cache), "chunk": args.chunk, "facts": facts.len(), "spacing": args.spacing,
            "distances": args.distances, "statement": args.wording().statement, "question": args.wording().question,
            "values": format!("{:?}", args.values), "standing": args.standing,
        });
        if variant.archive.is_some() {
            parameters["archive"] = variant.describe_archive();
        }
        let key = bench.key("recall", &text, &text.ids, parameters);
        let budget = variant.cache.budget;
        let what = format!("{} at {budget}", label_recalling(&variant));
        let answers = bench.cell(&key, what, |bench| {
            cell(args, bench, &facts, &text, &variant, &standing)
        })?;
        rows.push(table::Row {
            policy: label_recalling(&variant),
            budget,
            answers,
        });
    }
    bench.bar.finish_and_clear();
    table::print(&rows, &args.distances);
    Ok(())
}

/// All questions under one policy: on one stream, or under full attention on streams that its cache can hold.
fn cell(
    args: &Args,
    bench: &Bench,
    facts: &[Fact],
    text: &Text,
    variant: &Recalling,
    standing: &[u32],
) -> Result<Vec<Answer>> {
    let config = &variant.cache;
    let longest = args.distances.iter().copied().max().unwrap_or(0);
    let question = facts.iter().map(|fact| fact.question.len()).max();
    let reserved = longest + question.unwrap_or(0);
    let per_stream = match config.policy {
        PolicyKind::Full => config.budget.saturating_sub(reserved) / args.spacing,
        _ => facts.len(),
    };
    if per_stream == 0 {
        bail!(
            "full attention over {} slots has no room for a fact, {longest} tokens and a question",
            config.budget
        );
    }
    let options = RecallOptions {
        chunk: args.chunk,
        standing,
        archive: variant.archive.as_ref(),
    };
    let mut timelines = Vec::new();
    for (i, facts) in facts.chunks(per_stream).enumerate() {
        let filler = text.ids.iter().skip(i * per_stream * args.spacing);
        let filler = filler.chain(&text.ids).copied().collect::<Vec<_>>();
        let timeline = Timeline::new(facts.to_vec(), &filler, args.spacing, &args.distances)?;
        bench.bar.inc_length(timeline.ids.len() as u64);
        timelines.push(timeline);
    }
    let mut answers = Vec::new();
    for (i, timeline) in timelines.iter().enumerate() {
        answers.extend(bench.measure(|model, progress| {
            recall(model, timeline, config, i * per_stream, &options, &progress)
        })?);
    }
    Ok(answers)
}
