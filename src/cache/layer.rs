//! One decoder layer of the cache: its ledger, and the store that does as the ledger says.

use candle_core::{DType, Device, Result, Tensor};

use super::attention::{self, Sums};
use super::axes::Axes;
use super::followed::{is_followed, Followed};
use super::ledger::{Ledger, Part};
use super::likeness::directions;
use super::numbering::Places;
use super::policy::Evidence;
use super::recall::{Heard, Listening};
use super::rotary::RotaryTable;
use super::shape::CacheShape;
use super::shared::Shared;
use super::slots::{Move, SlotMap, Token};
use super::storage::Storage;
use super::store::{Chunk, InUse, Room, Store};

/// One layer: what it holds, and where.
#[derive(Debug)]
pub struct LayerCache {
    pub(super) ledger: Ledger,
    pub(super) store: Store,
    /// What came by since somebody began to listen.
    pub(super) heard: Option<Listening>,
    /// What tokens attend to, if somebody follows them.
    pub(super) followed: Option<Followed>,
}

impl LayerCache {
    /// Layer number `index` of all. Keys and values are stored as `storage`; `dtype` is the type of the activations.
    pub(super) fn new(
        index: usize,
        shape: &CacheShape,
        shared: &Shared,
        (storage, dtype): (Storage, DType),
        device: &Device,
    ) -> Result<Self> {
        let ledger = Ledger::new(shape, &shared.plan, shared.policy.as_ref());
        let budget = shared.plan.budget;
        let room = Room {
            budget,
            ring: match shared.policy.evidence() {
                // With another prefix there may be room for more of them than now.
                Evidence::Window { queries, .. } => queries.min(budget),
                Evidence::Age | Evidence::History { .. } => 0,
            },
            first_set: index * ledger.sets().len(),
        };
        Ok(Self {
            ledger,
            store: Store::new(shape, room, (storage, dtype), device)?,
            heard: None,
            followed: None,
        })
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.ledger.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kept sets, each in the order of time: one for the layer, or one per KV head.
    pub fn sets(&self) -> impl Iterator<Item = Vec<Token>> + Clone + '_ {
        self.ledger.sets().iter().map(SlotMap::by_time)
    }

    pub(super) fn slot_maps(&self) -> &[SlotMap] {
        self.ledger.sets()
    }

    /// The keys in use before rotation, in the order of time, `[kv_heads, len, head_dim]`: as the type that is
    /// stored, of quantised rows as f32.
    pub fn raw_keys(&self) -> Result<Tensor> {
        let keys = self.store.keys();
        let mut order = Vec::new();
        let rows = keys.rows();
        let heads = (0..rows.dim(0)?)
            .map(|head| {
                self.ledger.set_of(head).order(&mut order);
                let index = Tensor::from_slice(&order, order.len(), rows.device())?;
                rows.get(head)?.index_select(&index, 0)
            })
            .collect::<Result<Vec<_>>>()?;
        keys.numbers(&Tensor::stack(&heads, 0)?)
    }

    /// Directions of the newest `count` keys before rotation, `[kv_heads, count, head_dim]`, f32; `None` if there are none.
    pub(super) fn newest_directions(&self, count: usize) -> Result<Option<Tensor>> {
        let count = count.min(self.len());
        if count == 0 {
            return Ok(None);
        }
        let newest = self.raw_keys()?.narrow(1, self.len() - count, count)?;
        directions(&newest).map(Some)
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }

    pub(super) fn in_use<'a>(&'a self, shared: &'a Shared) -> InUse<'a> {
        InUse {
            ranks: self.ledger.ranks(),
            table: shared.rotary.shared(self.ledger.has_relevant()),
            turns: shared.rotary.on_gpu().map(|tables| {
                let sets = self.ledger.sets().len();
                tables.of_layer(self.store.first_set(), sets)
            }),
            kernel: shared.kernel,
            gpu: shared.gpu.as_ref(),
        }
    }

    /// What the keys and queries of the layer are rotated by at this moment: a table for all kept sets, or one for each.
    pub(super) fn rotary<'a>(&'a self, shared: &'a Shared) -> Vec<&'a RotaryTable> {
        self.store.tables(self.in_use(shared).table)
    }

    /// Notes a chunk, if somebody listens or its queries are followed.
    pub(super) fn hear(&mut self, chunk: &Chunk, tokens: &[Token]) -> Result<()> {
        let followed = self.followed.as_mut().filter(|_| is_followed(tokens));
        if let Some(Followed::Queries(queries)) = followed {
            queries.push(&chunk.queries)?;
        }
        self.catch_up()?;
        if let Some(heard) = &mut self.heard {
            heard.push(&chunk.queries, &chunk.keys);
        }
        Ok(())
    }

    /// Notes the keys of steps, if somebody listens: before they leave the newest slots.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let Some(heard) = self.heard.as_mut().filter(|heard| heard.unheard > 0) else {
            return Ok(());
        };
        let (len, keys) = (self.ledger.len(), self.store.keys());
        let rows = keys.rows().narrow(1, len - heard.unheard, heard.unheard)?;
        let keys = keys.numbers(&rows.contiguous()?)?;
        heard.push_keys(keys.to_dtype(self.store.queries().dtype())?);
        Ok(())
    }

    /// What has come by since somebody began to listen, who no longer does.
    pub(super) fn end_listening(&mut self, layer: usize) -> Result<Option<Heard>> {
        self.catch_up()?;
        match self.heard.take() {
            Some(heard) => heard.whole(layer, self.store.queries().narrow(1, 0, 0)?),
            None => Ok(None),
        }
    }

    /// Takes note of a token that a step has appended.
    pub(super) fn note_step(&mut self, tokens: &[Token]) {
        self.ledger.note_appended(tokens);
        if let Some(heard) = &mut self.heard {
            heard.unheard += tokens.len();
        }
        if let Some(Followed::Queries(queries)) = &mut self.followed {
            queries.step(tokens.len());
        }
    }

    /// Whether it is to be noted what the last token of a chunk attends to.
    pub(super) fn notes(&self, chunk: &[Token]) -> bool {
        matches!(self.followed, Some(Followed::Frames(_))) && is_followed(chunk)
    }

    /// Notes what image tokens got of `sums` (`[kv_heads, len]`, by slot), the attention of one token.
    pub(super) fn note_attention(&mut self, sums: &[f32]) {
        let Self {
            ledger, followed, ..
        } = self;
        if let Some(Followed::Frames(frames)) = followed {
            frames.tokens += 1;
            for (slots, sums) in ledger.sets().iter().zip(ledger.sums_per_set(sums)) {
                frames.add(slots, &sums);
            }
        }
    }

    /// Appends a chunk that fits into the free slots and attends to the whole cache with it: `[heads, tokens, head_dim]`. `noted`: what its
    /// last token attends to is to be noted.
    pub(super) fn attend(
        &mut self,
        chunk: &Chunk,
        (tokens, noted): (&[Token], bool),
        shared: &Shared,
        axes: &mut Option<Axes>,
    ) -> Result<Tensor> {
        let next = self.ledger.next(tokens);
        for set in 0..self.ledger.sets().len() {
            self.save(Part::Set(set), next.slots.clone().map(|slot| slot as u32))?;
        }
        for run in &next.runs {
            self.save(Part::Ring, run.slots.clone().map(|slot| slot as u32))?;
        }
        self.store.append(chunk, next.slots.start, &next.runs)?;
        self.place(&next.places, axes)?;
        if let Some(axes) = axes {
            axes.flush()?;
        }
        self.ledger.note_appended(tokens);
        let positions = next.slots.map(|slot| slot as u32).collect::<Vec<_>>();
        let decay = match shared.policy.evidence() {
            Evidence::History { decay } => Some(decay),
            Evidence::Age | Evidence::Window { .. } => None,
        };
        let newest = match decay {
            Some(_) => tokens.len(),
            None => usize::from(noted),
        };
        let slots = self.store.keys().dims()?.0 * self.len();
        let mut sums = vec![0.0; if newest > 0 { slots } else { 0 }];
        let wanted = (newest > 0).then_some(Sums {
            newest,
            sums: &mut sums,
        });
        let (queries, in_use) = (&chunk.queries, self.in_use(shared));
        let out = self.store.attend(queries, &positions, in_use, wanted)?;
        if let Some(decay) = decay {
            self.ledger.remember(&sums, decay);
        }
        if noted && newest > 1 {
            let last = queries.narrow(1, newest - 1, 1)?.contiguous()?;
            let position = positions[newest - 1..].to_vec();
            let asked = self.store.asked(&last, position, self.in_use(shared));
            sums = attention::sums(&[asked])?.concat();
        }
        if noted {
            self.note_attention(&sums);
        }
        Ok(out)
    }

    /// Moves rows of one kept set.
    pub(super) fn move_rows(&mut self, set: usize, moves: &[Move]) -> Result<()> {
        self.save(Part::Set(set), moves.iter().map(|&(_, to)| to))?;
        self.store.move_rows(self.ledger.heads_of(set), moves)
    }

    /// Writes where the tokens of each kept set stand, where positions have three axes.
    pub(super) fn place(&mut self, places: &[Places], axes: &mut Option<Axes>) -> Result<()> {
        let mut sets = places.iter().enumerate();
        sets.try_for_each(|(set, places)| self.store.place(set, places, axes))
    }

    /// Before slots are overwritten.
    pub(super) fn save(
        &mut self,
        part: Part,
        slots: impl Iterator<Item = u32> + Clone,
    ) -> Result<()> {
        for mark in 0..self.ledger.marks() {
            let unsaved = self.ledger.unsaved(mark, part, slots.clone());
            if unsaved.is_empty() {
                continue;
            }
            match part {
                Part::Set(set) => {
                    let heads = self.ledger.heads_of(set);
                    self.store.save_rows(mark, heads, &unsaved)?;
                }
                Part::Ring => self.store.save_queries(mark, &unsaved)?,
            }
            self.ledger.note_saved(mark, part, &unsaved);
        }
        Ok(())
    }

    /// Forgets everything; `shared` may differ from the one before in all but the budget.
    pub(super) fn clear(&mut self, shared: &Shared) {
        if let Some(heard) = &mut self.heard {
            heard.unheard = 0;
        }
        self.followed = None;
        self.ledger.clear(shared.plan.window);
        self.store.clear();
    }

    /// Sets a mark, within those that are set.
    pub(super) fn mark(&mut self) {
        self.ledger.mark();
        self.store.mark();
    }

    /// Goes back to the innermost mark, which stays set; nobody listens or follows any more. Where a device fails, the layer is whole but for rows
    /// that could not be put back.
    pub(super) fn put_back(&mut self, axes: &mut Option<Axes>) -> Result<()> {
        self.heard = None;
        self.followed = None;
        let places = self.ledger.put_back();
        let rows = self.store.put_back();
        rows.and(self.place(&places, axes))
    }

    /// Forgets the innermost mark.
    pub(super) fn let_go(&mut self) {
        self.ledger.let_go();
        self.store.let_go();
    }
}
