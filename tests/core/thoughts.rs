//! Models that think before they answer: the thought comes apart from the answer, ends in time, and is not remembered unless asked.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use inf_mllm::cache::PolicyKind;
use inf_mllm::stream::grammar::Thinking;
use inf_mllm::stream::session::{Meanwhile, Progress};
use inf_mllm::stream::{
    Answer, AnswerDelta, FinishReason, GrammarKind, Instruction, RecallMode, Session,
    SessionConfig, TextGrammar, ThoughtEnd,
};
use tempfile::TempDir;

use crate::cache_stream::Seen;
use crate::failures::{seen, show};
use crate::fine_tunes::fine_tune;
use crate::support::{golden, instruction, json, picture, tiny_config};

/// Its template opens the thought.
const OPENED: &str = "qwen3_vl_thinking";
/// The model opens it itself, with a token of the vocabulary.
const OF_ITSELF: &str = "cosmos_reason2";
const QUESTION: &str = "What is in view?";
/// What all of them answer.
const ANSWER: &str = "You are the bob";

/// A fine-tune, its thought, and whether that has to be asked for.
const THINKERS: [(&str, &str, Thinking); 4] = [
    (OPENED, "Who? it which", Thinking::Auto),
    (OF_ITSELF, "Who? it which", Thinking::Auto),
    ("mimo_vl", "Who? it", Thinking::Auto),
    ("robobrain2", "Who? it", Thinking::Always),
];

fn config(dir: &TempDir) -> SessionConfig {
    let mut config = SessionConfig {
        model_dir: dir.path().into(),
        system_prompt: String::new(),
        max_new_tokens: 40,
        frame_max_pixels: 1920,
        // None waits for another one.
        frames_per_group: 1,
        ..tiny_config()
    };
    config.cache.policy = PolicyKind::InfMllm;
    config.cache.budget = 640;
    config
}

/// One that has seen so many frames.
fn shown(config: &SessionConfig, frames: i64) -> Session {
    let mut session = Session::new(config.clone()).unwrap();
    show(&mut session, 0, frames);
    session
}

fn asked(session: &mut Session, instruction: &Instruction) -> (Answer, Vec<AnswerDelta>) {
    let mut pieces = Vec::new();
    let answer = session.ask(instruction, &|| false, &mut |delta| pieces.push(delta));
    assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    (answer, pieces)
}

fn ask(session: &mut Session) -> Answer {
    asked(session, &instruction("q", QUESTION)).0
}

/// A checkpoint with the weights and tokens of [`OPENED`] whose template knows no thoughts.
fn thoughtless() -> TempDir {
    let dir = fine_tune(OPENED);
    let plain = golden("families/qwen3_vl/chat_template.json");
    fs::copy(plain, dir.path().join("chat_template.json")).unwrap();
    dir
}

/// Puts a question with its answer into the memory of a session as a turn of the conversation, with the answer's tokens in one piece: as
/// one of which a picture was shown that has left again.
fn tell(session: &mut Session, question: &str) {
    let told = Instruction {
        choices: vec![ANSWER.to_string()],
        images: vec![picture(1, [250, 0, 0])],
        ..instruction("told", question)
    };
    let (answer, _) = asked(session, &told);
    assert_eq!(answer.thought_end, ThoughtEnd::None);
}

#[test]
fn a_thought_comes_apart_from_the_answer_whoever_opens_it() {
    for (name, thought, thinking) in THINKERS {
        let dir = fine_tune(name);
        let mut config = config(&dir);
        config.thinking = thinking;
        let mut session = shown(&config, 3);
        let (answer, pieces) = asked(&mut session, &instruction("q", QUESTION));
        assert_eq!(answer.thought, thought, "{name}");
        assert_eq!(answer.text, ANSWER, "{name}");
        assert_eq!(answer.finish, FinishReason::Stop, "{name}");
        assert_eq!(answer.thought_end, ThoughtEnd::Ended, "{name}");
        let of = |thought: bool| {
            let pieces = pieces.iter().filter(|piece| piece.thought == thought);
            pieces.map(|piece| piece.text.as_str()).collect::<String>()
        };
        assert_eq!((of(true), of(false)), (thought.into(), ANSWER.into()));
        assert!(pieces.iter().filter(|piece| piece.thought).count() > 2);
        let first = pieces.iter().position(|piece| !piece.thought).unwrap();
        assert!(pieces[first..].iter().all(|piece| !piece.thought), "{name}");
        // Behind the thought are a line break, the answer's six tokens and the end.
        assert_eq!(
            answer.output_tokens - answer.thought_tokens,
            answer.answer_ids().len()
        );
        assert!((6..=7).contains(&answer.answer_ids().len()), "{name}");
    }
}

#[test]
fn marks_that_are_control_tokens_part_a_thought_from_an_answer_too() {
    let dir = fine_tune(OF_ITSELF);
    let file = dir.path().join("tokenizer.json");
    let mut tokenizer = json(&file);
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for token in added {
        token["special"] = true.into();
    }
    fs::write(file, tokenizer.to_string()).unwrap();
    let answer = ask(&mut shown(&config(&dir), 3));
    assert_eq!(
        (answer.thought.as_str(), answer.text.as_str()),
        ("Who? it which", ANSWER)
    );
    assert_eq!(answer.thought_end, ThoughtEnd::Ended);
}

#[test]
fn the_memory_holds_a_turn_as_if_it_had_been_answered_without_a_thought() {
    let (thinks, plain) = (fine_tune(OPENED), thoughtless());
    for policy in PolicyKind::ALL {
        if policy == PolicyKind::LastFrames {
            continue;
        }
        let with = |dir: &TempDir| {
            let mut config = config(dir);
            config.cache.policy = policy;
            if policy == PolicyKind::Full {
                config.cache.budget = 1000;
            }
            config
        };
        let frames = if policy == PolicyKind::Full { 4 } else { 40 };
        let mut one = shown(&with(&thinks), frames);
        let mut twin = shown(&with(&plain), frames);
        for round in 1..3 {
            let answer = ask(&mut one);
            assert_eq!(answer.thought_end, ThoughtEnd::Ended, "{policy}");
            tell(&mut twin, QUESTION);
            assert!(
                Seen::of(&one.state().cache) == Seen::of(&twin.state().cache),
                "{policy}, turn {round}"
            );
            // What comes next goes on from the same place.
            show(&mut one, frames * 10 * round, 2);
            show(&mut twin, frames * 10 * round, 2);
            assert!(
                Seen::of(&one.state().cache) == Seen::of(&twin.state().cache),
                "{policy}, behind turn {round}"
            );
        }
    }
}

#[test]
fn a_thought_adds_nothing_to_a_memory_of_the_last_frames() {
    let dir = fine_tune(OPENED);
    let mut config = config(&dir);
    config.cache.policy = PolicyKind::LastFrames;
    let mut session = shown(&config, 6);
    let turns = [0; 3].map(|_| {
        let answer = ask(&mut session);
        assert_eq!(answer.thought_end, ThoughtEnd::Ended);
        (answer.token_ids, session.usage().used)
    });
    assert!(turns.iter().all(|turn| *turn == turns[0]), "{turns:?}");
    // What is held behind an answer are the frames that it was given from.
    assert!(session.basis().vision_tokens > 0);
}

#[test]
fn thoughts_of_which_the_template_knows_nothing_leave_too() {
    for (name, thought, thinking) in THINKERS {
        let dir = fine_tune(name);
        let mut config = config(&dir);
        config.thinking = thinking;
        let mut one = shown(&config, 3);
        let before = one.usage().tokens_seen;
        let answer = ask(&mut one);
        let without = one.usage().tokens_seen - before;
        config.remember_thoughts = true;
        let mut twin = shown(&config, 3);
        let remembered = ask(&mut twin);
        assert_eq!(remembered.token_ids, answer.token_ids, "{name}");
        assert_eq!(remembered.thought, thought, "{name}");
        let with = twin.usage().tokens_seen - before;
        // All that was generated but the end, which is written with what comes next.
        let all = remembered.prompt_tokens + remembered.output_tokens - 1;
        assert_eq!(with as usize, all, "{name}");
        assert!(
            (without as usize) < all - answer.thought_tokens + 1,
            "{name}: {without} of {all}"
        );
        assert_eq!(one.state().stream.draws, twin.state().stream.draws);
        assert_eq!(one.state().stream.last_id, twin.state().stream.last_id);
    }
}

#[test]
fn a_thought_that_is_too_long_is_closed_and_answered_behind() {
    for (name, thought, thinking) in THINKERS {
        let dir = fine_tune(name);
        let mut config = config(&dir);
        config.thinking = thinking;
        config.max_thought_tokens = 4;
        let mut session = shown(&config, 3);
        let answer = ask(&mut session);
        assert_eq!(answer.thought_end, ThoughtEnd::Limit, "{name}");
        assert_eq!(answer.finish, FinishReason::Stop, "{name}");
        assert_eq!(answer.text, ANSWER, "{name}");
        assert!(
            thought.starts_with(&answer.thought),
            "{name}: {}",
            answer.thought
        );
        assert!(answer.thought.len() < thought.len() && !answer.thought.is_empty());
        // The longest thought, and the marks that close it.
        assert!(
            (6..=8).contains(&answer.thought_tokens),
            "{name}: {}",
            answer.thought_tokens
        );
        // An instruction may have its own.
        let mut longer = instruction("q", QUESTION);
        longer.max_thought_tokens = 30;
        let (answer, _) = asked(&mut session, &longer);
        assert_eq!(answer.thought_end, ThoughtEnd::Ended, "{name}");
        assert_eq!(answer.thought, thought, "{name}");
        // Where no answer would have room behind it, the thought goes on until the answer is as long as it may be.
        let mut short = instruction("q", QUESTION);
        short.max_new_tokens = 6;
        let (answer, _) = asked(&mut session, &short);
        assert_eq!(answer.finish, FinishReason::Length, "{name}");
        assert_eq!(answer.thought_end, ThoughtEnd::Cut, "{name}");
        assert_eq!((answer.text.as_str(), answer.output_tokens), ("", 6));
        assert!(answer.error.unwrap().contains("max_thought_tokens"));
    }
}

#[test]
fn an_answer_that_ends_within_its_thought_says_so_and_the_next_one_is_as_ever() {
    let dir = fine_tune(OPENED);
    let config = config(&dir);
    let whole = ask(&mut shown(&config, 3));
    let check = |session: &mut Session, answer: &Answer, finish: FinishReason| {
        assert_eq!(
            (answer.finish, answer.thought_end),
            (finish, ThoughtEnd::Cut)
        );
        assert_eq!(answer.text, "");
        let told = answer.error.as_deref().unwrap_or_default();
        let says = |word: &str| told.contains(word);
        match finish {
            FinishReason::Length => assert!(says("max_new_tokens") && says("thought"), "{told}"),
            FinishReason::TimeLimit => assert!(says("time_limit") && says("thought"), "{told}"),
            _ => assert_eq!(told, ""),
        }
        assert_eq!(answer.thought_tokens, answer.output_tokens);
        assert!(whole.thought.starts_with(&answer.thought));
        // The question stands there with an answer of no words, and nobody will come back to it.
        assert_eq!(session.archive().texts(), 0);
        assert_eq!(ask(session).text, ANSWER);
    };
    let mut session = shown(&config, 3);
    let mut short = instruction("q", QUESTION);
    short.max_new_tokens = 5;
    let (answer, pieces) = asked(&mut session, &short);
    assert_eq!(answer.thought, "Who? it");
    assert!(pieces.last().unwrap().done && !pieces.last().unwrap().thought);
    check(&mut session, &answer, FinishReason::Length);

    let mut session = shown(&config, 3);
    let left = Cell::new(3);
    let cancelled = || left.replace(left.get() - 1) == 0;
    let question = instruction("q", QUESTION);
    let answer = session.ask(&question, &cancelled, &mut |_| ());
    assert_eq!(answer.output_tokens, 3);
    check(&mut session, &answer, FinishReason::Cancelled);

    let mut session = shown(&config, 3);
    let mut late = instruction("q", QUESTION);
    late.time_limit = Some(Duration::from_millis(50));
    let (received, limit) = (late.received, late.time_limit.unwrap());
    let slow = || {
        std::thread::sleep(limit.saturating_sub(received.elapsed()));
        false
    };
    let answer = session.ask(&late, &slow, &mut |_| ());
    check(&mut session, &answer, FinishReason::TimeLimit);
}

#[test]
fn answers_of_a_fixed_form_have_no_thought_and_the_memory_knows_of_none() {
    let (thinks, plain) = (fine_tune(OPENED), thoughtless());
    let choices = Instruction {
        choices: vec!["yes".to_string(), ANSWER.to_string()],
        ..instruction("q", QUESTION)
    };
    let grammar = Instruction {
        grammar: Some(TextGrammar {
            kind: GrammarKind::Regex,
            text: ANSWER.to_string(),
        }),
        ..instruction("q", QUESTION)
    };
    for formed in [choices, grammar] {
        let mut one = shown(&config(&thinks), 3);
        let (answer, pieces) = asked(&mut one, &formed);
        assert_eq!(answer.thought_end, ThoughtEnd::Skipped);
        assert_eq!(
            (answer.thought.as_str(), answer.text.as_str()),
            ("", ANSWER)
        );
        assert!(pieces.iter().all(|piece| !piece.thought));
        let mut twin = shown(&config(&plain), 3);
        tell(&mut twin, QUESTION);
        assert!(Seen::of(&one.state().cache) == Seen::of(&twin.state().cache));
    }
}

#[test]
fn a_model_that_is_not_to_think_does_not() {
    let (thinks, plain) = (fine_tune(OPENED), thoughtless());
    let mut never = config(&thinks);
    never.thinking = Thinking::Never;
    let mut one = shown(&never, 3);
    let answer = ask(&mut one);
    assert_eq!(answer.thought_end, ThoughtEnd::None);
    assert_eq!(
        (answer.thought.as_str(), answer.text.as_str()),
        ("", ANSWER)
    );
    assert_eq!(answer.thought_tokens, 0);
    let mut twin = shown(&config(&plain), 3);
    tell(&mut twin, QUESTION);
    assert!(Seen::of(&one.state().cache) == Seen::of(&twin.state().cache));
}

#[test]
fn an_ephemeral_thought_leaves_no_trace_and_is_the_same() {
    let dir = fine_tune(OF_ITSELF);
    let mut one = shown(&config(&dir), 20);
    let mut twin = shown(&config(&dir), 20);
    let mut aside = instruction("q", QUESTION);
    aside.ephemeral = true;
    let (answer, _) = asked(&mut one, &aside);
    assert_eq!(
        (answer.text.as_str(), answer.thought_end),
        (ANSWER, ThoughtEnd::Ended)
    );
    assert!(seen(&mut one) == seen(&mut twin));
}

#[test]
fn frames_that_come_during_a_thought_stand_in_front_of_its_turn() {
    let dir = fine_tune(OPENED);
    let mut config = config(&dir);
    config.frames_during_answers = 3;
    config.max_thought_tokens = 5;
    config.repetition_penalty = 1.2;
    let mut one = shown(&config, 8);
    let question = instruction("q", QUESTION);
    let mut asking = one.begin_answer(&question);
    let mut pauses = 0;
    let answer = loop {
        let waits = || Meanwhile::FrameWaits;
        match one.go_on_answering(&question, asking, &waits, &mut |_| ()) {
            Progress::Answered(answer) => break answer,
            Progress::Paused(paused) => {
                show(&mut one, 8 + pauses, 1);
                pauses += 1;
                asking = *paused;
            }
        }
    };
    assert!(pauses > 1, "{pauses}");
    assert_eq!(
        (answer.text.as_str(), answer.thought_end),
        (ANSWER, ThoughtEnd::Limit)
    );
    let mut twin = shown(&config, 8 + pauses);
    let (whole, _) = asked(&mut twin, &question);
    assert_eq!(answer.token_ids, whole.token_ids);
    assert_eq!(answer.thought, whole.thought);
    assert!(seen(&mut one) == seen(&mut twin));
}

#[test]
fn what_is_drawn_does_not_depend_on_what_is_remembered() {
    let dir = fine_tune(OF_ITSELF);
    let mut config = config(&dir);
    // The thought and the answer still come about, with words of chance among them.
    config.temperature = 2.5;
    config.seed = 5;
    config.max_thought_tokens = 6;
    let mut one = shown(&config, 3);
    config.remember_thoughts = true;
    let mut twin = shown(&config, 3);
    let (first, second) = (ask(&mut one), ask(&mut twin));
    assert_eq!(first.token_ids, second.token_ids);
    assert_eq!(one.state().stream.draws, twin.state().stream.draws);
    config.remember_thoughts = false;
    let mut again = shown(&config, 3);
    assert_eq!(ask(&mut again).token_ids, first.token_ids);
    assert!(seen(&mut again) == seen(&mut one));
}

#[test]
fn a_turn_enters_the_archive_without_its_thought_and_is_fed_again_so() {
    let dir = fine_tune(OPENED);
    let mut session = shown(&config(&dir), 3);
    ask(&mut session);
    assert_eq!(session.archive().texts(), 1);
    // It has left the memory once there were frames enough.
    show(&mut session, 3, 40);
    let before = session.usage().tokens_seen;
    let mut recalls = instruction("again", QUESTION);
    recalls.recall.mode = Some(RecallMode::Always);
    recalls.ephemeral = true;
    let (answer, _) = asked(&mut session, &recalls);
    assert_eq!(answer.text, ANSWER);
    assert!(!answer.recalled.is_empty());
    assert_eq!(session.usage().tokens_seen, before);
}
