//! What a policy wants to know of the slots of a layer, from its ledger and its store.

use candle_core::Result;

use super::findings::Findings;
use super::layer::LayerCache;
use super::policy::Evidence;
use super::shared::Shared;

impl LayerCache {
    /// What the policy wants to know of the slots.
    pub(super) fn findings(&mut self, shared: &Shared) -> Result<Findings> {
        let mut findings = Findings::none(self.slot_maps().len());
        // Without room for candidates nothing needs to be known of them.
        if shared.plan.relevant == 0 {
            return Ok(findings);
        }
        findings.scores = self.slot_scores(shared)?;
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

    /// The score of every slot in each kept set, by slot, as the policy's evidence defines it; empty lists when it needs none.
    ///
    /// With A the causal softmax over all cached keys, that of a window is `S[j] = (1 / n_j) * sum_i mean_h A[h, i, j]` over the
    /// queries i of the ring that may see slot j (n_j of them) and over the layer's heads, or those of one KV group (Inf-MLLM,
    /// arXiv 2409.09086; averaged after the softmax).
    pub(super) fn slot_scores(&self, shared: &Shared) -> Result<Vec<Vec<f32>>> {
        let ring = self.ledger.ring();
        match shared.policy.evidence() {
            Evidence::Window { .. } if ring.count() > 0 => {
                let positions = ring.positions(self.len());
                let sums = self.store.ring_sums(&positions, self.in_use(shared))?;
                let mut scores = self.ledger.per_set(&sums);
                for (scores, ranks) in scores.iter_mut().zip(self.ledger.ranks()) {
                    per_query(scores, ranks, &positions);
                }
                Ok(scores)
            }
            Evidence::History { .. } => Ok(self.ledger.per_set(&self.ledger.history())),
            Evidence::Age | Evidence::Window { .. } => Ok(vec![Vec::new(); self.slot_maps().len()]),
        }
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
