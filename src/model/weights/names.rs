//! The spellings of published tensor names.
//!
//! Model code walks one spelling, that of the files on the model hub. Checkpoints written by other releases of transformers spell
//! the same tensors otherwise; the rules here turn those names into the hub's. docs/checkpoints.md says where each was read.

/// Beginnings of names and what takes their place, tried one after the other, each on what the ones before have left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names(pub &'static [(&'static str, &'static str)]);

impl Names {
    /// The hub's spelling of `stored`.
    pub fn hub(&self, stored: &str) -> String {
        let mut name = stored.to_string();
        for (from, to) in self.0 {
            if let Some(rest) = name.strip_prefix(from) {
                name = format!("{to}{rest}");
            }
        }
        name
    }
}
