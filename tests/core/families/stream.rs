//! The stream of a family whose frames carry no time: it is the published prompt, text and ids, and a session runs on it.
//!
//! Where a published video has words in front of each of its frames, the prompt is that of a video; else it is that of images.

use std::path::Path;

use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::tokenizer::ChatTokenizer;
use inf_mllm::model::vision::View;
use inf_mllm::stream::grammar::{Chat, Grammar, Shot};
use inf_mllm::stream::{FinishReason, Session, SessionConfig};

use crate::support::{ids, instruction, json, load, picture, shot, tensors};

const SYSTEM: &str = "You are a mobile robot.";
const QUESTION: &str = "What is in view?";

/// Two frames and a question, written piece by piece, are what template and tokenizer make of two images and the question.
pub fn check_prompt(dir: &Path) {
    let model = load(dir);
    let tokenizer = &model.tokenizer;
    for system in [SYSTEM, ""] {
        let mut grammar = Grammar::new(Chat::of(&model).unwrap());
        let prefix = grammar.prefix(system, tokenizer);
        let mut pieces = vec![prefix.clone()];
        for second in 0..2 {
            let shot = Shot {
                // Of two sizes, as images may be, and frames of one video are not.
                grid: [1, 2, 2 + second],
                ..shot(second as i64 * 1_000_000_000)
            };
            pieces.push(grammar.frame(model.placeholder(), &shot).text);
        }
        pieces.push(grammar.instruction(QUESTION, tokenizer));
        let whole = published(&model, system);
        assert_eq!(pieces.concat(), whole);

        let wanted = tokenizer.encode_prompt(&whole).unwrap();
        assert_eq!(encoded(tokenizer, &pieces), wanted, "ids of {pieces:?}");
    }
}

/// Ids of the pieces of a stream, of which the first is its protected beginning.
fn encoded(tokenizer: &ChatTokenizer, pieces: &[String]) -> Vec<u32> {
    let mut ids = tokenizer.encode_prompt(&pieces[0]).unwrap();
    let mut before = ids.last().copied().filter(|_| !pieces[0].is_empty());
    for piece in &pieces[1..] {
        ids.extend(tokenizer.encode_after(before, piece).unwrap());
        before = ids.last().copied();
    }
    ids
}

/// Frames and a question, written piece by piece, are what the published processor makes of a video of these frames and the question.
pub fn check_video(dir: &Path) {
    let model = load(dir);
    let tokenizer = &model.tokenizer;
    let scene = json(&dir.join("golden/forward.json"))["scenes"]["frames"].take();
    let mut grammar = Grammar::new(Chat::of(&model).unwrap());
    let mut pieces = vec![grammar.prefix("", tokenizer)];
    for (i, image) in scene["images"].as_array().unwrap().iter().enumerate() {
        let file = dir.join("golden").join(image.as_str().unwrap());
        let (width, height) = image::image_dimensions(file).unwrap();
        let size = (width as usize, height as usize);
        let layout = model.vision.layout(size, View::Frame);
        let shot = Shot {
            grid: layout.grid,
            ..shot(i as i64 * 100_000_000)
        };
        let written = grammar.frame(&model.vision.markup(&layout), &shot);
        pieces.push(written.text);
    }
    let question = &scene["messages"][0]["content"][1]["text"];
    pieces.push(grammar.instruction(question.as_str().unwrap(), tokenizer));
    let published = tensors(&dir.join("golden/frames.inputs.safetensors"));
    let wanted = ids(&published["input_ids"]);
    assert_eq!(encoded(tokenizer, &pieces), wanted, "ids of {pieces:?}");
}

fn published(model: &Mllm, system: &str) -> String {
    let text = |text: &str| Content::Text {
        text: text.to_string(),
    };
    let mut messages = vec![Message {
        role: "user",
        content: vec![Content::Image, Content::Image, text(QUESTION)],
    }];
    if !system.is_empty() {
        let content = vec![text(system)];
        messages.insert(
            0,
            Message {
                role: "system",
                content,
            },
        );
    }
    model.template.render(&messages).unwrap()
}

/// A session takes more frames than fit, answers, and goes on; with a system prompt or without.
pub fn check_session(dir: &Path) {
    for system in [SYSTEM, ""] {
        let mut config = SessionConfig {
            model_dir: dir.to_path_buf(),
            system_prompt: system.to_string(),
            max_new_tokens: 6,
            ..SessionConfig::default()
        };
        config.cache.budget = 160;
        let mut session = Session::new(config).unwrap();
        for round in 0..2 {
            for i in 0..20 {
                let stamp_ms = (round * 20 + i) * 100;
                let colour = [(i * 12) as u8, 90, 200];
                session.push_frame(&picture(stamp_ms, colour)).unwrap();
            }
            let asked = instruction("a", QUESTION);
            let answer = session.ask(&asked, &|| false, &mut |_| ());
            assert_ne!(answer.finish, FinishReason::Error, "{:?}", answer.error);
            assert!(answer.output_tokens > 0);
            assert_eq!(answer.frames_seen, (round as u64 + 1) * 20);
            assert!(answer.vision_tokens > 0);
            assert!(session.usage().used <= 160);
        }
    }
}
