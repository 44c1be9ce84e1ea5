//! Pictures inside an instruction: shown in front of it, gone with it, and refused where they cannot be shown.

use inf_mllm::cache::PolicyKind;
use inf_mllm::stream::{
    Answer, CameraImage, FinishReason, ImageData, Instruction, Recall, RecallMode, Session,
    SessionConfig,
};

use crate::support::{instruction, picture, tiny_config};

fn shows(images: Vec<CameraImage>, ephemeral: bool) -> Instruction {
    Instruction {
        images,
        ephemeral,
        ..instruction("q", "Is this the cup?")
    }
}

fn ask(session: &mut Session, instruction: &Instruction) -> Answer {
    session.ask(instruction, &|| false, &mut |_| ())
}

fn good(session: &mut Session, instruction: &Instruction) -> Answer {
    let answer = ask(session, instruction);
    assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
    answer
}

/// One that has seen so many frames.
fn seen(config: SessionConfig, frames: i64) -> Session {
    let mut session = Session::new(config).unwrap();
    for i in 0..frames {
        let image = picture(1000 + i * 100, [(i * 40 % 256) as u8, 90, 200]);
        session.push_frame(&image).unwrap();
    }
    session
}

fn red() -> CameraImage {
    picture(7, [250, 0, 0])
}

fn blue() -> CameraImage {
    picture(9, [0, 0, 250])
}

#[test]
fn the_model_sees_the_pictures_and_in_their_order() {
    for policy in [
        PolicyKind::InfMllm,
        PolicyKind::Full,
        PolicyKind::LastFrames,
    ] {
        let mut config = tiny_config();
        config.cache.policy = policy;
        let mut session = seen(config, 3);
        let mut told = |images: Vec<CameraImage>| {
            let answer = good(&mut session, &shows(images, true));
            (answer.mean_logprob, answer.prompt_tokens)
        };
        let none = told(vec![]);
        let one = told(vec![red()]);
        let other = told(vec![blue()]);
        let both = told(vec![red(), blue()]);
        let turned = told(vec![blue(), red()]);
        assert_eq!(told(vec![]), none, "{policy}: no trace");
        assert!(
            none.1 < one.1 && one.1 == other.1 && one.1 < both.1,
            "{policy}"
        );
        let mut said = [none.0, one.0, other.0, both.0, turned.0];
        said.sort_by(f32::total_cmp);
        let differ = said.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(differ, "{policy}: {said:?}");
    }
}

#[test]
fn pictures_leave_no_trace_and_the_turn_stays_as_if_it_had_had_none() {
    // Far enough for compactions, with sampling, so that the draws count too.
    let mut config = tiny_config();
    config.temperature = 1.0;
    let mut shown = seen(config.clone(), 25);
    let mut twin = seen(config, 25);
    good(&mut shown, &shows(vec![red(), blue()], true));
    let show = |session: &mut Session| {
        for i in 0..5 {
            session
                .push_frame(&picture(9000 + i * 100, [9, 9, 9]))
                .unwrap();
        }
        let answer = good(session, &instruction("next", "What is in view?"));
        (answer.token_ids, answer.mean_logprob, session.usage())
    };
    assert_eq!(show(&mut shown), show(&mut twin));
    // A turn that stays: its tokens, and not those of the pictures.
    let before = shown.usage().tokens_seen;
    let answer = good(&mut shown, &shows(vec![red()], false));
    let took = (shown.usage().tokens_seen - before) as usize;
    let pictures = answer.prompt_tokens - {
        let alone = good(&mut twin, &shows(vec![], false));
        alone.prompt_tokens
    };
    assert!(pictures > 8, "{pictures} tokens of a picture");
    let end = usize::from(answer.finish == FinishReason::Stop);
    assert_eq!(
        took,
        answer.prompt_tokens - pictures + answer.output_tokens - end
    );
    assert_eq!(shown.memory().seen(), 30, "they are no frames");
    let archived = shown.archive().entries().len();
    assert_eq!(archived, twin.archive().entries().len());
}

#[test]
fn an_instruction_with_pictures_is_answered_before_the_first_frame() {
    let mut session = seen(tiny_config(), 0);
    let refused = ask(&mut session, &shows(vec![], false));
    assert!(refused
        .error
        .unwrap()
        .contains("no frame has been seen yet"));
    for ephemeral in [true, false] {
        let answer = good(&mut session, &shows(vec![red()], ephemeral));
        assert_eq!((answer.newest_frame, answer.frames_seen), (None, 0));
        assert!(answer.output_tokens > 0);
    }
    session.push_frame(&picture(1000, [1, 2, 3])).unwrap();
    good(&mut session, &shows(vec![], false));
}

#[test]
fn pictures_and_recalled_frames_share_the_turn() {
    let mut session = seen(tiny_config(), 40);
    let mut asked = shows(vec![red()], true);
    asked.recall = Recall {
        mode: Some(RecallMode::Always),
        ..Recall::default()
    };
    let with = good(&mut session, &asked);
    assert!(!with.recalled.is_empty());
    asked.images.clear();
    let without = good(&mut session, &asked);
    assert!(without.recalled.len() >= with.recalled.len());
    assert!(with.prompt_tokens > without.prompt_tokens);
}

#[test]
fn a_picture_that_cannot_be_shown_refuses_the_instruction_and_changes_nothing() {
    let mut config = tiny_config();
    config.instruction_images_limit = 2;
    let mut session = seen(config, 10);
    let before = session.usage();
    let compressed = |data: &[u8]| CameraImage {
        data: ImageData::Compressed {
            format: "jpeg".to_string(),
            data: data.to_vec(),
        },
        ..red()
    };
    let mut flat = red();
    if let ImageData::Raw { height, .. } = &mut flat.data {
        *height = 0;
    }
    for (images, told) in [
        (
            vec![red(), red(), red()],
            "instruction has 3 pictures, expected at most 2 (instruction_images_limit)",
        ),
        (
            vec![red(), compressed(&[0xff, 0xd8, 0xff, 0xe0, 1, 2])],
            "picture 2 of 2 of the instruction cannot be shown: ",
        ),
        (
            vec![compressed(b"RIFF\\0\\0\\0\\0WEBPVP8 ")],
            "picture 1 of 1 of the instruction cannot be shown: ",
        ),
        (
            vec![compressed(b"")],
            "picture 1 of 1 of the instruction cannot be shown: ",
        ),
        (vec![flat], "image size is 24 x 0"),
    ] {
        let error = ask(&mut session, &shows(images, false)).error.unwrap();
        assert!(error.contains(told), "{error}");
        assert_eq!(session.usage(), before, "{told}");
    }
    good(&mut session, &shows(vec![red(), blue()], false));
}

#[test]
fn pictures_that_are_too_much_for_a_turn_are_refused_with_the_numbers() {
    let mut config = tiny_config();
    config.instruction_images_limit = 64;
    let mut session = seen(config, 10);
    let before = session.usage();
    let answer = ask(&mut session, &shows(vec![red(); 40], false));
    let error = answer.error.unwrap();
    assert!(
        error.starts_with("the instruction's pictures are "),
        "{error}"
    );
    assert!(
        error.contains(" together (what the cache can hold of one turn)"),
        "{error}"
    );
    assert_eq!(session.usage(), before);
}
