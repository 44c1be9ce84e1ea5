//! Frames that have left the cache, found and fed again for an instruction: what must hold whatever is asked.

use inf_mllm::cache::parameter::Value;
use inf_mllm::cache::PolicyKind;
use inf_mllm::stream::archive::{Kind, Unit};
use inf_mllm::stream::{
    Answer, FinishReason, Instruction, Recall, RecallMode, Session, SessionConfig,
};
use proptest::prelude::*;

use crate::failures::{seen, show};
use crate::support::{instruction, picture, tiny_config};

/// Tokens of a frame of the tiny model with its label, at most.
const FRAME: usize = 24;
const QUESTION: &str = "Where was the red box?";

/// The policies that have an archive.
pub fn remembering() -> Vec<PolicyKind> {
    let all = PolicyKind::ALL.into_iter();
    all.filter(|policy| !matches!(policy, PolicyKind::Full | PolicyKind::LastFrames))
        .collect()
}

/// A session that recalls as much as it can for every instruction.
pub fn config(policy: PolicyKind) -> SessionConfig {
    let mut config = tiny_config();
    config.cache.policy = policy;
    config.archive.recall = RecallMode::Always;
    config.archive.recall_share = 0.0;
    config.archive.nothing_new = 1.0;
    config.archive.recall_units = 3;
    config
}

fn session(config: &SessionConfig) -> Session {
    Session::new(config.clone()).unwrap()
}

fn wanting(recall: Recall, ephemeral: bool) -> Instruction {
    Instruction {
        ephemeral,
        recall,
        ..instruction("q", QUESTION)
    }
}

fn ask(session: &mut Session, recall: Recall, ephemeral: bool) -> Answer {
    session.ask(&wanting(recall, ephemeral), &|| false, &mut |_| ())
}

pub fn within(from_s: f64, to_s: f64) -> Recall {
    Recall {
        span_ns: Some(((from_s * 1e9) as i64, (to_s * 1e9) as i64)),
        ..Recall::default()
    }
}

/// What an archive holds, as far as it can be seen.
pub fn archived(session: &Session) -> Vec<(u64, i64, std::ops::Range<u64>)> {
    let entries = session.archive().entries().iter();
    entries
        .map(|entry| (entry.id, entry.seen_ns, entry.extent.clone()))
        .collect()
}

/// An ephemeral question that recalled no more than `units` has left the first session, which was asked, as the second is, which was not.
pub fn no_trace(
    answer: &Answer,
    units: usize,
    [asked, plain]: &mut [Session; 2],
) -> Result<(), TestCaseError> {
    prop_assert!(answer.error.is_none(), "{:?}", answer.error);
    prop_assert!(answer.recalled.len() <= units);
    prop_assert_eq!(answer.recalled.is_empty(), answer.recalled_tokens == 0);
    let usage = asked.usage();
    prop_assert!(usage.used <= usage.budget);
    prop_assert_eq!(archived(asked), archived(plain));
    prop_assert_eq!(format!("{:?}", seen(asked)), format!("{:?}", seen(plain)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_ephemeral_question_with_recall_leaves_no_trace(
        policy in prop::sample::select(remembering()),
        budget in 256usize..360,
        rounds in prop::collection::vec(1i64..14, 1..4),
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
        let mut sessions = [session(&config), session(&config)];
        let mut at = 0;
        for frames in rounds {
            for session in &mut sessions {
                show(session, at, frames);
            }
            at += frames;
            let answer = ask(&mut sessions[0], Recall::default(), true);
            no_trace(&answer, units, &mut sessions)?;
        }
    }

    #[test]
    fn no_recalled_frame_is_still_in_the_cache_and_all_are_in_the_order_of_time(
        policy in prop::sample::select(remembering()),
        rounds in prop::collection::vec(8i64..20, 2..4),
        ephemeral in any::<bool>(),
    ) {
        let mut session = session(&config(policy));
        let mut at = 0;
        for frames in rounds {
            show(&mut session, at, frames);
            at += frames;
            let retained = session.state().cache.retained();
            let entries = session.archive().entries().to_vec();
            let tokens = session.usage().tokens_seen;
            let answer = ask(&mut session, Recall::default(), ephemeral);
            prop_assert!(answer.error.is_none(), "{:?}", answer.error);
            let stamps = answer.recalled.iter().map(|unit| (unit.stamp_ns, unit.kind == Kind::Text)).collect::<Vec<_>>();
            prop_assert!(stamps.is_sorted());
            for &(stamp_ns, text) in &stamps {
                let is = |unit: &Unit| unit.stamp_ns == stamp_ns && (unit.kind() == Kind::Text) == text;
                let entry = entries.iter().find(|entry| is(&entry.unit)).unwrap();
                prop_assert!(retained.share(entry.extent.clone()) < 0.5);
            }
            let gone = entries.iter().any(|entry| retained.share(entry.extent.clone()) < 0.5);
            // A turn of tova has room for little more than the question.
            let room = session.state().cache.longest_turn() >= answer.prompt_tokens + 2 * FRAME;
            prop_assert!(gone || stamps.is_empty());
            prop_assert!(!gone || !room || !stamps.is_empty());
            // Of a turn that stays, question and answer do, and nothing of what was recalled.
            let end = u64::from(answer.finish == FinishReason::Stop);
            let said = answer.output_tokens as u64 - end;
            let turn = if ephemeral { 0 } else { answer.prompt_tokens as u64 + said };
            prop_assert_eq!(session.usage().tokens_seen - tokens, turn);
        }
    }
}

#[test]
fn answers_and_what_they_rest_on_are_the_same_for_any_number_of_threads() {
    let run = |threads| {
        let mut config = config(PolicyKind::InfMllm);
        config.threads = threads;
        config.temperature = 1.5;
        let mut session = session(&config);
        let pool = session.pool();
        pool.install(|| {
            let rounds = (0..4).map(|round| {
                show(&mut session, round * 15, 15);
                let answer = ask(&mut session, Recall::default(), round % 2 == 0);
                assert!(round == 0 || !answer.recalled.is_empty());
                let scores = answer.recalled.iter().map(|unit| unit.score.to_bits());
                let stamps = answer.recalled.iter().map(|unit| unit.stamp_ns);
                let rests_on = stamps.zip(scores).collect::<Vec<_>>();
                (answer.token_ids, answer.mean_logprob.to_bits(), rests_on)
            });
            rounds.collect::<Vec<_>>()
        })
    };
    let one = run(1);
    for threads in [1, 2, 3, 1, 2, 3, 1, 2, 3] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn a_time_range_brings_what_was_seen_within_it_and_nothing_else() {
    let mut session = session(&config(PolicyKind::InfMllm));
    show(&mut session, 0, 60);
    let answer = ask(&mut session, within(0.95, 1.25), true);
    let stamps = answer.recalled.iter().map(|unit| unit.stamp_ns / 1_000_000);
    assert_eq!(stamps.collect::<Vec<_>>(), [1000, 1100, 1200]);
    // What is within the range and still in the cache needs no recall, and the question is answered.
    let answer = ask(&mut session, within(5.85, 5.95), true);
    assert!(answer.error.is_none() && answer.recalled.is_empty());
    // Also where little is recalled of its own accord.
    session
        .set_parameter("recall", Value::Text("never".to_string()))
        .unwrap();
    assert!(ask(&mut session, Recall::default(), true)
        .recalled
        .is_empty());
    assert!(!ask(&mut session, within(0.0, 2.0), true)
        .recalled
        .is_empty());
}

/// Times of the frames that a range brings, ms, in the order in which they are fed, and the first and last time of each.
fn brought(session: &mut Session, from_s: f64, to_s: f64) -> Vec<(i64, i64)> {
    let answer = ask(session, within(from_s, to_s), true);
    assert!(answer.error.is_none(), "{:?}", answer.error);
    let frames = answer.recalled.iter();
    let frames = frames.filter(|unit| unit.kind == Kind::Frame);
    frames
        .map(|unit| (unit.stamp_ns / 1_000_000, unit.seen_ns / 1_000_000))
        .collect()
}

fn look(session: &mut Session, times_ms: impl Iterator<Item = i64>, colour: [u8; 3]) {
    for ms in times_ms {
        session.push_frame(&picture(ms, colour)).unwrap();
    }
}

#[test]
fn what_comes_again_after_other_things_was_not_in_view_in_between() {
    let mut config = config(PolicyKind::InfMllm);
    config.archive.nothing_new = 0.999;
    let mut session = session(&config);
    look(&mut session, (0..30).map(|i| i * 200), [250, 20, 20]);
    look(&mut session, (30..60).map(|i| i * 200), [20, 20, 250]);
    look(&mut session, (60..90).map(|i| i * 200), [250, 20, 20]);
    show(&mut session, 200, 40);
    assert_eq!(brought(&mut session, 8.0, 9.0), [(6000, 11_800)]);
    assert_eq!(
        brought(&mut session, 4.0, 13.0),
        [(0, 5800), (6000, 11_800), (12_000, 17_800)]
    );
}

#[test]
fn stamps_that_jump_back_mix_up_neither_ranges_nor_the_order() {
    let mut config = config(PolicyKind::InfMllm);
    config.archive.nothing_new = 0.999;
    let mut session = session(&config);
    look(&mut session, (500..530).map(|i| i * 200), [250, 20, 20]);
    // A single strange stamp is left out: the clock has jumped with the second.
    assert!(session.push_frame(&picture(0, [250, 20, 20])).is_err());
    look(&mut session, (1..30).map(|i| i * 200), [250, 20, 20]);
    show(&mut session, 100, 40);
    assert_eq!(brought(&mut session, 100.0, 105.0), [(100_000, 105_800)]);
    assert_eq!(brought(&mut session, 0.0, 5.0), [(200, 5800)]);
    let stamps = brought(&mut session, 0.0, 200.0);
    assert_eq!(stamps[0], (100_000, 105_800), "{stamps:?}");
}

#[test]
fn a_range_is_brought_whatever_stands_out() {
    let mut session = session(&config(PolicyKind::InfMllm));
    show(&mut session, 0, 60);
    let auto = Recall {
        mode: Some(RecallMode::Auto),
        ..within(0.95, 1.25)
    };
    let answer = ask(&mut session, auto, true);
    assert_eq!(answer.recalled.len(), 3);
}

#[test]
fn frames_are_recalled_by_their_times_too() {
    let mut session = session(&config(PolicyKind::StreamingLlm));
    show(&mut session, 0, 60);
    let recall = Recall {
        stamps_ns: vec![2_040_000_000, 310_000_000, 2_000_000_000],
        ..Recall::default()
    };
    let answer = ask(&mut session, recall, true);
    let stamps = answer.recalled.iter().map(|unit| unit.stamp_ns / 1_000_000);
    assert_eq!(stamps.collect::<Vec<_>>(), [300, 2000]);
}

#[test]
fn what_cannot_be_recalled_is_refused_with_the_reason_and_the_session_goes_on() {
    let always = || Recall {
        mode: Some(RecallMode::Always),
        ..Recall::default()
    };
    let never = Recall {
        mode: Some(RecallMode::Never),
        ..within(0.0, 1.0)
    };
    let mut off = config(PolicyKind::InfMllm);
    off.archive.archive_bytes = 0;
    let mut small = config(PolicyKind::InfMllm);
    small.archive.archive_bytes = 500;
    let cases = [
        (config(PolicyKind::InfMllm), within(2.0, 1.0), "from 2.000 s to 1.000 s: the range ends before it begins"),
        (config(PolicyKind::InfMllm), within(7.0, 8.0), "nothing is archived from 7.000 s to 8.000 s, expected a range that meets what is: from 0.000 s to 1.900 s"),
        (config(PolicyKind::InfMllm), never, "recall is never, but a time range"),
        (config(PolicyKind::LastFrames), always(), "policy last_frames has no memory"),
        (config(PolicyKind::Full), within(0.0, 1.0), "nothing ever leaves the cache of policy full"),
        (off, always(), "archive_bytes is 0"),
        (small.clone(), always(), "nothing is archived: archive_bytes is 500, expected at least "),
        (small, within(0.0, 1.0), "which a frame takes"),
        (config(PolicyKind::Tova), always(), "the longest turn of the policy at this budget"),
    ];
    for (mut config, recall, said) in cases {
        config.archive.recall = RecallMode::Auto;
        if config.cache.policy == PolicyKind::Full {
            config.cache.budget = 512;
        }
        let mut session = session(&config);
        show(&mut session, 0, 20);
        let before = format!("{:?}", seen(&mut session));
        let answer = ask(&mut session, recall, false);
        assert_eq!(answer.finish, FinishReason::Error);
        let error = answer.error.unwrap();
        assert!(error.contains(said), "{error}");
        assert_eq!(before, format!("{:?}", seen(&mut session)), "{said}");
        let answer = ask(&mut session, Recall::default(), false);
        assert!(answer.error.is_none(), "{:?}", answer.error);
    }
}

#[test]
fn recall_that_nothing_can_satisfy_is_refused_at_the_start() {
    for policy in [PolicyKind::LastFrames, PolicyKind::Full] {
        let error = Session::new(config(policy)).err().unwrap().to_string();
        assert!(
            error.contains("recall") && error.contains("always"),
            "{error}"
        );
    }
    let mut layers = config(PolicyKind::InfMllm);
    layers.archive.recall_layers = "99".to_string();
    let error = Session::new(layers).err().unwrap().to_string();
    assert!(
        error.contains("recall_layers") && error.contains("99"),
        "{error}"
    );
}

#[test]
fn an_archive_holds_its_bound_and_one_that_is_too_small_for_a_frame_holds_nothing() {
    for bytes in [1, 3_000, 20_000, 200_000] {
        let mut config = config(PolicyKind::InfMllm);
        config.archive.archive_bytes = bytes;
        let mut session = Session::new(config.clone()).unwrap();
        for round in 0..5 {
            show(&mut session, round * 12, 12);
            assert!(session.archive().bytes() <= bytes);
            let answer = ask(&mut session, Recall::default(), round % 2 == 0);
            assert!(answer.error.is_none(), "{:?}", answer.error);
            assert!(bytes > 1 || answer.recalled.is_empty());
        }
        assert_eq!(session.archive().entries().is_empty(), bytes == 1);
        let too_large = session.archive().too_large();
        assert_eq!(too_large.frames, if bytes == 1 { 60 } else { 0 });
        // As many bytes as it says are enough.
        if bytes == 1 {
            config.archive.archive_bytes = too_large.bytes;
            let mut session = Session::new(config).unwrap();
            show(&mut session, 0, 12);
            assert_eq!(session.archive().entries().len(), 1);
        }
        assert_eq!(
            session.archive().left() > 0,
            (3_000..200_000).contains(&bytes),
            "{bytes}"
        );
    }
}

#[test]
fn an_archive_that_is_not_asked_changes_no_answer() {
    let answers = |bytes: usize, mode| {
        let mut config = config(PolicyKind::InfMllm);
        config.archive.archive_bytes = bytes;
        config.archive.recall = mode;
        let mut session = session(&config);
        let rounds = (0..4).map(|round| {
            show(&mut session, round * 12, 12);
            let answer = ask(&mut session, Recall::default(), false);
            (answer.token_ids, answer.mean_logprob.to_bits())
        });
        rounds.collect::<Vec<_>>()
    };
    let off = answers(0, RecallMode::Auto);
    assert_eq!(answers(1 << 20, RecallMode::Never), off);
}

#[test]
fn a_reset_forgets_the_archive() {
    let mut session = session(&config(PolicyKind::InfMllm));
    show(&mut session, 0, 40);
    assert!(!session.archive().entries().is_empty());
    session.reset().unwrap();
    assert!(session.archive().entries().is_empty());
    show(&mut session, 0, 3);
    let answer = ask(&mut session, Recall::default(), false);
    assert!(answer.error.is_none() && answer.recalled.is_empty());
}
