//! Text from ids one by one: joined it is what decoding all of them at once gives, for every kind of vocabulary.

use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::text_stream::TextStream;
use inf_mllm::model::tokenizer::ChatTokenizer;
use proptest::prelude::*;

use crate::support::{demo_dir, golden};

/// Every tokenizer that there is, by the folder it is from.
fn tokenizers() -> Vec<(String, ChatTokenizer)> {
    let families = std::fs::read_dir(golden("families")).unwrap();
    let mut dirs = families
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.join("tokenizer.json").exists())
        .collect::<Vec<_>>();
    dirs.extend(["tiny_smolvlm"].map(golden));
    dirs.push(demo_dir());
    let files = std::fs::read_dir(golden("gguf")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    dirs.extend(files.filter(|file| {
        let name = file.file_name().unwrap().to_string_lossy();
        name.ends_with(".gguf") && !name.starts_with("mmproj")
    }));
    dirs.into_iter()
        .map(|dir| {
            let checkpoint = Checkpoint::open(&dir).unwrap();
            let tokenizer = ChatTokenizer::load(&checkpoint).unwrap();
            (dir.display().to_string(), tokenizer)
        })
        .collect()
}

fn streamed(tokenizer: &ChatTokenizer, ids: &[u32]) -> (String, Vec<String>) {
    let mut stream = TextStream::default();
    let pieces = ids.iter().map(|&id| stream.push(id, tokenizer).unwrap());
    let pieces = pieces.collect::<Vec<_>>();
    let rest = stream.finish(tokenizer).unwrap();
    (pieces.concat() + &rest, pieces)
}

/// Ids whose tokens are a byte alone, a run of blanks or a control token: what the pieces of a text fall apart at.
fn corners(tokenizer: &ChatTokenizer) -> Vec<u32> {
    let mut ids = (0..tokenizer.vocab_size() as u32)
        .filter(|&id| match tokenizer.text_token(id) {
            None => true,
            Some(token) => {
                let alone = tokenizer.decode(&[id]).unwrap();
                token.starts_with("<0x") || alone.contains('\u{FFFD}') || alone.trim().is_empty()
            }
        })
        .collect::<Vec<_>>();
    // Beyond the vocabulary.
    ids.push(tokenizer.vocab_size() as u32 + 5);
    ids
}

#[test]
fn ids_one_by_one_give_the_text_of_all() {
    let tokenizers = tokenizers();
    assert!(tokenizers.len() >= 8, "{}", tokenizers.len());
    for (name, tokenizer) in tokenizers {
        let any_id = prop_oneof![
            0..tokenizer.vocab_size() as u32,
            prop::sample::select(corners(&tokenizer)),
        ];
        proptest!(ProptestConfig::with_cases(256), |(ids in prop::collection::vec(any_id, 0..60))| {
            let (text, _) = streamed(&tokenizer, &ids);
            prop_assert_eq!(text, tokenizer.decode(&ids).unwrap(), "{}", name);
        });
        let words = "\\PC{0,12}|[a-z ]{0,12}|[😀中é]{0,9}";
        proptest!(ProptestConfig::with_cases(64), |(words in prop::collection::vec(words, 0..6))| {
            let ids = tokenizer.encode_text(&words.concat()).unwrap();
            let (text, _) = streamed(&tokenizer, &ids);
            prop_assert_eq!(text, tokenizer.decode(&ids).unwrap(), "{}", name);
        });
    }
}

#[test]
fn words_come_with_their_last_token_and_characters_whole() {
    for (name, tokenizer) in tokenizers() {
        let ids = tokenizer.encode_text("a red box, 中😀 then").unwrap();
        let (text, pieces) = streamed(&tokenizer, &ids);
        assert!(text.ends_with(" then"), "{name}: {text:?}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
        // All but the last character has been handed out when the last token has come.
        assert_eq!(pieces.concat(), text, "{name}");
        let early = pieces[..pieces.len() / 2].concat();
        assert!(early.contains("red"), "{name}: {pieces:?}");
    }
}
