//! What is known of the slots of a layer: attention, likeness, novelty, the length of values.

use candle_core::{DType, Result, Tensor};

use super::bounded::Shared;
use super::layer::LayerCache;
use super::likeness::{directions, likeness};
use super::policy::Evidence;

/// What is known of the slots of a layer: for each kept set a list by slot, empty where the policy does not ask for it.
pub struct Findings {
    pub scores: Vec<Vec<f32>>,
    pub standing: Vec<Vec<f32>>,
    pub novelty: Vec<Vec<f32>>,
    pub value_norms: Vec<Vec<f32>>,
}

impl Findings {
    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let scores = self.scores.iter_mut().chain(&mut self.standing);
        scores.chain(&mut self.novelty).chain(&mut self.value_norms)
    }

    /// The mean over layers that have the same tokens in the same slots.
    pub fn mean(layers: Vec<Self>) -> Option<Self> {
        let share = 1.0 / layers.len() as f32;
        let mut layers = layers.into_iter();
        let mut mean = layers.next()?;
        for mut layer in layers {
            for (sum, list) in mean.lists().zip(layer.lists()) {
                for (sum, x) in sum.iter_mut().zip(list) {
                    *sum += *x;
                }
            }
        }
        for list in mean.lists() {
            list.iter_mut().for_each(|x| *x *= share);
        }
        Some(mean)
    }
}

impl LayerCache {
    /// What the policy wants to know of the slots.
    pub(super) fn findings(&mut self, shared: &Shared) -> Result<Findings> {
        let nothing = || vec![Vec::new(); self.sets.len()];
        let mut findings = Findings {
            scores: nothing(),
            standing: nothing(),
            novelty: nothing(),
            value_norms: nothing(),
        };
        // Without room for candidates nothing needs to be known of them.
        if shared.plan.relevant == 0 {
            return Ok(findings);
        }
        match shared.policy.evidence() {
            Evidence::Age => {}
            Evidence::History { .. } => findings.scores = self.slot_scores(shared)?,
            Evidence::Window {
                standing,
                novelty,
                value_norms,
                ..
            } => {
                findings.scores = self.slot_scores(shared)?;
                let standing = self.standing.as_ref().filter(|_| standing);
                if novelty || standing.is_some() {
                    let keys = directions(&self.keys.narrow(1, 0, self.len())?)?;
                    if let Some(standing) = standing {
                        findings.standing =
                            self.per_set(&likeness(standing, &keys, &self.sets)?)?;
                    }
                    if novelty {
                        self.mean.update(&keys, &self.sets, shared.plan.budget)?;
                        findings.novelty = self.per_set(&flat(&self.mean.novelty(&keys)?)?)?;
                    }
                }
                if value_norms {
                    findings.value_norms = self.value_norms()?;
                }
            }
        }
        Ok(findings)
    }

    /// The score of every slot in each kept set, by slot, as the policy's evidence defines it; empty lists when it needs none.
    pub(super) fn slot_scores(&self, shared: &Shared) -> Result<Vec<Vec<f32>>> {
        match shared.policy.evidence() {
            Evidence::Window { .. } if self.queries.count() > 0 => {
                let positions = self.queries.positions(self.len());
                self.mean_attention(&self.queries.raw()?, &positions, shared)
            }
            Evidence::History { .. } => {
                let budget = self.history.len() / self.keys.dim(0)?;
                let sums = self
                    .history
                    .chunks_exact(budget)
                    .flat_map(|history| &history[..self.len()])
                    .copied()
                    .collect::<Vec<_>>();
                self.per_set(&sums)
            }
            Evidence::Age | Evidence::Window { .. } => Ok(vec![Vec::new(); self.sets.len()]),
        }
    }

    /// Mean attention per slot from raw queries at `positions`, for each kept set.
    ///
    /// With A the causal softmax over all cached keys, `S[j] = (1 / n_j) * sum_i mean_h A[h, i, j]` over the queries i that may
    /// see slot j (n_j of them) and over the layer's heads, or those of one KV group (Inf-MLLM, arXiv 2409.09086; averaged after
    /// the softmax).
    fn mean_attention(
        &self,
        queries: &Tensor,
        positions: &[u32],
        shared: &Shared,
    ) -> Result<Vec<Vec<f32>>> {
        let sums = self.past(shared).sums(queries, positions)?;
        let oldest = positions.iter().copied().min().unwrap_or(0);
        let mut scores = self.per_set(&sums)?;
        for (scores, set) in scores.iter_mut().zip(&self.sets) {
            for (score, &slot) in scores.iter_mut().zip(set.positions()) {
                let seen = match slot <= oldest {
                    true => positions.len(),
                    false => positions.iter().filter(|&&p| p >= slot).count(),
                };
                // The newest keys are seen by fewer queries, those behind a past instruction by none.
                *score /= seen.max(1) as f32;
            }
        }
        Ok(scores)
    }

    /// Means over the KV heads of each kept set, for numbers `[kv_heads, len]`.
    fn per_set(&self, sums: &[f32]) -> Result<Vec<Vec<f32>>> {
        let len = self.len();
        (0..self.sets.len())
            .map(|set| {
                let heads = self.heads_of(set)?;
                let share = 1.0 / heads.len() as f32;
                let mut mean = vec![0.0; len];
                for head in heads {
                    for (mean, sum) in mean.iter_mut().zip(&sums[head * len..][..len]) {
                        *mean += sum * share;
                    }
                }
                Ok(mean)
            })
            .collect()
    }

    /// L2 norms of the values by slot, mean over the KV heads of each kept set.
    fn value_norms(&self) -> Result<Vec<Vec<f32>>> {
        let values = self.values.narrow(1, 0, self.len())?;
        let norms = values.to_dtype(DType::F32)?.sqr()?.sum(2)?.sqrt()?;
        self.per_set(&flat(&norms)?)
    }
}

/// The elements of a tensor of f32.
fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1::<f32>()
}
