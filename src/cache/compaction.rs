//! A compaction: the slots of layers that are not to stay are dropped, each layer's own or those of several that share one kept set.

use candle_core::Result;

use super::axes::Axes;
use super::evict::Choice;
use super::findings::Findings;
use super::layer::LayerCache;
use super::moved::{move_rows, SetMoves};
use super::scores::findings;
use super::shared::Shared;

/// What layers use one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    /// What positions turn by where they have three axes.
    pub axes: Option<Axes>,
    choice: Choice,
}

impl Workspace {
    pub fn new(axes: Option<Axes>) -> Self {
        Self {
            axes,
            ..Self::default()
        }
    }

    /// Writes where tokens stand into the tables of a GPU.
    pub fn write_turns(&mut self) -> Result<()> {
        self.axes.as_mut().map_or(Ok(()), Axes::flush)
    }
}

/// Keeps in each layer the prefix, the newest tokens and as many candidates as are to stay relevant, those that the policy values most;
/// renumbers what is left. What a GPU has to do for it does not grow with the number of layers and heads.
pub fn compact(
    layers: &mut [&mut LayerCache],
    relevant: usize,
    shared: &Shared,
    work: &mut Workspace,
) -> Result<()> {
    let findings = findings(layers, shared)?;
    let mut moved = Vec::new();
    for (index, (layer, findings)) in layers.iter_mut().zip(&findings).enumerate() {
        for set in 0..layer.slot_maps().len() {
            let slots = &layer.slot_maps()[set];
            work.choice.make(slots, findings, (set, relevant), shared);
            moved.push(layer.drop_slots((index, set), relevant, shared, work)?);
        }
        layer.ledger.note_compaction();
    }
    work.write_turns()?;
    move_rows(layers, &moved, shared.gpu.as_ref())
}

/// The same for layers that share one kept set.
pub fn compact_together(
    layers: &mut [&mut LayerCache],
    relevant: usize,
    shared: &Shared,
    work: &mut Workspace,
) -> Result<()> {
    let Some(mean) = Findings::mean(findings(layers, shared)?) else {
        return Ok(());
    };
    let slots = &layers[0].slot_maps()[0];
    work.choice.make(slots, &mean, (0, relevant), shared);
    let mut moved = Vec::new();
    for (index, layer) in layers.iter_mut().enumerate() {
        moved.push(layer.drop_slots((index, 0), relevant, shared, work)?);
        layer.ledger.note_compaction();
    }
    work.write_turns()?;
    move_rows(layers, &moved, shared.gpu.as_ref())
}

impl LayerCache {
    /// Drops the slots of one set that were not chosen to stay; their rows are still to be moved.
    fn drop_slots(
        &mut self,
        (layer, set): (usize, usize),
        relevant: usize,
        shared: &Shared,
        work: &mut Workspace,
    ) -> Result<SetMoves> {
        self.catch_up()?;
        let relevant = (relevant, shared.plan.border());
        let mut moves = Vec::new();
        let kept = work.choice.kept();
        let places = self.ledger.evict(set, kept, relevant, &mut moves);
        if let Some(places) = places {
            self.store.place(set, &places, &mut work.axes)?;
        }
        Ok(SetMoves { layer, set, moves })
    }
}
