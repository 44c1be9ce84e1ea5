//! Tokens that stand for pictures or for nothing: no answer holds one.

use super::ends::Ends;
use super::tokenizer::ChatTokenizer;

/// Control tokens of the checkpoints that are read which stand for images, for videos, around them, or fill up a batch.
const NAMES: [&str; 14] = [
    "<image>",
    "<video>",
    "<pad>",
    "<fake_token_around_image>",
    "<global-img>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
];

/// The first part of the tokens that number the tiles of a picture, as in `<row_1_col_2>`.
const TILE: &str = "<row_";

/// Ids that no answer holds: `given`, which the family names, the control tokens known to stand for pictures or for nothing, and ids up
/// to `vocabulary` that no token has; but none that ends an answer.
pub fn placeholders(
    given: impl IntoIterator<Item = u32>,
    tokenizer: &ChatTokenizer,
    vocabulary: usize,
    ends: &Ends,
) -> Vec<u32> {
    let controls = tokenizer.controls();
    let named = controls.filter(|(name, _)| NAMES.contains(name) || name.starts_with(TILE));
    let missing = (0..vocabulary as u32).filter(|&id| !tokenizer.has(id));
    let mut ids = given.into_iter().collect::<Vec<_>>();
    ids.extend(named.map(|(_, id)| id).chain(missing));
    ids.retain(|&id| !ends.contains(id));
    ids.sort_unstable();
    ids.dedup();
    ids
}
