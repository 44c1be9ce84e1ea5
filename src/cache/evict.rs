//! A compaction of one layer: which slots stay, and what moves.

use candle_core::Result;

use super::bounded::Shared;
use super::compact::move_rows;
use super::layer::LayerCache;
use super::policy::{Candidates, Evidence};
use super::slots::{Move, SlotMap, Token};

/// Lists that a compaction fills, kept from one to the next.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The slots in the order of time.
    order: Vec<u32>,
    tokens: Vec<Token>,
    scores: Vec<f32>,
    standing: Vec<f32>,
    value_norms: Vec<f32>,
    values: Vec<f32>,
    ranking: Vec<usize>,
    /// By slot.
    kept: Vec<bool>,
    moves: Vec<Move>,
}

impl LayerCache {
    /// Keeps the prefix, the newest tokens and the candidates that the policy values most; renumbers what is left.
    pub(super) fn compact(&mut self, shared: &Shared, work: &mut Workspace) -> Result<()> {
        // Without room for candidates nothing needs to be known of them.
        let evidence = match shared.plan.relevant {
            0 => Evidence::Age,
            _ => shared.policy.evidence(),
        };
        let empty = || vec![Vec::new(); self.sets.len()];
        let (scores, standing) = match evidence {
            Evidence::Age => (empty(), empty()),
            _ => (self.slot_scores(shared)?, self.standing_scores()?),
        };
        let value_norms = match evidence {
            Evidence::Window {
                value_norms: true, ..
            } => self.value_norms()?,
            _ => empty(),
        };
        for i in 0..self.sets.len() {
            let set = &mut self.sets[i];
            set.order(&mut work.order);
            choose(
                set,
                [&scores[i], &standing[i], &value_norms[i]],
                shared,
                work,
            );
            set.evict(
                &work.kept,
                &work.order,
                shared.plan.relevant,
                &mut work.moves,
            );
            let heads = self.heads_of(i)?;
            move_rows(&self.keys, heads.clone(), &work.moves)?;
            move_rows(&self.values, heads.clone(), &work.moves)?;
            self.moved += work.moves.len() as u64;
            let budget = shared.plan.budget;
            let histories = self.history.chunks_exact_mut(budget);
            for history in histories.skip(heads.start).take(heads.len()) {
                for &(from, to) in &work.moves {
                    history[to as usize] = history[from as usize];
                }
            }
        }
        self.compactions += 1;
        Ok(())
    }
}

/// Marks in `work.kept` the slots of one set that stay; `evidence` holds scores, standing scores and value norms by slot.
fn choose(set: &SlotMap, evidence: [&[f32]; 3], shared: &Shared, work: &mut Workspace) {
    let plan = &shared.plan;
    let len = set.len();
    let candidates = plan.prefix..len - plan.recent;
    work.kept.clear();
    work.kept.resize(len, true);
    for &slot in &work.order[candidates.clone()] {
        work.kept[slot as usize] = false;
    }
    if plan.relevant == 0 {
        return;
    }
    let slots = &work.order[candidates];
    let gather = |from: &[f32], to: &mut Vec<f32>| {
        to.clear();
        if !from.is_empty() {
            to.extend(slots.iter().map(|&slot| from[slot as usize]));
        }
    };
    gather(evidence[0], &mut work.scores);
    gather(evidence[1], &mut work.standing);
    gather(evidence[2], &mut work.value_norms);
    work.tokens.clear();
    work.tokens
        .extend(slots.iter().map(|&slot| set.tokens()[slot as usize]));
    work.values.clear();
    work.values.resize(slots.len(), 0.0);
    shared.policy.values(
        &Candidates {
            tokens: &work.tokens,
            scores: &work.scores,
            standing: &work.standing,
            value_norms: &work.value_norms,
            newest: set.tokens()[work.order[len - 1] as usize].index,
        },
        &mut work.values,
    );
    let borders = (0..slots.len()).rev();
    for j in borders
        .filter(|&j| work.tokens[j].mark.boundary)
        .take(shared.protect_boundaries)
    {
        work.values[j] = f32::INFINITY;
    }
    work.ranking.clear();
    work.ranking.extend(0..slots.len());
    if plan.relevant < slots.len() {
        let values = &work.values;
        // Highest value first; of equal values the newer.
        work.ranking
            .select_nth_unstable_by(plan.relevant, |&a, &b| {
                values[b].total_cmp(&values[a]).then(b.cmp(&a))
            });
    }
    for &j in &work.ranking[..plan.relevant] {
        work.kept[slots[j] as usize] = true;
    }
}
