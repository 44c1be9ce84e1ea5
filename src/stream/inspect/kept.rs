//! What the weights become in memory: floats or blocks, and what blocks take beside themselves.

use std::collections::BTreeMap;

use candle_core::DType;

use super::Report;
use crate::model::family::OtherPart;
use crate::model::weights::{
    block_name, repacked_bytes, Hollow, Kept, Matrix, Quantization, Source,
};

/// How the weights of a model are kept.
pub struct Keeping<'a> {
    /// Of floats, where each is not kept as it was asked for.
    pub dtype: DType,
    pub on_cpu: bool,
    pub quantization: Quantization,
    /// Where decoder and output layer stand in the tree of tensors.
    pub text_path: &'a str,
    pub head_path: &'a str,
    /// What the files may hold beside.
    pub other_parts: &'static [OtherPart],
}

impl Keeping<'_> {
    fn is_of_decoder(&self, name: &str) -> bool {
        name.starts_with(self.text_path) || name.starts_with(self.head_path)
    }

    /// Type of floats. On the CPU a model was built of the type that it is to have, and some parts are wider than the rest there.
    fn float(&self, kept: &Kept) -> DType {
        match self.on_cpu {
            true => kept.dtype,
            false => self.dtype,
        }
    }

    fn bytes(&self, name: &str, kept: &Kept) -> usize {
        match kept.blocks {
            None => kept.elements * self.float(kept).size_in_bytes(),
            Some(blocks) => self
                .laid_out(name, kept)
                .unwrap_or(kept.elements / blocks.block_size() * blocks.type_size()),
        }
    }

    /// What the decoder's blocks take as the products of the CPU want them, where they are laid out for those.
    fn laid_out(&self, name: &str, kept: &Kept) -> Option<usize> {
        let blocks = kept
            .blocks
            .filter(|_| self.on_cpu && self.is_of_decoder(name))?;
        Matrix::bytes_for_cpu(blocks, (kept.elements / kept.width.max(1), kept.width))
    }

    fn name(&self, kept: &Kept) -> &'static str {
        match kept.blocks {
            None => self.float(kept).as_str(),
            Some(blocks) => block_name(blocks),
        }
    }

    /// What a matrix of blocks takes beside itself. `own_head`: the output layer is not the input embedding, which is looked up only.
    fn beside(&self, name: &str, kept: &Kept, own_head: bool) -> usize {
        let Some(blocks) = kept.blocks.filter(|_| self.on_cpu) else {
            return 0;
        };
        // Those of a tower are laid out by its own products.
        if self.laid_out(name, kept).is_some() || !self.is_of_decoder(name) {
            return 0;
        }
        let is_table = name.contains(".embed_tokens.") || name.contains(".embed_in.");
        if is_table && own_head {
            return 0;
        }
        // Logits are computed of one token at a time.
        let chunks = !is_table && !name.starts_with(self.head_path);
        let rows = kept.elements / kept.width.max(1);
        repacked_bytes(blocks, (rows, kept.width), chunks)
    }

    /// Whether a matrix of floats was to become blocks of 256 and did not; blocks in the file stay what they are.
    fn fell_back(&self, kept: &Kept) -> bool {
        const SUPER_BLOCK: usize = 256;
        self.quantization == Quantization::Q4K
            && kept.blocks.is_some()
            && kept.blocks == self.quantization.blocks(kept.width)
            && !kept.width.is_multiple_of(SUPER_BLOCK)
    }
}

impl Report {
    /// What the model has taken of the source; returns whether some of it is blocks as the products of the CPU want them.
    pub(super) fn fill_kept(&mut self, hollow: &Hollow, keeping: &Keeping) -> bool {
        let seen = hollow.seen();
        let own_head = seen.keys().any(|name| name.starts_with(keeping.head_path));
        let mut narrow = BTreeMap::<(&str, usize), usize>::new();
        for (name, kept) in &seen {
            let elements = kept.elements as u64;
            self.parameters.total += elements;
            match keeping.is_of_decoder(name) {
                true => self.parameters.decoder += elements,
                false => self.parameters.vision += elements,
            }
            let bytes = keeping.bytes(name, kept) as u64;
            self.weight_bytes += bytes;
            self.repacked_bytes += keeping.beside(name, kept, own_head) as u64;
            let kind = keeping.name(kept);
            let amount = self.kept.entry(kind.to_string()).or_default();
            amount.tensors += 1;
            amount.bytes += bytes;
            if keeping.fell_back(kept) {
                *narrow.entry((kind, kept.width)).or_default() += 1;
            }
        }
        for ((kind, width), count) in narrow {
            self.fallbacks.push(format!(
                "{count} matrices as {kind}: rows of {width} do not fill blocks of 256"
            ));
        }
        let listed = hollow.list().into_iter();
        for tensor in listed.filter(|tensor| !seen.contains_key(&tensor.name)) {
            let mut parts = keeping.other_parts.iter();
            match parts.find(|part| part.holds(&tensor.name)) {
                Some(part) => {
                    let amount = self.left_alone.entry(part.what.to_string()).or_default();
                    amount.tensors += 1;
                    amount.bytes += tensor.bytes as u64;
                }
                None => self.unused.push(tensor.name),
            }
        }
        self.unused.sort();
        self.unused.dedup();
        seen.iter()
            .any(|(name, kept)| keeping.laid_out(name, kept).is_some())
    }
}
