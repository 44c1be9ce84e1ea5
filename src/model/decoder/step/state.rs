//! What of a step changes from token to token, in the memory of the device: the counterpart of `Step` and `LayerState` in
//! `kernels/gpu.cuh`.

use candle_core::{bail, DType, Result, Tensor, WithDType};

use super::launches::{choice, status};
use crate::cache::{BoundedCache, Plan};
use crate::gpu::Mapped;
use crate::model::chooser::Choice;

/// The state that launches point to.
#[derive(Debug)]
pub struct DeviceState {
    /// `Step`, u32.
    pub step: Tensor,
    /// `LayerState`, `[layers, 4]`, u32.
    pub layers: Tensor,
    /// Rank of each slot, `[layers, sets, budget]`, u32; that of a free slot is what the token that comes there will have.
    pub ranks: Tensor,
    /// From one KV head's ranks to the next.
    pub rank_stride: usize,
    /// `[rows, head_dim / 2]`, f32: of [`BoundedCache::step_turns`]; those of [`BoundedCache::turn_tables`], if there are such.
    pub cos: Tensor,
    pub sin: Tensor,
    /// From one KV head's rows to the next.
    pub turn_stride: usize,
    /// The query that a step has overwritten in each ring, `[layers, heads, head_dim]`.
    pub undo: Tensor,
    /// Attention of all queries so far, where the policy asks for it, `[layers, 2, kv_heads, budget]`, f32: of each layer that of number
    /// `len % 2` is worth something.
    pub history: Option<Tensor>,
    /// The token that the device will append next, if it has chosen one.
    token: Option<u32>,
    /// Choices so far.
    chosen: u32,
    /// That the rotary tables are of.
    plan: Option<Plan>,
}

/// Words of `Step`.
const STEP_WORDS: usize = 6;

/// What a step has found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No slot is free.
    Full,
    /// The logit of this token is not finite.
    NotFinite(usize),
    /// No token can be chosen.
    Nothing,
}

impl DeviceState {
    pub fn new(cache: &BoundedCache) -> Result<Self> {
        let shape = cache.shape();
        let layers = cache.step_layers().collect::<Vec<_>>();
        let sets = layers[0].ranks.len();
        let budget = cache.plan().budget;
        let device = layers[0].keys.device();
        let ring = layers[0].queries.dtype();
        let words = |dims: &[usize]| Tensor::zeros(dims, DType::U32, device);
        let turns = cache.step_turns();
        let room = || Tensor::zeros((turns.rows, shape.head_dim / 2), DType::F32, device);
        let [cos, sin] = match cache.turn_tables() {
            Some(tables) => tables.map(Tensor::clone),
            None if turns.change => {
                bail!("positions have three axes, and the cache does not attend in kernels")
            }
            None => [room()?, room()?],
        };
        let history = (layers.len(), 2, shape.kv_heads, budget);
        let history = || Tensor::zeros(history, DType::F32, device);
        Ok(Self {
            history: cache.history_decay().map(|_| history()).transpose()?,
            step: words(&[STEP_WORDS])?,
            layers: words(&[layers.len(), 4])?,
            ranks: words(&[layers.len(), sets, budget])?,
            rank_stride: if sets > 1 { budget } else { 0 },
            cos,
            sin,
            turn_stride: turns.stride,
            undo: Tensor::zeros((layers.len(), shape.heads, shape.head_dim), ring, device)?,
            token: None,
            chosen: 0,
            plan: None,
        })
    }

    /// Uploads where the cache has come to.
    pub fn follow(&mut self, cache: &mut BoundedCache) -> Result<()> {
        let plan = *cache.plan();
        let (mut layers, mut ranks) = (Vec::new(), Vec::new());
        for layer in cache.step_layers() {
            let words = [layer.len, layer.cursor, layer.window, layer.first_row];
            layers.extend(words.map(|word| word as u32));
            for set in &layer.ranks {
                ranks.extend_from_slice(set);
                ranks.extend(set.len() as u32..plan.budget as u32);
            }
        }
        self.token = None;
        overwrite(&self.layers, layers)?;
        overwrite(&self.ranks, ranks)?;
        if self.plan != Some(plan) || cache.step_turns().change {
            cache.write_step_turns(&self.cos, &self.sin)?;
            self.plan = Some(plan);
        }
        if let Some(history) = &self.history {
            let layers = cache.step_layers();
            let both = layers.flat_map(|layer| [layer.history, layer.history].concat());
            overwrite(history, both.collect())?;
        }
        Ok(())
    }

    /// Brings the history of attention back to the cache.
    pub fn bring_back(&self, cache: &mut BoundedCache) -> Result<()> {
        let Some(history) = &self.history else {
            return Ok(());
        };
        let values = history.flatten_all()?.to_vec1::<f32>()?;
        let lens = cache.step_layers().map(|layer| layer.len);
        let lens = lens.collect::<Vec<_>>();
        let size = values.len() / (2 * lens.len());
        let layers = values.chunks_exact(2 * size).zip(&lens);
        cache.note_histories(layers.map(|(both, len)| &both[len % 2 * size..][..size]));
        Ok(())
    }

    /// What the step that is through has found wrong: it has chosen nothing. (One that is on its way may have come farther.)
    pub fn fault(&self, chosen: &dyn Mapped) -> Option<Fault> {
        let [count, _, fault, token] = status(chosen);
        if count != self.chosen {
            return None;
        }
        Some(match fault {
            1 => Fault::Full,
            2 => Fault::NotFinite(token as usize),
            _ => Fault::Nothing,
        })
    }

    /// Whether a step that was started ahead has changed anything: it has chosen, or found something wrong.
    pub fn is_beyond(&self, chosen: &dyn Mapped) -> bool {
        let [count, _, fault, _] = status(chosen);
        count != self.chosen || fault != 0
    }

    /// Whether the device will append `token` next.
    pub fn goes_on_with(&self, token: u32) -> bool {
        self.token == Some(token)
    }

    /// Sees to it that the next step appends `token`.
    pub fn set_token(&mut self, token: u32) -> Result<()> {
        if self.token == Some(token) {
            return Ok(());
        }
        // token, stop, left, count, fault, fault_token
        overwrite(&self.step, vec![token, 0, u32::MAX, self.chosen, 0, 0])
    }

    /// The choice of the step that is through, which the device goes on with.
    pub fn note_choice(&mut self, chosen: &dyn Mapped) -> Choice {
        self.chosen = self.chosen.wrapping_add(1);
        let choice = choice(chosen, self.chosen);
        let [_, stop, ..] = status(chosen);
        // Where the answer has ended for the device, it goes on with nothing.
        self.token = (stop == 0).then_some(choice.token);
        choice
    }

    /// The next token will be another than the device has chosen, or in other circumstances.
    pub fn forget_token(&mut self) {
        self.token = None;
    }

    /// Puts back the queries that a step has overwritten which came to nothing.
    pub fn take_back(&mut self, cache: &BoundedCache) -> Result<()> {
        self.token = None;
        for (index, layer) in cache.step_layers().enumerate() {
            if layer.window > 0 {
                let query = self.undo.get(index)?.unsqueeze(1)?;
                layer.queries.slice_set(&query, 1, layer.cursor)?;
            }
        }
        Ok(())
    }
}

/// New contents for a whole tensor.
fn overwrite<T: WithDType>(tensor: &Tensor, words: Vec<T>) -> Result<()> {
    let new = Tensor::from_vec(words, tensor.shape(), tensor.device())?;
    tensor.slice_set(&new, 0, 0)
}
