//! Frames that come while an answer is being given.

use std::cell::Cell;

use inf_mllm::cache::parameter::Value;
use inf_mllm::stream::session::{Meanwhile, Progress};
use inf_mllm::stream::{Answer, FinishReason, RecallMode, Session, SessionConfig};

use crate::failures::{seen, show};
use crate::support::{instruction, picture, tiny_config};

/// Tokens of an answer between two frames.
const EVERY: usize = 5;
const LENGTH: usize = 23;

fn config() -> SessionConfig {
    let mut config = tiny_config();
    // Whatever is drawn, so that an answer is as long as it may be; and what was said counts.
    config.temperature = 5.0;
    config.repetition_penalty = 10.0;
    config.seed = 17;
    config.max_new_tokens = LENGTH;
    config.frames_during_answers = EVERY;
    config
}

/// Asks, and does something at every pause.
fn ask(
    session: &mut Session,
    ephemeral: bool,
    recall: RecallMode,
    mut between: impl FnMut(&mut Session, usize),
) -> (Answer, usize) {
    let mut asked = instruction("q", "What is in view?");
    asked.ephemeral = ephemeral;
    asked.recall.mode = Some(recall);
    let pieces = Cell::new(String::new());
    let mut asking = session.begin_answer(&asked);
    let mut pauses = 0;
    loop {
        let frame_waits = || Meanwhile::FrameWaits;
        let progress = session.go_on_answering(&asked, asking, &frame_waits, &mut |delta| {
            pieces.set(pieces.take() + &delta.text);
        });
        match progress {
            Progress::Answered(answer) => {
                assert_eq!(pieces.take(), answer.text);
                return (*answer, pauses);
            }
            Progress::Paused(paused) => {
                pauses += 1;
                asking = *paused;
                between(session, pauses);
            }
        }
    }
}

fn pair(config: &SessionConfig, frames: i64) -> [Session; 2] {
    [0; 2].map(|_| {
        let mut session = Session::new(config.clone()).unwrap();
        show(&mut session, 0, frames);
        session
    })
}

#[test]
fn a_pause_that_nothing_is_taken_in_at_changes_nothing_of_the_answer() {
    for (ephemeral, recall) in [
        (false, RecallMode::Never),
        (true, RecallMode::Never),
        (false, RecallMode::Always),
        (true, RecallMode::Always),
    ] {
        let mut config = config();
        // Nothing is evicted where nothing is to be recalled: it would be at another token where a turn is put as a whole.
        let evicts = recall == RecallMode::Always;
        config.cache.budget = if evicts { 256 } else { 512 };
        let [mut one, mut twin] = pair(&config, if evicts { 30 } else { 8 });
        let (answer, pauses) = ask(&mut one, ephemeral, recall, |_, _| {});
        // What was recalled leaves less room for a turn.
        assert_eq!(pauses, if evicts { 2 } else { (LENGTH - 1) / EVERY });
        let parameter = "frames_during_answers";
        twin.set_parameter(parameter, Value::Integer(0)).unwrap();
        let (whole, pauses) = ask(&mut twin, ephemeral, recall, |_, _| {});
        assert_eq!((pauses, whole.finish), (0, FinishReason::Length));
        assert_eq!(answer.recalled, whole.recalled);
        assert_eq!(answer.recalled.is_empty(), !evicts);
        assert_eq!(answer.token_ids[..EVERY], whole.token_ids[..EVERY]);
        if !evicts {
            assert_eq!(answer.token_ids, whole.token_ids, "ephemeral {ephemeral}");
            assert!((answer.mean_logprob - whole.mean_logprob).abs() < 1e-3);
        }
        // And what comes next goes on from the same place.
        assert_eq!(one.state().stream.draws, twin.state().stream.draws);
        assert_eq!(one.usage().tokens_seen, twin.usage().tokens_seen);
        assert_eq!(one.archive().texts(), twin.archive().texts());
        assert_eq!(one.archive().texts(), usize::from(!ephemeral));
    }
}

#[test]
fn frames_that_come_during_an_ephemeral_answer_stay_and_nothing_else() {
    for recall in [RecallMode::Never, RecallMode::Always] {
        let [mut one, mut twin] = pair(&config(), 30);
        let (answer, pauses) = ask(&mut one, true, recall, |session, n| {
            show(session, 30 + n as i64, 1);
        });
        assert_eq!(answer.recalled.is_empty(), recall == RecallMode::Never);
        // What was recalled leaves less room for a turn.
        assert_eq!(pauses, if answer.recalled.is_empty() { 4 } else { 2 });
        assert_eq!(answer.frames_seen, 30 + pauses as u64);
        show(&mut twin, 31, pauses as i64);
        assert_eq!(seen(&mut one), seen(&mut twin), "{recall:?}");
    }
}

#[test]
fn frames_that_come_during_an_answer_stand_in_front_of_its_turn() {
    let [mut one, mut twin] = pair(&config(), 30);
    let (answer, _) = ask(&mut one, false, RecallMode::Never, |session, n| {
        show(session, 30 + n as i64, 1);
    });
    let newest = answer.newest_frame.unwrap();
    assert_eq!((newest.stamp_ns, answer.frames_seen), (3_400_000_000, 34));
    show(&mut twin, 31, 4);
    twin.set_parameter("frames_during_answers", Value::Integer(0))
        .unwrap();
    let (whole, _) = ask(&mut twin, false, RecallMode::Never, |_, _| {});
    // Both have the same conversation of as many tokens, but for the words of the answer.
    assert_eq!(answer.token_ids.len(), whole.token_ids.len());
    assert_eq!(one.usage().tokens_seen, twin.usage().tokens_seen);
    let grammar = |session: &Session| format!("{:?}", session.state().stream.grammar);
    assert_eq!(grammar(&one), grammar(&twin));
    assert_eq!(one.archive().texts(), 1);
    // The last words are chosen in sight of the last frame.
    assert_ne!(answer.token_ids, whole.token_ids);
}

#[test]
fn a_turn_that_has_grown_too_long_to_be_put_again_is_not_paused() {
    let mut config = config();
    config.max_new_tokens = 200;
    config.cache.budget = 128;
    let mut session = Session::new(config).unwrap();
    session.push_frame(&picture(0, [9; 3])).unwrap();
    let room = session.state().cache.longest_turn();
    let (answer, pauses) = ask(&mut session, false, RecallMode::Never, |_, _| {});
    assert_eq!(answer.error, None);
    let paused = pauses * EVERY + answer.prompt_tokens;
    assert!(
        paused <= room && paused + EVERY > room,
        "{paused} of {room}"
    );
}
