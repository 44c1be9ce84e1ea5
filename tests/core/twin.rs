//! A session that is asked a thousand things which leave no trace, beside a twin that is not.

use std::cell::Cell;

use inf_mllm::cache::{BoundedCache, PolicyKind};
use inf_mllm::stream::{FinishReason, GrammarKind, Instruction, Session, TextGrammar};

use crate::cache_stream::flat;
use crate::failures::{seen, show};
use crate::recall::{archived, config};
use crate::support::instruction;

const ASKED: usize = 1000;
/// Between two frames.
const ROUND: usize = 25;

/// Keys, values, ranks, histories of attention and the queries' ring of every layer, to the bit.
fn contents(cache: &BoundedCache) -> Vec<(Vec<u32>, Vec<Vec<u32>>, usize)> {
    let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
    let layers = cache.step_layers().map(|layer| {
        let stored =
            [layer.keys, layer.values].map(|buffer| flat(&buffer.first(layer.len).unwrap()));
        let mut numbers = stored.concat();
        let budget = cache.plan().budget;
        let history = layer.history.chunks(budget);
        numbers.extend(history.flat_map(|history| &history[..layer.len]));
        let ranks = layer.ranks.iter().map(|ranks| ranks[..layer.len].to_vec());
        (bits(&numbers), ranks.collect(), layer.cursor)
    });
    layers.collect()
}

/// What is asked in turn: a question, choices, answers of a grammar, what is refused, and every so often one that is cut off.
fn ask(session: &mut Session, i: usize) -> FinishReason {
    let text = [
        "What is in view?",
        "Where is it?",
        "Is the way free, or is something in front of it?",
    ][i % 3];
    let mut asked = Instruction {
        ephemeral: true,
        max_new_tokens: 1 + i % 7,
        ..instruction("t", text)
    };
    match i % 5 {
        0 => {}
        1 => asked.choices = ["yes", "yes it is", "no"].map(String::from).to_vec(),
        2 => {
            asked.grammar = Some(TextGrammar {
                kind: GrammarKind::Regex,
                text: "(left|right) [0-9]{1,2}".to_string(),
            });
        }
        3 => asked.choices = (0..1 + i % 9).map(|n| format!("{n} boxes")).collect(),
        _ => {
            asked.ephemeral = false;
            asked.choices = vec!["same".to_string(); 2];
        }
    }
    let left = Cell::new(match i % 4 {
        0 => i % 6,
        _ => usize::MAX,
    });
    let cancelled = || {
        let now = left.get();
        left.set(now.saturating_sub(1));
        now == 0
    };
    session.ask(&asked, &cancelled, &mut |_| ()).finish
}

#[test]
fn a_thousand_things_asked_without_a_trace_leave_a_session_its_twin_s() {
    for policy in [
        PolicyKind::InfMllm,
        PolicyKind::InfMllmPlus,
        PolicyKind::H2o,
    ] {
        let mut config = config(policy);
        config.temperature = 2.0;
        let [mut asked, mut twin] = [0; 2].map(|_| Session::new(config.clone()).unwrap());
        let mut finished = Vec::new();
        for i in 0..ASKED / 3 {
            if i % ROUND == 0 {
                for session in [&mut asked, &mut twin] {
                    show(session, (i / ROUND) as i64 * 4, 4);
                }
            }
            finished.push(ask(&mut asked, i));
            if i % ROUND == ROUND - 1 {
                let [changed, kept] =
                    [&asked, &twin].map(|session| contents(&session.state().cache));
                assert!(changed == kept, "{policy}, {i}");
                assert_eq!(archived(&asked), archived(&twin));
                assert_eq!(
                    format!("{:?}", seen(&mut asked)),
                    format!("{:?}", seen(&mut twin))
                );
                // One that stays, so that the draws behind it are others.
                let staying = instruction("s", "And now?");
                let [said, twins] = [&mut asked, &mut twin]
                    .map(|session| session.ask(&staying, &|| false, &mut |_| ()).token_ids);
                assert_eq!(said, twins, "{policy}, {i}");
            }
        }
        for finish in [
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Cancelled,
            FinishReason::Error,
        ] {
            let count = finished.iter().filter(|&&other| other == finish).count();
            assert!(count > 10, "{policy}: {count} ended by {}", finish.name());
        }
    }
}
