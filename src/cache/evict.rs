//! Which slots of a kept set stay at a compaction.

use std::ops::Range;

use super::findings::Findings;
use super::policy::{Candidates, Policy};
use super::shared::Shared;
use super::shares::{self, Ranked};
use super::slots::{SlotMap, Token};

/// Which slots stay; the lists that lead there are used again by the next compaction.
#[derive(Debug, Default)]
pub struct Choice {
    /// The slots in the order of time.
    order: Vec<u32>,
    /// By slot.
    kept: Vec<bool>,
    /// Of the candidates, oldest first.
    tokens: Vec<Token>,
    scores: Vec<f32>,
    standing: Vec<f32>,
    novelty: Vec<f32>,
    value_norms: Vec<f32>,
    protected: Vec<bool>,
    values: Vec<f32>,
    ranking: Vec<usize>,
}

impl Choice {
    /// Which slots stay, by slot, and all slots in the order of time.
    pub fn kept(&self) -> (&[bool], &[u32]) {
        (&self.kept, &self.order)
    }

    /// Chooses the slots of set number `set`: the prefix, the newest tokens and of the candidates between them the `relevant` ones that
    /// the policy values most.
    pub fn make(
        &mut self,
        slots: &SlotMap,
        findings: &Findings,
        (set, relevant): (usize, usize),
        shared: &Shared,
    ) {
        let plan = &shared.plan;
        slots.order(&mut self.order);
        let len = slots.len();
        let candidates = plan.prefix..len - plan.recent;
        self.kept.clear();
        self.kept.resize(len, true);
        for &slot in &self.order[candidates.clone()] {
            self.kept[slot as usize] = false;
        }
        if relevant == 0 {
            return;
        }
        self.gather(&candidates, slots, findings, set);
        self.protect(shared.protect_boundaries);
        let newest = slots.tokens()[self.order[len - 1] as usize].index;
        self.value(shared.policy.as_ref(), newest, relevant);
        self.keep_most_valued(&candidates, relevant);
        if !shared.camera_shares.is_empty() {
            let ranked = Ranked {
                tokens: slots.tokens(),
                order: &self.order,
                candidates,
                values: &self.values,
                protected: &self.protected,
            };
            let kept = &mut self.kept;
            shares::keep(&shared.camera_shares, plan.budget, &ranked, kept);
        }
    }

    /// What is known of the candidates.
    fn gather(
        &mut self,
        candidates: &Range<usize>,
        slots: &SlotMap,
        findings: &Findings,
        set: usize,
    ) {
        let order = &self.order[candidates.clone()];
        let gather = |from: &[f32], to: &mut Vec<f32>| {
            to.clear();
            if !from.is_empty() {
                to.extend(order.iter().map(|&slot| from[slot as usize]));
            }
        };
        gather(&findings.scores[set], &mut self.scores);
        gather(&findings.standing[set], &mut self.standing);
        gather(&findings.novelty[set], &mut self.novelty);
        gather(&findings.value_norms[set], &mut self.value_norms);
        self.tokens.clear();
        self.tokens
            .extend(order.iter().map(|&slot| slots.tokens()[slot as usize]));
    }

    /// The newest `count` borders stay, whatever their value.
    fn protect(&mut self, count: usize) {
        self.protected.clear();
        self.protected.resize(self.tokens.len(), false);
        let borders = self.tokens.iter().zip(&mut self.protected).rev();
        let borders = borders.filter(|(token, _)| token.mark.boundary);
        borders
            .take(count)
            .for_each(|(_, protected)| *protected = true);
    }

    /// The policy's values, and of what is protected the highest.
    fn value(&mut self, policy: &dyn Policy, newest: u64, room: usize) {
        self.values.clear();
        self.values.resize(self.tokens.len(), 0.0);
        let candidates = Candidates {
            tokens: &self.tokens,
            scores: &self.scores,
            standing: &self.standing,
            novelty: &self.novelty,
            value_norms: &self.value_norms,
            newest,
            room,
            protected: &self.protected,
        };
        policy.values(&candidates, &mut self.values);
        for (value, &protected) in self.values.iter_mut().zip(&self.protected) {
            if protected {
                *value = f32::INFINITY;
            }
        }
    }

    fn keep_most_valued(&mut self, candidates: &Range<usize>, count: usize) {
        let order = &self.order[candidates.clone()];
        self.ranking.clear();
        self.ranking.extend(0..order.len());
        if count < order.len() {
            let values = &self.values;
            // Highest value first; of equal values the newer.
            self.ranking.select_nth_unstable_by(count, |&a, &b| {
                values[b].total_cmp(&values[a]).then(b.cmp(&a))
            });
        }
        for &j in &self.ranking[..count] {
            self.kept[order[j] as usize] = true;
        }
    }
}
