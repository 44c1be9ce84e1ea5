//! Decoders of which some layers attend and the others keep a state: which do which, and what is checked of both kinds alike.

use super::Unsupported;

/// What a checkpoint calls a layer that attends.
pub const ATTENTION: &str = "full_attention";

/// The widest convolution that is worked on; published models have 3 (LFM2) and 4 (Qwen3.5).
const MAX_WIDTH: usize = 64;

/// Of each of `layers` layers whether it attends, of `layer_types`; the others are of the type `other`.
pub fn attending(types: &[String], layers: usize, other: &str) -> Result<Vec<bool>, Unsupported> {
    if types.len() != layers {
        let value = format!("{} long", types.len());
        let expected = format!("{layers}, num_hidden_layers");
        return Err(Unsupported::new("layer_types", value, expected));
    }
    let attends = |kind: &String| match kind.as_str() {
        ATTENTION => Ok(true),
        kind if kind == other => Ok(false),
        kind => {
            let expected = format!("{ATTENTION} or {other}");
            Err(Unsupported::new("layer_types", kind, expected))
        }
    };
    types.iter().map(attends).collect()
}

/// How many layers keep keys, of which there has to be one.
pub fn keeping_keys(attends: &[bool]) -> Result<usize, Unsupported> {
    match attends.iter().filter(|attends| **attends).count() {
        0 => {
            let expected = format!("at least one layer of {ATTENTION}");
            Err(Unsupported::new("layer_types", "without one", expected))
        }
        layers => Ok(layers),
    }
}

/// Checks the width of a convolution, which `field` gives.
pub fn check_width(field: &str, width: usize) -> Result<(), Unsupported> {
    match (2..=MAX_WIDTH).contains(&width) {
        true => Ok(()),
        false => Err(Unsupported::new(field, width, format!("2 to {MAX_WIDTH}"))),
    }
}
