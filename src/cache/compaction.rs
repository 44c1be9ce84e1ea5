//! A compaction: the slots of one layer that are not to stay are dropped, or those of several that share one kept set.

use candle_core::Result;

use super::axes::Axes;
use super::evict::Choice;
use super::findings::Findings;
use super::layer::LayerCache;
use super::shared::Shared;
use super::slots::Move;

/// What layers use one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    /// What positions turn by where they have three axes.
    pub axes: Option<Axes>,
    choice: Choice,
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
        let slots = &layers[0].slot_maps()[0];
        work.choice.make(slots, &mean, (0, relevant), shared);
        for layer in layers {
            layer.drop_rows((0, relevant), shared, work)?;
            layer.ledger.note_compaction();
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
        for set in 0..self.slot_maps().len() {
            let slots = &self.slot_maps()[set];
            work.choice.make(slots, &findings, (set, relevant), shared);
            self.drop_rows((set, relevant), shared, work)?;
        }
        self.ledger.note_compaction();
        Ok(())
    }

    /// Drops the slots of one set that were not chosen to stay.
    fn drop_rows(
        &mut self,
        (set, relevant): (usize, usize),
        shared: &Shared,
        work: &mut Workspace,
    ) -> Result<()> {
        let relevant = (relevant, shared.plan.border());
        let kept = work.choice.kept();
        let places = self.ledger.evict(set, kept, relevant, &mut work.moves);
        if let Some(places) = places {
            self.store.place(set, &places, &mut work.axes)?;
        }
        self.move_rows(set, &work.moves)
    }
}
