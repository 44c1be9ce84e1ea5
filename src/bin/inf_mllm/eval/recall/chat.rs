//! The conversation: every round tells a fact and asks for an earlier one, and all of it stays in the stream.

use anyhow::Result;
use inf_mllm::cache::PolicyKind;
use inf_mllm::eval::conversation::{conversation, ConversationOptions, Round};
use inf_mllm::eval::facts::Fact;
use inf_mllm::eval::stats::Share;
use inf_mllm::eval::text::Text;
use inf_mllm::eval::variant::describe;
use serde_json::json;

use super::Args;
use crate::eval::common::{label, Bench};

pub fn run(args: &Args, bench: &mut Bench, facts: &[Fact]) -> Result<()> {
    let text = Text::load(&args.text, facts.len() * args.filler.max(1), &bench.model)?;
    let options = ConversationOptions {
        system: args.system.clone(),
        filler: args.filler,
        lags: args.lags.clone(),
        chunk: args.chunk,
        standing: args.standing.clone().unwrap_or_default(),
    };
    let mut rows = Vec::new();
    for config in args.variants.configs(bench.model.context())? {
        // Full attention holds as many rounds as its cache does: a third of the tokens is left to what is not filler.
        let facts = match config.policy {
            PolicyKind::Full => &facts[..facts.len().min(config.budget / (args.filler + 100))],
            _ => facts,
        };
        let parameters = json!({
            "cache": describe(&config), "chunk": args.chunk, "rounds": facts.len(), "filler": args.filler,
            "lags": args.lags, "statement": args.wording().statement, "question": args.wording().question,
            "request": args.wording().request,
            "values": format!("{:?}", args.values), "system": options.system, "standing": options.standing,
        });
        let key = bench.key("conversation", &text, &text.ids, parameters);
        let what = format!("{} at {}, rounds", label(&config), config.budget);
        let rounds = bench.cell(&key, what, |bench| {
            bench.bar.inc_length(facts.len() as u64);
            let rounds = bench.measure(|model, progress| {
                conversation(model, facts, &text.ids, &config, &options, &progress)
            });
            Ok(rounds?)
        })?;
        rows.push((label(&config), config.budget, rounds));
    }
    bench.bar.finish_and_clear();
    print(&rows, &args.lags);
    Ok(())
}

fn print(rows: &[(String, usize, Vec<Round>)], lags: &[usize]) {
    print!(
        "{:<40} {:>6} {:>6}",
        "% right [95 %], by rounds since", "budget", "asked"
    );
    lags.iter().for_each(|lag| print!(" {lag:>17}"));
    println!(" {:>17} {:>17}", "first third", "last third");
    for (policy, budget, rounds) in rows {
        let share = |keep: &dyn Fn(&Round) -> bool| {
            let there = rounds.iter().filter(|round| keep(round));
            let there = there.map(|round| round.right).collect::<Vec<_>>();
            let right = there.iter().filter(|&&right| right).count();
            Share::wilson(right, there.len())
        };
        print!("{policy:<40} {budget:>6} {:>6}", rounds.len());
        for lag in lags {
            print!(" {:>17}", share(&|round| round.lag == *lag));
        }
        let third = |part: usize| {
            rounds
                .get(rounds.len() * part / 3)
                .map_or(0, |round| round.round)
        };
        let (second, last) = (third(1), third(2));
        println!(
            " {:>17} {:>17}",
            share(&|round| round.round < second),
            share(&|round| round.round >= last)
        );
    }
}
