//! What a tokenizer takes in memory, counted from what the library keeps.

use std::collections::HashMap;
use std::sync::Arc;

use super::ChatTokenizer;

impl ChatTokenizer {
    /// About what it takes in memory, bytes: the vocabulary from tokens to ids and back, and the pairs of tokens that make another, in
    /// each of the tokenizers.
    pub fn memory_bytes(&self) -> usize {
        let plain = [&self.plain, &self.inner, &self.continued];
        let others = plain.windows(2).filter(|two| !Arc::ptr_eq(two[0], two[1]));
        let tokenizers = 2 + others.count();
        let vocabulary: HashMap<String, u32> = self.full.get_vocab(true);
        let spelled = vocabulary.keys().map(|token| allocated(token.len()));
        let both = 2 * (spelled.sum::<usize>() + table_bytes::<(String, u32)>(vocabulary.len()));
        tokenizers * (both + table_bytes::<[u32; 4]>(self.merges))
    }
}

/// What an allocation of so many bytes takes with its header, as glibc has it.
fn allocated(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16).max(32)
}

/// What a hash table of so many entries takes: places for a power of two of them, of which an eighth stays free, with a byte each.
fn table_bytes<Entry>(entries: usize) -> usize {
    (entries * 8 / 7).next_power_of_two() * (size_of::<Entry>() + 1)
}
