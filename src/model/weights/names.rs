//! The spellings of published tensor names.
//!
//! Model code walks one spelling, that of the files on the model hub. Checkpoints written by other releases of transformers spell
//! the same tensors otherwise; the rules here turn those names into the hub's. docs/checkpoints.md says where each was read.

/// Beginnings of names, or parts within them, and what takes their place, tried one after the other, each on what the ones before have
/// left. What begins with a dot is a part, of which the first in a name is meant; all else is a beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names(pub &'static [(&'static str, &'static str)]);

impl Names {
    /// The hub's spelling of `stored`.
    pub fn hub(&self, stored: &str) -> String {
        let mut name = stored.to_string();
        for (from, to) in self.0 {
            if from.starts_with('.') {
                name = name.replacen(from, to, 1);
            } else if let Some(rest) = name.strip_prefix(from) {
                name = format!("{to}{rest}");
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_and_parts_are_turned_one_after_the_other() {
        let names = Names(&[
            ("layers.", "model.layers."),
            (".self_attn.to_q.", ".self_attn.q_proj."),
            (".to_q.", ".never."),
        ]);
        for (stored, hub) in [
            (
                "layers.3.self_attn.to_q.weight",
                "model.layers.3.self_attn.q_proj.weight",
            ),
            ("other.layers.3.to_v.weight", "other.layers.3.to_v.weight"),
            ("self_attn.to_q.weight", "self_attn.never.weight"),
            ("layers.", "model.layers."),
            ("", ""),
        ] {
            assert_eq!(names.hub(stored), hub);
        }
    }
}
