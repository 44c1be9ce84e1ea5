//! A compaction of one layer: which slots stay, and what moves.

use candle_core::Result;

use super::axes::Axes;
use super::bounded::Shared;
use super::compact::move_rows;
use super::layer::LayerCache;
use super::policy::Candidates;
use super::scores::Findings;
use super::slots::{Move, SlotMap, Token};

/// What layers use one after the other: lists that a compaction fills, and what positions on three axes turn by.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Where positions have three axes.
    pub axes: Option<Axes>,
    /// The slots in the order of time.
    order: Vec<u32>,
    tokens: Vec<Token>,
    scores: Vec<f32>,
    standing: Vec<f32>,
    novelty: Vec<f32>,
    value_norms: Vec<f32>,
    protected: Vec<bool>,
    values: Vec<f32>,
    ranking: Vec<usize>,
    /// By slot.
    kept: Vec<bool>,
    moves: Vec<Move>,
}

impl Workspace {
    pub fn new(axes: Option<Axes>) -> Self {
        Self {
            axes,
            ..Self::default()
        }
    }
}

/// Compacts layers that share one kept set, as [`LayerCache::compact`] does.
pub fn compact_together(
    layers: &mut [LayerCache],
    relevant: usize,
    shared: &Shared,
    work: &mut Workspace,
) -> Result<()> {
    let findings = layers
        .iter_mut()
        .map(|layer| layer.findings(shared))
        .collect::<Result<Vec<_>>>()?;
    if let Some(mean) = Findings::mean(findings) {
        choose(&layers[0].sets[0], &mean, (0, relevant), shared, work);
        for layer in layers {
            layer.drop_rows((0, relevant), shared, work)?;
            layer.compactions += 1;
        }
    }
    Ok(())
}

impl LayerCache {
    /// Keeps the prefix, the newest tokens and as many candidates as are to stay relevant, those that the policy values most; renumbers
    /// what is left.
    pub(super) fn compact(
        &mut self,
        relevant: usize,
        shared: &Shared,
        work: &mut Workspace,
    ) -> Result<()> {
        let findings = self.findings(shared)?;
        for set in 0..self.sets.len() {
            choose(&self.sets[set], &findings, (set, relevant), shared, work);
            self.drop_rows((set, relevant), shared, work)?;
        }
        self.compactions += 1;
        Ok(())
    }

    /// Drops the slots of one set that are not kept, as [`choose`] left it.
    fn drop_rows(
        &mut self,
        (set, relevant): (usize, usize),
        shared: &Shared,
        work: &mut Workspace,
    ) -> Result<()> {
        self.before_eviction();
        if let (Some(table), Some(axes)) = (self.tables.get_mut(set), &mut work.axes) {
            let kept = work.order.iter().filter(|&&slot| work.kept[slot as usize]);
            let tokens = self.sets[set].tokens();
            work.tokens.clear();
            work.tokens.extend(kept.map(|&slot| tokens[slot as usize]));
            table.restart(&work.tokens, shared.plan.border(), axes)?;
        }
        self.sets[set].evict(&work.kept, &work.order, relevant, &mut work.moves);
        self.before_moving(set, &work.moves)?;
        let heads = self.heads_of(set)?;
        move_rows(&self.keys, heads.clone(), &work.moves)?;
        move_rows(&self.values, heads.clone(), &work.moves)?;
        self.moved += work.moves.len() as u64;
        let histories = self.history.chunks_exact_mut(shared.plan.budget);
        for history in histories.skip(heads.start).take(heads.len()) {
            for &(from, to) in &work.moves {
                history[to as usize] = history[from as usize];
            }
        }
        Ok(())
    }
}

/// Marks in `work.kept` the slots of set number `set` that stay, `relevant` of the candidates among them, and notes in `work.order` their
/// order.
fn choose(
    slots: &SlotMap,
    findings: &Findings,
    (set, relevant): (usize, usize),
    shared: &Shared,
    work: &mut Workspace,
) {
    let plan = &shared.plan;
    slots.order(&mut work.order);
    let len = slots.len();
    let candidates = plan.prefix..len - plan.recent;
    work.kept.clear();
    work.kept.resize(len, true);
    for &slot in &work.order[candidates.clone()] {
        work.kept[slot as usize] = false;
    }
    if relevant == 0 {
        return;
    }
    let order = &work.order[candidates];
    let gather = |from: &[f32], to: &mut Vec<f32>| {
        to.clear();
        if !from.is_empty() {
            to.extend(order.iter().map(|&slot| from[slot as usize]));
        }
    };
    gather(&findings.scores[set], &mut work.scores);
    gather(&findings.standing[set], &mut work.standing);
    gather(&findings.novelty[set], &mut work.novelty);
    gather(&findings.value_norms[set], &mut work.value_norms);
    work.tokens.clear();
    work.tokens
        .extend(order.iter().map(|&slot| slots.tokens()[slot as usize]));
    work.protected.clear();
    work.protected.resize(order.len(), false);
    let borders = (0..order.len()).rev();
    for j in borders
        .filter(|&j| work.tokens[j].mark.boundary)
        .take(shared.protect_boundaries)
    {
        work.protected[j] = true;
    }
    work.values.clear();
    work.values.resize(order.len(), 0.0);
    shared.policy.values(
        &Candidates {
            tokens: &work.tokens,
            scores: &work.scores,
            standing: &work.standing,
            novelty: &work.novelty,
            value_norms: &work.value_norms,
            newest: slots.tokens()[work.order[len - 1] as usize].index,
            room: relevant,
            protected: &work.protected,
        },
        &mut work.values,
    );
    for (value, _) in work
        .values
        .iter_mut()
        .zip(&work.protected)
        .filter(|(_, &kept)| kept)
    {
        *value = f32::INFINITY;
    }
    work.ranking.clear();
    work.ranking.extend(0..order.len());
    if relevant < order.len() {
        let values = &work.values;
        // Highest value first; of equal values the newer.
        work.ranking.select_nth_unstable_by(relevant, |&a, &b| {
            values[b].total_cmp(&values[a]).then(b.cmp(&a))
        });
    }
    for &j in &work.ranking[..relevant] {
        work.kept[order[j] as usize] = true;
    }
}
