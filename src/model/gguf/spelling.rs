//! Names of tensors in GGUF files and in published checkpoints, and those that converters cut into pieces.

use super::tensors::Form;

/// Pairs of a name in the file and the published one, without `.weight` or `.bias` at their ends; `#` is the number of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Spelling(pub &'static [(&'static str, &'static str)]);

impl Spelling {
    /// The published name of `stored`, if it is a tensor of one of `layers` layers or of none.
    pub fn hub(&self, stored: &str, layers: usize) -> Option<String> {
        let name = Name::parse(stored);
        let fits = |&&(known, _): &&(&str, &str)| known == name.stem || known == name.pattern;
        let (known, hub) = self.0.iter().find(fits)?;
        match name.layer {
            Some(layer) if known.contains('#') && layer >= layers => None,
            _ => Some(name.rename(hub)),
        }
    }

    /// The name in the file of the published one.
    pub fn stored(&self, hub: &str) -> Option<String> {
        let name = Name::parse(hub);
        let fits = |&&(_, known): &&(&str, &str)| known == name.stem || known == name.pattern;
        let (stored, _) = self.0.iter().find(fits)?;
        Some(name.rename(stored))
    }
}

/// A published tensor that converters cut into pieces: whole names; `#` is the number of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub hub: &'static str,
    pub pieces: &'static [&'static str],
    /// How the pieces become the published tensor.
    pub form: Form,
}

impl Cut {
    /// Which piece `stored` is, and of which layer, if it is one.
    pub fn piece(&self, stored: &str) -> Option<(usize, Option<usize>)> {
        let layer = Name::parse(stored).layer;
        let piece = self.names(layer).position(|name| name == stored)?;
        let layer = layer.filter(|_| self.hub.contains('#'));
        Some((piece, layer))
    }

    /// The names of the pieces in the file.
    pub fn names(&self, layer: Option<usize>) -> impl Iterator<Item = String> {
        self.pieces.iter().map(move |name| numbered(name, layer))
    }

    /// The published name.
    pub fn hub(&self, layer: Option<usize>) -> String {
        numbered(self.hub, layer)
    }

    /// The name in the file of the first piece of the published tensor.
    pub fn stored(&self, hub: &str) -> Option<String> {
        let layer = Name::parse(hub).layer;
        (self.hub(layer) == hub).then(|| numbered(self.pieces[0], layer))
    }
}

/// `pattern` with the number of a layer in the place of `#`.
fn numbered(pattern: &str, layer: Option<usize>) -> String {
    match layer {
        Some(layer) => pattern.replacen('#', &layer.to_string(), 1),
        None => pattern.to_string(),
    }
}

/// The parts of a tensor's name.
pub struct Name<'a> {
    /// Without the kind.
    pub stem: &'a str,
    /// The stem with `#` in the place of its number; empty if it has none.
    pub pattern: String,
    layer: Option<usize>,
    /// `weight`, `bias`, or nothing.
    pub kind: &'a str,
}

impl<'a> Name<'a> {
    pub fn parse(name: &'a str) -> Self {
        let (stem, kind) = match name.rsplit_once('.') {
            Some((stem, kind @ ("weight" | "bias"))) => (stem, kind),
            _ => (name, ""),
        };
        let mut layer = None;
        let parts = stem.split('.').map(|part| match part.parse::<usize>() {
            // Only the way that a number is written by the converters.
            Ok(number) if layer.is_none() && number.to_string() == part => {
                layer = Some(number);
                "#"
            }
            _ => part,
        });
        let pattern = parts.collect::<Vec<_>>().join(".");
        Self {
            stem: if stem.contains('#') { "" } else { stem },
            pattern: if layer.is_some() {
                pattern
            } else {
                String::new()
            },
            layer,
            kind,
        }
    }

    /// The number in it.
    pub fn layer(&self) -> Option<usize> {
        self.layer
    }

    fn rename(&self, pattern: &str) -> String {
        let mut name = numbered(pattern, self.layer);
        if !self.kind.is_empty() {
            name.push('.');
            name.push_str(self.kind);
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::{Cut, Form, Spelling};

    const SPELLING: Spelling = Spelling(&[
        ("output_norm", "model.norm"),
        ("blk.#.attn_q", "model.layers.#.self_attn.q_proj"),
        ("mm.0", "linear_1"),
        ("v.class_embd", "embeddings.class_embedding"),
    ]);

    #[test]
    fn names_are_translated_both_ways() {
        for (stored, hub) in [
            ("output_norm.weight", "model.norm.weight"),
            (
                "blk.11.attn_q.bias",
                "model.layers.11.self_attn.q_proj.bias",
            ),
            ("v.class_embd", "embeddings.class_embedding"),
            ("mm.0.bias", "linear_1.bias"),
        ] {
            assert_eq!(SPELLING.hub(stored, 12).as_deref(), Some(hub));
            assert_eq!(SPELLING.stored(hub).as_deref(), Some(stored));
        }
    }

    #[test]
    fn other_names_are_not() {
        for stored in [
            "blk.12.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.attn_q.weight",
            "blk.#.attn_q.weight",
            "blk.1.attn_q.scale",
            "mm.1.bias",
            "",
        ] {
            assert_eq!(SPELLING.hub(stored, 12), None, "{stored}");
        }
    }

    #[test]
    fn pieces_are_told_from_other_tensors() {
        let rows = Cut {
            hub: "blocks.#.attn.qkv.weight",
            pieces: &["v.blk.#.attn_q.weight", "v.blk.#.attn_k.weight"],
            form: Form::Rows,
        };
        assert_eq!(rows.piece("v.blk.3.attn_k.weight"), Some((1, Some(3))));
        assert_eq!(rows.hub(Some(3)), "blocks.3.attn.qkv.weight");
        assert_eq!(
            rows.stored("blocks.3.attn.qkv.weight").as_deref(),
            Some("v.blk.3.attn_q.weight")
        );
        assert_eq!(rows.piece("v.blk.3.attn_k.bias"), None);
        assert_eq!(rows.stored("blocks.3.attn.qkv.bias"), None);
        let frames = Cut {
            hub: "patch_embed.proj.weight",
            pieces: &["v.patch_embd.weight", "v.patch_embd.weight.1"],
            form: Form::Frames,
        };
        assert_eq!(frames.piece("v.patch_embd.weight.1"), Some((1, None)));
        assert_eq!(frames.piece("v.patch_embd.weight.2"), None);
        assert_eq!(frames.piece("v.patch_embd.bias"), None);
    }
}
