//! How many keys a chunk attends to, from the order of a turn alone.

use crate::cache::{BoundedCache, Plan};

/// Pairs of a query and a key it may see, per head and layer, when `tokens` are appended to `cache`.
///
/// Follows the decoder: a chunk is split at the free room, and a full cache compacts to its plan's length.
pub fn attended(cache: &BoundedCache, tokens: usize) -> u64 {
    let plan: &Plan = cache.plan();
    let mut len = cache.len();
    let mut left = tokens;
    let mut pairs = 0;
    while left > 0 {
        if len == plan.budget {
            len = plan.keep();
        }
        let taken = left.min(plan.budget - len);
        pairs += taken * len + taken * (taken + 1) / 2;
        len += taken;
        left -= taken;
    }
    pairs as u64
}
