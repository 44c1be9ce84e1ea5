//! How old the kept tokens are, in tokens of the stream, over all layers and kept sets.

use serde::{Deserialize, Serialize};

use crate::cache::BoundedCache;

/// A kept token is stale when it is older than this many budgets: the measure of freezing.
pub const STALE_BUDGETS: u64 = 8;

/// The true ages of what a cache keeps, without the prefix, which stays for ever by design.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ages {
    /// Tokens of the stream so far.
    pub at: u64,
    pub mean: f64,
    /// The 10 %, 50 % and 90 % quantiles and the largest.
    pub quantiles: [u64; 4],
    /// Share of kept tokens older than [`STALE_BUDGETS`] times the budget.
    pub stale: f64,
    /// Kept tokens per kept set, on average, by age: bin 0 holds age 0, bin `i` ages `2^(i-1) .. 2^i`.
    pub histogram: Vec<f64>,
}

impl Ages {
    /// `None` as long as there is nothing but the prefix.
    pub fn of(cache: &BoundedCache) -> Option<Self> {
        let plan = cache.plan();
        let at = cache.usage().tokens_seen;
        let mut sets = 0;
        let mut ages = Vec::new();
        for set in cache.layers().iter().flat_map(|layer| layer.sets()) {
            sets += 1;
            let kept = set.iter().map(|token| token.index);
            let kept = kept.filter(|&index| index >= plan.prefix as u64);
            ages.extend(kept.map(|index| at - 1 - index));
        }
        if ages.is_empty() {
            return None;
        }
        ages.sort_unstable();
        let mut histogram = Vec::new();
        for &age in &ages {
            let bin = (u64::BITS - age.leading_zeros()) as usize;
            if bin >= histogram.len() {
                histogram.resize(bin + 1, 0.0);
            }
            histogram[bin] += 1.0 / f64::from(sets);
        }
        let quantile = |share: f64| ages[((ages.len() - 1) as f64 * share).round() as usize];
        let limit = STALE_BUDGETS * plan.budget as u64;
        let stale = ages.len() - ages.partition_point(|&age| age <= limit);
        Some(Self {
            at,
            mean: ages.iter().sum::<u64>() as f64 / ages.len() as f64,
            quantiles: [quantile(0.1), quantile(0.5), quantile(0.9), quantile(1.0)],
            stale: stale as f64 / ages.len() as f64,
            histogram,
        })
    }
}
