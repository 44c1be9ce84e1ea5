//! A SentencePiece vocabulary with scores as BPE with merges, which the tokenizer library computes.
//!
//! SentencePiece (and llama.cpp) joins the two neighbours whose union has the highest score, the leftmost of equals; every way to
//! cut a piece into two pieces is therefore a merge, and its rank is the piece's.

use std::collections::HashMap;

use serde_json::{json, Value as Json};

use super::vocabulary::kind;
use super::Gguf;
use crate::model::ModelError;

const SCORES: &str = "tokenizer.ggml.scores";
const TOKENS: &str = super::vocabulary::TOKENS;

/// Longest piece, bytes: the time for a piece's merges grows with the square of this. Published ones have up to 93.
const MAX_PIECE: usize = 256;

impl Gguf {
    /// What `tokenizer.json` says of such a vocabulary, but for the vocabulary itself.
    pub(super) fn sentence_piece(
        &self,
        tokens: &[&str],
        kinds: &[u64],
    ) -> Result<Json, ModelError> {
        let scores = self.elements(SCORES, "a float", |value| {
            value.float().filter(|score| !score.is_nan())
        })?;
        if scores.len() != tokens.len() {
            let expected = format!("{}, that of {TOKENS}", tokens.len());
            return Err(self.unsupported(&format!("length of {SCORES}"), scores.len(), expected));
        }
        // What is recognised as a token of its own takes no part: plain text must never become a control token.
        let is_piece = |id: &usize| kinds[*id] == kind::NORMAL;
        let pieces = (0..tokens.len()).filter(is_piece).collect::<Vec<_>>();
        if let Some(id) = pieces.iter().find(|&&id| tokens[id].len() > MAX_PIECE) {
            let value = format!("{} bytes long", tokens[*id].len());
            let expected = format!("at most {MAX_PIECE}");
            return Err(self.unsupported(&format!("{TOKENS}[{id}]"), value, expected));
        }
        let unknown = kinds.iter().position(|&kind| kind == kind::UNKNOWN);
        let space_in_front = self
            .truth("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        let replaced = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
        let restored = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
        let mut normalizers = vec![replaced];
        let mut decoders = vec![
            restored,
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if space_in_front {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "merges": merges(tokens, &scores, &pieces),
                "byte_fallback": true,
                "fuse_unk": true,
                "unk_token": unknown.map(|id| tokens[id]),
                "ignore_merges": false,
            },
        }))
    }
}

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// Every cut of one of `pieces` (ids) into two of them, the highest score first.
fn merges(tokens: &[&str], scores: &[f64], pieces: &[usize]) -> Vec<[String; 2]> {
    let ids = pieces
        .iter()
        .map(|&id| (tokens[id], id))
        .collect::<HashMap<_, _>>();
    let mut cuts = Vec::new();
    for &id in pieces {
        for (at, _) in tokens[id].char_indices().skip(1) {
            let (left, right) = tokens[id].split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                cuts.push((id, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    let texts = |(_, left, right): (usize, usize, usize)| {
        [tokens[left].to_string(), tokens[right].to_string()]
    };
    cuts.into_iter().map(texts).collect()
}
