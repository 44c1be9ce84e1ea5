//! Turns of the conversation that have left the cache, found and fed again for an instruction: what must hold whatever was said.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use inf_mllm::cache::{LayerSlots, PolicyKind, Token};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::{Block, Layer};
use inf_mllm::model::threads::thread_pool;
use inf_mllm::stream::archive::{Content, Entry, Kind, Turn};
use inf_mllm::stream::{
    Answer, FinishReason, Instruction, Recall, RecallMode, Session, SessionConfig,
};
use proptest::prelude::*;

use crate::failures::show;
use crate::recall::{config, no_trace, remembering, within};
use crate::support::{demo_dir, deviation, instruction, load};

/// Short, so that the smallest turn has room for them.
const TOLD: &str = "A red box at 7.";
const QUESTION: &str = "Is the red box at 7?";
const FACTS: [&str; 5] = [TOLD, "No lamp.", "Is it left?", "Go right.", "A blue ball."];

fn say(session: &mut Session, text: &str, recall: Recall, ephemeral: bool) -> Answer {
    let said = Instruction {
        ephemeral,
        recall,
        max_new_tokens: 4,
        ..instruction("s", text)
    };
    let answer = session.ask(&said, &|| false, &mut |_| ());
    assert!(answer.error.is_none(), "{:?}", answer.error);
    answer
}

fn tell(session: &mut Session, text: &str) -> Answer {
    let never = Recall {
        mode: Some(RecallMode::Never),
        ..Recall::default()
    };
    say(session, text, never, false)
}

fn ask(session: &mut Session, mode: RecallMode) -> Answer {
    let recall = Recall {
        mode: Some(mode),
        ..Recall::default()
    };
    say(session, QUESTION, recall, true)
}

/// The turns of an archive, with their places.
fn turns(session: &Session) -> Vec<(Turn, Entry)> {
    let entries = session.archive().entries().iter();
    let turns = entries.filter_map(|entry| match &entry.unit.content {
        Content::Turn(turn) => Some((turn.clone(), entry.clone())),
        _ => None,
    });
    turns.collect()
}

fn recalled_turns(answer: &Answer) -> Vec<i64> {
    let turns = answer.recalled.iter();
    let turns = turns.filter(|unit| unit.kind == Kind::Text);
    turns.map(|unit| unit.stamp_ns / 1_000_000).collect()
}

/// A session that was told something of which the cache holds nothing any more, at 0.4 s, and has seen 60 frames.
fn told(config: &SessionConfig) -> Session {
    let mut session = Session::new(config.clone()).unwrap();
    show(&mut session, 0, 5);
    tell(&mut session, TOLD);
    show(&mut session, 5, 55);
    let (_, entry) = &turns(&session)[0];
    assert!(session.state().cache.retained().share(entry.extent.clone()) < 0.5);
    session
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_ephemeral_question_that_recalls_turns_leaves_no_trace(
        policy in prop::sample::select(remembering()),
        budget in 256usize..360,
        rounds in prop::collection::vec((4i64..14, 0usize..5), 1..5),
        units in 0usize..9,
        newest in any::<bool>(),
        withdraw_layer in 0usize..2,
        temperature in prop::sample::select(vec![0.0, 2.0]),
    ) {
        let mut config = config(policy);
        config.cache.budget = budget;
        config.cache.withdraw_layer = withdraw_layer;
        config.archive.recall_units = units;
        config.archive.recall_newest = newest;
        config.temperature = temperature;
        let mut sessions = [0; 2].map(|_| Session::new(config.clone()).unwrap());
        let mut at = 0;
        for (frames, fact) in rounds {
            for session in &mut sessions {
                show(session, at, frames);
                tell(session, FACTS[fact]);
            }
            at += frames;
            let answer = say(&mut sessions[0], QUESTION, Recall::default(), true);
            no_trace(&answer, units, &mut sessions)?;
        }
    }

    #[test]
    fn no_recalled_turn_is_still_in_the_cache_and_one_that_stays_is_archived_where_it_stands(
        policy in prop::sample::select(remembering()),
        rounds in prop::collection::vec((4i64..20, 0usize..5), 2..6),
    ) {
        let mut session = Session::new(config(policy)).unwrap();
        let mut at = 0;
        for (frames, fact) in rounds {
            show(&mut session, at, frames);
            at += frames;
            let retained = session.state().cache.retained();
            let before = turns(&session);
            let tokens = session.usage().tokens_seen;
            let answer = say(&mut session, FACTS[fact], Recall::default(), false);
            let room = session.state().cache.longest_turn();
            prop_assert!(answer.recalled_tokens + answer.prompt_tokens <= room);
            for stamp_ms in recalled_turns(&answer) {
                let (_, entry) = before.iter().find(|(_, entry)| entry.unit.stamp_ns / 1_000_000 == stamp_ms).unwrap();
                prop_assert!(retained.share(entry.extent.clone()) < 0.5);
            }
            // What was said last is there, by the tokens that it has in the stream.
            let end = session.usage().tokens_seen;
            let stands = turns(&session).into_iter().filter(|(_, entry)| entry.extent.end == end);
            let [(turn, entry)] = stands.collect::<Vec<_>>().try_into().unwrap();
            prop_assert_eq!(&*turn.asked, FACTS[fact]);
            prop_assert!(tokens < entry.extent.start && entry.extent.start < end);
            prop_assert!(turn.said.len() <= answer.output_tokens);
            prop_assert_eq!(entry.seen_ns, (at - 1) * 100_000_000);
        }
    }
}

#[test]
fn what_was_told_is_recalled_when_its_words_are_asked_for_and_named() {
    let mut config = config(PolicyKind::InfMllm);
    config.model_dir = demo_dir();
    config.archive.recall_share = 0.75;
    let mut session = Session::new(config).unwrap();
    let mut at = 0;
    let mut hear = |session: &mut Session, text: &str| {
        show(session, at, 5);
        tell(session, text);
        show(session, at + 5, 40);
        at += 45;
        100 * (at - 41)
    };
    let asked = |session: &mut Session, text: &str| {
        let auto = Recall {
            mode: Some(RecallMode::Auto),
            ..Recall::default()
        };
        say(session, text, auto, true)
    };
    let ball = hear(&mut session, "Did you see a red ball?");
    hear(&mut session, "How many chairs are in view?");
    // Nothing that was said is about it.
    let answer = asked(&mut session, "What colour is the lamp?");
    assert!(recalled_turns(&answer).is_empty());
    let charger = hear(&mut session, "The charger is in room 7.");
    let answer = asked(&mut session, "Where did you last see the red ball?");
    assert_eq!(recalled_turns(&answer), [ball]);
    let answer = asked(&mut session, "Where is the charger?");
    assert_eq!(recalled_turns(&answer), [charger]);
    let unit = answer.recalled.iter().find(|unit| unit.kind == Kind::Text);
    assert!((0.5..=1.0).contains(&unit.unwrap().score));
}

#[test]
fn what_the_cache_holds_of_what_was_said_is_not_brought_again() {
    let mut session = told(&config(PolicyKind::InfMllm));
    let answer = ask(&mut session, RecallMode::Always);
    assert_eq!(recalled_turns(&answer), [400]);
    assert!(answer.recalled.len() <= 3);
    tell(&mut session, TOLD);
    for mode in [RecallMode::Auto, RecallMode::Always] {
        for stamp_ms in recalled_turns(&ask(&mut session, mode)) {
            assert_eq!(stamp_ms, 400);
        }
    }
}

#[test]
fn answers_that_rest_on_turns_are_the_same_for_any_number_of_threads() {
    let run = |threads| {
        let mut config = config(PolicyKind::InfMllm);
        config.threads = threads;
        config.temperature = 1.5;
        let mut session = Session::new(config).unwrap();
        let pool = session.pool();
        pool.install(|| {
            let rounds = FACTS.iter().enumerate().map(|(round, fact)| {
                show(&mut session, round as i64 * 15, 15);
                tell(&mut session, fact);
                let answer = say(&mut session, QUESTION, Recall::default(), round % 2 == 0);
                let units = answer.recalled.iter();
                let units = units
                    .map(|unit| (unit.kind == Kind::Text, unit.stamp_ns, unit.score.to_bits()));
                (
                    answer.token_ids,
                    answer.mean_logprob.to_bits(),
                    units.collect::<Vec<_>>(),
                )
            });
            rounds.collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(one
        .iter()
        .any(|(_, _, units)| units.iter().any(|unit| unit.0)));
    for threads in [2, 3] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn a_time_range_brings_what_was_said_within_it_too() {
    let mut session = Session::new(config(PolicyKind::InfMllm)).unwrap();
    for round in 0..4 {
        show(&mut session, round * 20, 20);
        tell(&mut session, FACTS[round as usize]);
    }
    show(&mut session, 80, 40);
    session
        .set_parameter(
            "recall_units",
            inf_mllm::cache::parameter::Value::Integer(2),
        )
        .unwrap();
    // The turn of 1.9 s and a frame beside it.
    let answer = say(&mut session, "What happened?", within(1.85, 2.05), true);
    assert_eq!(recalled_turns(&answer), [1900]);
    let stamps = answer
        .recalled
        .iter()
        .map(|unit| unit.stamp_ns / 100_000_000);
    assert!(stamps.clone().all(|stamp| (19..=20).contains(&stamp)) && stamps.count() == 2);
    let answer = say(&mut session, QUESTION, within(1.0, 1.5), true);
    assert!(recalled_turns(&answer).is_empty() && answer.recalled.len() == 2);
}

#[test]
fn turns_that_leave_no_trace_are_not_archived_and_the_same_words_are_archived_once() {
    let mut session = Session::new(SessionConfig {
        max_new_tokens_limit: 64,
        ..config(PolicyKind::InfMllm)
    })
    .unwrap();
    session
        .set_parameter(
            "recall",
            inf_mllm::cache::parameter::Value::Text("never".to_string()),
        )
        .unwrap();
    show(&mut session, 0, 3);
    say(&mut session, TOLD, Recall::default(), true);
    let refused = Instruction {
        max_new_tokens: 100,
        ..instruction("r", TOLD)
    };
    let refused = session.ask(&refused, &|| false, &mut |_| ());
    let cut_off = session.ask(&instruction("c", TOLD), &|| true, &mut |_| ());
    assert_eq!(
        (refused.finish, cut_off.finish),
        (FinishReason::Error, FinishReason::Cancelled)
    );
    assert!(turns(&session).is_empty());
    assert_eq!(session.archive_stats().turns, 0);
    tell(&mut session, TOLD);
    assert_eq!(session.archive_stats().turns, 1);
    tell(&mut session, FACTS[1]);
    assert_eq!(turns(&session).len(), 2);
    session.reset().unwrap();
    assert_eq!(
        (turns(&session).len(), session.archive_stats().turns),
        (0, 0)
    );
    // Frames of one colour are nothing new, and an answer of no tokens is the same each time.
    let mut same = config(PolicyKind::InfMllm);
    same.archive.nothing_new = 0.999;
    let mut session = Session::new(same).unwrap();
    show(&mut session, 0, 3);
    let first = tell(&mut session, TOLD);
    let again = tell(&mut session, TOLD);
    let differs = usize::from(first.token_ids != again.token_ids);
    assert_eq!(turns(&session).len(), 1 + differs);
}

#[test]
fn neither_frames_nor_turns_drive_the_other_kind_out() {
    let mut small = config(PolicyKind::InfMllm);
    small.archive.archive_bytes = 150_000;
    let mut session = Session::new(small.clone()).unwrap();
    show(&mut session, 0, 3);
    tell(&mut session, TOLD);
    show(&mut session, 3, 250);
    assert!(session.archive().left() > 0);
    assert_eq!(&*turns(&session)[0].0.asked, TOLD);
    for i in 0..60 {
        tell(&mut session, &format!("Box {i} is at {}.", i * 31 % 17));
        show(&mut session, 253 + i, 1);
        assert!(session.archive().bytes() <= small.archive.archive_bytes);
    }
    let text = turns(&session);
    let frames = session.archive().entries().len() - text.len();
    assert!(
        frames > 10 && text.len() > 10,
        "{frames} frames, {} turns",
        text.len()
    );
    let bytes = text
        .iter()
        .map(|(_, entry)| entry.unit.bytes())
        .sum::<usize>();
    // A quarter, and the turn that goes beyond it before another one leaves.
    assert!(bytes < small.archive.archive_bytes / 4 + 4_000, "{bytes}");
}

/// A layer that notes what it is given.
#[derive(Debug)]
struct Noting {
    layer: Arc<dyn Block>,
    given: Arc<Mutex<Vec<Tensor>>>,
}

impl Block for Noting {
    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> candle_core::Result<Tensor> {
        self.given.lock().unwrap().push(x.clone());
        self.layer.forward(x, tokens, caches)
    }
}

#[test]
fn a_recalled_turn_is_fed_in_the_chat_format_between_frames_and_question() {
    let mut config = config(PolicyKind::InfMllm);
    config.archive.recall_units = 1;
    config.archive.recall_newest = false;
    let mut model = load(&config.model_dir);
    let given = Arc::new(Mutex::new(Vec::new()));
    let Layer::Attention(layer) = model.decoder.layers[0].clone() else {
        panic!("the first layer does not attend")
    };
    model.decoder.layers[0] = Layer::Attention(Arc::new(Noting {
        layer,
        given: given.clone(),
    }));
    let tokenizer = model.tokenizer.clone();
    let decoder = load(&config.model_dir).decoder;
    let checkpoint = Checkpoint::open(&config.model_dir).unwrap();
    let pool = thread_pool(1, &checkpoint).unwrap();
    let mut session = Session::with_model(model, pool, config).unwrap();
    show(&mut session, 0, 5);
    tell(&mut session, TOLD);
    show(&mut session, 5, 55);
    let last = session.state().stream.last_id;
    let (turn, _) = turns(&session).remove(0);
    given.lock().unwrap().clear();
    let answer = ask(&mut session, RecallMode::Always);
    assert_eq!(recalled_turns(&answer), [400]);

    let asked = format!("\n\n{TOLD}<end_of_utterance>\nAssistant:");
    let question = format!("<end_of_utterance>\nUser: {QUESTION}<end_of_utterance>\nAssistant:");
    let mut expected = tokenizer.encode_after(last, &asked).unwrap();
    expected.extend(turn.said.iter());
    assert_eq!(answer.recalled_tokens, expected.len());
    assert!(answer.recalled_tokens <= turn.tokens);
    let last = expected.last().copied();
    expected.extend(tokenizer.encode_after(last, &question).unwrap());
    let given = given.lock().unwrap();
    // Behind the pass that looks for it.
    let fed = Tensor::cat(&given[1..], 0).unwrap();
    let fed = fed.narrow(0, 0, expected.len()).unwrap();
    let embedded = decoder.embed(&expected).unwrap();
    assert_eq!(
        deviation(&fed, &embedded.to_device(&Device::Cpu).unwrap()),
        0.0
    );
}
