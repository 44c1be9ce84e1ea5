//! Cosmos 3: checkpoints that are pipelines of diffusers, of which only what answers is read.

use std::fs;
use std::path::Path;

use inf_mllm::cache::PolicyKind;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::vision::View;
use inf_mllm::model::DeviceKind;
use inf_mllm::stream::grammar::{Chat, Grammar};
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::{FinishReason, Session, SessionConfig};
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::support::{
    golden, instruction, json, load, picture, shot, tensors, tiny_config, try_load,
};
use crate::variants::copy;

fn refused(dir: &Path, words: &[&str]) {
    let error = try_load(dir).err().expect("a damaged checkpoint loads");
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn report(dir: &Path) -> Report {
    let mut session = SessionConfig {
        device: DeviceKind::Cpu,
        ..SessionConfig::default()
    };
    session.cache.budget = 512;
    Report::of(
        dir,
        &Options {
            session: &session,
            memory: None,
        },
    )
}

/// The generators are known by their names and told apart from what is strange.
#[test]
fn the_other_parts_are_left_alone_and_told() {
    let edge = report(&golden("families/cosmos3_edge"));
    assert!(edge.complete(), "{:?}", edge.problems);
    assert_eq!(edge.family, "Cosmos 3 Edge");
    let parts = edge.left_alone.iter();
    let parts = parts.map(|(part, amount)| (part.as_str(), amount.tensors));
    let wanted = [
        ("generator of actions", 5),
        ("generator of pictures and videos", 3 * 11 + 1 + 4 + 4),
    ];
    assert!(parts.eq(wanted), "{:?}", edge.left_alone);
    assert!(edge.unused.is_empty(), "{:?}", edge.unused);

    let dir = copy("cosmos3_omni");
    let whole = report(dir.path());
    assert!(whole.complete(), "{:?}", whole.problems);
    assert_eq!(whole.family, "Cosmos 3");
    let parts = whole.left_alone.iter();
    let parts = parts.map(|(part, amount)| (part.as_str(), amount.tensors));
    let wanted = [
        ("generator of actions", 5),
        ("generator of pictures and videos", 3 * 11 + 1 + 4 + 4),
        ("generator of sound", 5),
    ];
    assert!(parts.eq(wanted), "{:?}", whole.left_alone);
    assert!(whole.unused.is_empty(), "{:?}", whole.unused);
    let told = whole.to_string();
    for word in ["left alone", "generator of sound: 5 tensors"] {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }

    let shard = dir.path().join("vision_encoder/model.safetensors");
    let mut tower = tensors(&shard);
    tower.insert(
        "blocks.7.strange.weight".to_string(),
        tower["pos_embed.weight"].clone(),
    );
    candle_core::safetensors::save(&tower, &shard).unwrap();
    let strange = report(dir.path());
    assert_eq!(strange.unused, ["model.visual.blocks.7.strange.weight"]);
    assert_eq!(strange.weight_bytes, whole.weight_bytes);
}

/// A pipeline has a folder for each part, and its index names files in them.
#[test]
fn an_index_names_files_in_folders_and_none_outside() {
    let dir = copy("cosmos3_omni");
    let index = "model.safetensors.index.json";
    let whole = json(&dir.path().join(index));
    let place = |file: &str| {
        let mut index = whole.clone();
        index["weight_map"]["pos_embed.weight"] = file.into();
        fs::write(
            dir.path().join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
    };
    let tower = "vision_encoder/model.safetensors";
    let outside = TempDir::new().unwrap();
    let copied = outside.path().join("model.safetensors");
    fs::copy(dir.path().join(tower), &copied).unwrap();
    for file in [
        "../model.safetensors",
        "vision_encoder/../../model.safetensors",
        "vision_encoder/..",
        copied.to_str().unwrap(),
        "/",
        "",
        ".",
    ] {
        place(file);
        refused(dir.path(), &[index, "within the folder", file]);
    }
    place("vision_encoder/other.safetensors");
    refused(dir.path(), &["vision_encoder/other.safetensors", "missing"]);
    place("vision_encoder");
    refused(dir.path(), &["vision_encoder", "a folder"]);
    place("./vision_encoder/model.safetensors");
    refused(dir.path(), &["is there twice"]);
    place(tower);
    load(dir.path());
    // What a tensor would be called is no way to another one's place.
    let shard = dir.path().join(tower);
    let mut tower = tensors(&shard);
    let double = tower["pos_embed.weight"].clone();
    tower.insert("model.visual.pos_embed.weight".to_string(), double);
    candle_core::safetensors::save(&tower, &shard).unwrap();
    refused(dir.path(), &["pos_embed.weight", "is there twice"]);
}

/// Older snapshots of Cosmos 3 have the tokenizer in the pipeline's folder alone.
#[test]
fn the_tokenizer_of_a_pipeline_is_found_in_its_folder() {
    let dir = copy("cosmos3_omni");
    let folder = dir.path().join("text_tokenizer");
    fs::create_dir(&folder).unwrap();
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    ];
    for name in names {
        fs::rename(dir.path().join(name), folder.join(name)).unwrap();
    }
    let prefix = |dir: &Path| {
        let model = load(dir);
        let chat = Chat::of(&model).unwrap();
        let mut grammar = Grammar::new(chat);
        let text = grammar.prefix("Be brief.", &model.tokenizer);
        model.tokenizer.encode(&text).unwrap()
    };
    assert_eq!(prefix(dir.path()), prefix(&golden("families/cosmos3_omni")));
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    refused(dir.path(), &["tokenizer.json", "missing"]);
}

const EDGE: &str = "cosmos3_edge";

#[test]
fn pictures_become_the_published_sizes() {
    let dir = golden("families").join(EDGE);
    let model = load(&dir);
    let forward = json(&dir.join("golden/forward.json"));
    let cases: Vec<[usize; 4]> = serde_json::from_value(forward["resized"].clone()).unwrap();
    for [height, width, down, across] in cases {
        let layout = model.vision.layout((width, height), View::Image { of: 1 });
        let [_, rows, columns] = layout.grid;
        assert_eq!(
            (rows * 4, columns * 4),
            (down, across),
            "{height} x {width}"
        );
    }
}

#[test]
fn a_question_reads_as_the_chat_template_writes_it_and_opens_a_thought() {
    let model = load(&golden("families").join(EDGE));
    let (chat, known) = Chat::find(&model).unwrap();
    assert!(known && chat.thinks());
    for system in ["Be brief.", ""] {
        let mut grammar = Grammar::new(chat.clone());
        let mut stream = grammar.prefix(system, &model.tokenizer);
        let written = grammar.frame(model.placeholder(), &shot(1_500_000_000));
        stream.push_str(&written.text.replace("<1.5 seconds>", ""));
        stream.push_str(&grammar.instruction("What is in view?", &model.tokenizer));
        let text = |text: &str| Content::Text {
            text: text.to_string(),
        };
        let mut messages = vec![Message {
            role: "user",
            content: vec![Content::Image, text("What is in view?")],
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
        assert_eq!(stream, model.template.render(&messages).unwrap());
        assert!(stream.ends_with("<think>\n"), "{stream}");
    }
}

#[test]
fn a_conversation_reads_as_the_chat_template_writes_it_once_it_has_gone_on() {
    let model = load(&golden("families").join(EDGE));
    let mut grammar = Grammar::new(Chat::find(&model).unwrap().0);
    let mut stream = grammar.prefix("", &model.tokenizer);
    stream.push_str(&grammar.answered_instruction("What is in view?", &model.tokenizer));
    stream.push_str("A red box.");
    grammar.answered();
    stream.push_str(&grammar.instruction("And before?", &model.tokenizer));
    let turn = |role, text: &str| Message {
        role,
        content: vec![Content::Text {
            text: text.to_string(),
        }],
    };
    let messages = [
        turn("user", "What is in view?"),
        turn("assistant", "A red box."),
        turn("user", "And before?"),
    ];
    assert_eq!(stream, model.template.render(&messages).unwrap());
}

#[test]
fn a_choice_is_answered_behind_a_closed_thought_and_not_behind_two() {
    let mut config = SessionConfig {
        model_dir: golden("families").join(EDGE),
        system_prompt: String::new(),
        ..tiny_config()
    };
    config.cache.budget = 512;
    let mut session = Session::new(config).unwrap();
    session.push_frame(&picture(0, [200, 90, 20])).unwrap();
    let mut asked = instruction("a", "What?");
    asked.choices = vec!["A red box.".to_string(), "none".to_string()];
    let answer = session.ask(&asked, &|| false, &mut |_| ());
    let tokenizer = load(&golden("families").join(EDGE)).tokenizer;
    assert_eq!(tokenizer.decode(answer.answer_ids()).unwrap(), answer.text);
    let whole = tokenizer.decode(&answer.token_ids).unwrap();
    assert_eq!(whole, format!("\n</think>\n\n{}", answer.text));
}

#[test]
fn a_conversation_goes_on_through_evictions_and_begins_anew() {
    for policy in PolicyKind::ALL {
        if policy == PolicyKind::Full {
            continue;
        }
        let mut config = SessionConfig {
            model_dir: golden("families").join(EDGE),
            system_prompt: String::new(),
            ..tiny_config()
        };
        config.cache.policy = policy;
        config.cache.budget = 512;
        let mut session = Session::new(config).unwrap();
        let run = |session: &mut Session| {
            for i in 0..30 {
                let colour = [(i * 40 % 256) as u8, 90, 200];
                session.push_frame(&picture(i * 100, colour)).unwrap();
            }
            let answer = session.ask(&instruction("a", "What?"), &|| false, &mut |_| ());
            assert_ne!(
                answer.finish,
                FinishReason::Error,
                "{}: {answer:?}",
                policy.name()
            );
            assert!(answer.vision_tokens > 0, "{}", policy.name());
            let kept = policy != PolicyKind::LastFrames;
            assert_eq!(session.usage().compactions > 0, kept, "{}", policy.name());
            (answer.token_ids, answer.mean_logprob)
        };
        let first = run(&mut session);
        session.reset().unwrap();
        assert_eq!(run(&mut session), first, "{}", policy.name());
    }
}

#[test]
fn configurations_that_cannot_be_computed_are_named_with_value_and_expectation() {
    let edited = |file: &str, path: &str, value: Value, words: &[&str]| {
        let dir = copy(EDGE);
        let file = dir.path().join(file);
        let mut config = json(&file);
        let (parent, field) = path.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[field] = value;
        fs::write(&file, config.to_string()).unwrap();
        refused(dir.path(), words);
        refused(dir.path(), &["expected"]);
    };
    let config =
        |path: &str, value: Value, words: &[&str]| edited("config.json", path, value, words);
    config(
        "/text_config/hidden_act",
        json!("silu"),
        &["text_config.hidden_act", "silu", "relu2"],
    );
    config(
        "/text_config/rope_parameters/mrope_section",
        json!([4, 2, 1]),
        &["mrope_section"],
    );
    config(
        "/text_config/rope_parameters/mrope_interleaved",
        json!(false),
        &["text_config.rope_parameters", "not interleaved"],
    );
    config(
        "/text_config/num_hidden_layers",
        json!(0),
        &["num_hidden_layers"],
    );
    config(
        "/vision_config/num_patches",
        json!(143),
        &["vision_config.num_patches", "143", "square"],
    );
    config(
        "/vision_config/num_patches",
        json!(0),
        &["vision_config.num_patches", "0"],
    );
    config(
        "/vision_config/num_patches",
        json!(u64::MAX >> 1),
        &["vision_config.num_patches"],
    );
    config(
        "/vision_config/hidden_size",
        json!(u64::MAX >> 1),
        &["vision_config.hidden_size"],
    );
    config(
        "/vision_config/patch_size",
        json!(0),
        &["vision_config.patch_size", "0"],
    );
    config(
        "/vision_config/spatial_merge_size",
        json!(3),
        &["spatial_merge_size", "2", "3"],
    );
    config(
        "/vision_config/hidden_act",
        json!("relu"),
        &["vision_config.hidden_act", "relu"],
    );
    config(
        "/vision_config/layer_norm_eps",
        json!(-1.0),
        &["layer_norm_eps", "-1"],
    );
    config(
        "/projector_hidden_size",
        json!(0),
        &["projector_hidden_size", "0"],
    );
    config(
        "/projector_hidden_size",
        json!(50),
        &["projector_config.merger_intermediate_size", "52", "50"],
    );
    config(
        "/projector_config/out_hidden_size",
        json!(40),
        &["projector_config.out_hidden_size", "40", "48"],
    );
    config(
        "/projector_config/use_postshuffle_norm",
        json!(true),
        &["use_postshuffle_norm", "true"],
    );
    edited(
        "preprocessor_config.json",
        "/temporal_patch_size",
        json!(2),
        &["preprocessor_config.json", "temporal_patch_size", "2", "1"],
    );
}
