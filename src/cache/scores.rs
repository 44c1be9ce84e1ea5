//! What a policy wants to know of the slots of layers, from their ledgers and stores.

use std::borrow::Borrow;

use candle_core::Result;

use super::attention;
use super::findings::Findings;
use super::layer::LayerCache;
use super::policy::Evidence;
use super::shared::Shared;

/// What the policy wants to know of the slots of each layer.
pub fn findings(layers: &mut [&mut LayerCache], shared: &Shared) -> Result<Vec<Findings>> {
    // Without room for candidates nothing needs to be known of them.
    if shared.plan.relevant == 0 {
        let layers = layers.iter();
        let none = layers.map(|layer| Findings::none(layer.slot_maps().len()));
        return Ok(none.collect());
    }
    let scores = slot_scores(layers, shared)?;
    let layers = layers.iter_mut().zip(scores);
    layers
        .map(|(layer, scores)| layer.findings(scores, shared))
        .collect()
}

/// The score of every slot in each kept set of each layer, by slot, as the policy's evidence defines it; empty lists when it needs none.
///
/// With A the causal softmax over all cached keys, that of a window is `S[j] = (1 / n_j) * sum_i mean_h A[h, i, j]` over the
/// queries i of the ring that may see slot j (n_j of them) and over the layer's heads, or those of one KV group (Inf-MLLM,
/// arXiv 2409.09086; averaged after the softmax).
pub fn slot_scores(
    layers: &[impl Borrow<LayerCache>],
    shared: &Shared,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let layers = layers.iter().map(Borrow::borrow);
    let nothing = |layer: &LayerCache| vec![Vec::new(); layer.slot_maps().len()];
    match shared.policy.evidence() {
        Evidence::Age => Ok(layers.map(nothing).collect()),
        Evidence::History { .. } => {
            let histories = layers.map(|layer| layer.ledger.per_set(&layer.ledger.history()));
            Ok(histories.collect())
        }
        Evidence::Window { .. } => {
            let asks = |layer: &LayerCache| layer.ledger.ring().count() > 0;
            let asked = layers.clone().filter(|layer| asks(layer)).map(|layer| {
                let positions = layer.ledger.ring().positions(layer.len());
                let queries = layer.store.queries();
                layer.store.asked(queries, positions, layer.in_use(shared))
            });
            let mut sums = attention::sums(&asked.collect::<Vec<_>>())?.into_iter();
            let scores = layers.map(|layer| match asks(layer) {
                true => layer.per_query(&sums.next().unwrap_or_default()),
                false => nothing(layer),
            });
            Ok(scores.collect())
        }
    }
}

impl LayerCache {
    /// The same of one layer, whose slots have these scores.
    fn findings(&mut self, scores: Vec<Vec<f32>>, shared: &Shared) -> Result<Findings> {
        let mut findings = Findings::none(self.slot_maps().len());
        findings.scores = scores;
        if let Evidence::Window {
            standing,
            novelty,
            value_norms,
            ..
        } = shared.policy.evidence()
        {
            let Self { ledger, store, .. } = self;
            let asked = (standing, novelty);
            let compared = store.compare(ledger.sets(), asked, shared.plan.budget)?;
            if let Some(standing) = compared.standing {
                findings.standing = ledger.per_set(&standing);
            }
            if let Some(novelty) = compared.novelty {
                findings.novelty = ledger.per_set(&novelty);
            }
            if value_norms {
                findings.value_norms = ledger.per_set(&store.value_norms(ledger.len())?);
            }
        }
        Ok(findings)
    }

    /// The scores of each kept set, of the probabilities that its slots get from the ring (`[kv_heads, len]`).
    fn per_query(&self, sums: &[f32]) -> Vec<Vec<f32>> {
        let positions = self.ledger.ring().positions(self.len());
        let mut scores = self.ledger.per_set(sums);
        for (scores, ranks) in scores.iter_mut().zip(self.ledger.ranks()) {
            per_query(scores, ranks, &positions);
        }
        scores
    }
}

/// Divides what each slot gets by the number of queries at `positions` that may see it; `ranks` are those of the slots.
fn per_query(scores: &mut [f32], ranks: &[u32], positions: &[u32]) {
    let oldest = positions.iter().copied().min().unwrap_or(0);
    for (score, &rank) in scores.iter_mut().zip(ranks) {
        let seen = match rank <= oldest {
            true => positions.len(),
            false => positions.iter().filter(|&&p| p >= rank).count(),
        };
        // The newest keys are seen by fewer queries, those behind a past instruction by none.
        *score /= seen.max(1) as f32;
    }
}
