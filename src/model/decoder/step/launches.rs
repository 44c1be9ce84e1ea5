//! Which kernels a step is made of, and the memory that they hand to each other.

use candle_core::{DType, Device, Result, Tensor};

use super::state::DeviceState;
use super::weights::{Gain, LayerWeights, Product, StepWeights, Weight};
use super::Unfit;
use crate::cache::{BoundedCache, StepLayer};
use crate::gpu::{Element, Gpu, Launch, Mapped};
use crate::model::chooser::{Choice, Chooser};

/// Places of the ring that choices are written to.
const CHOICES: usize = 4;

/// Words that the host reads: the ring of tokens, that of their logarithmic probabilities, and the state after the last step.
pub const CHOSEN_WORDS: usize = 2 * CHOICES + 4;

/// Threads of a block of products and choices, and of attention.
const PRODUCT_BLOCK: u32 = 256;
const ATTENTION_BLOCK: u32 = 128;

/// Rows that a warp takes at a time: of most products, of the gated unit (rows of each of its two matrices), of the output layer.
const ROWS: usize = 2;
const GATED_ROWS: usize = 1;
const HEAD_ROWS: usize = 4;

/// Numbers of an embedding that a thread takes out of planes.
const PLANE_NUMBERS: u32 = 8;

/// Blocks per multiprocessor that products are spread over, at most, and attention: a block of that waits for memory most of the time,
/// and four fit beside one another.
const WAVES: usize = 4;
const ATTENTION_WAVES: usize = 4;

/// What kernels hand to each other, f32 but where it says otherwise.
#[derive(Debug)]
pub struct Buffers {
    /// The residual stream, `[hidden]`.
    x: Tensor,
    /// Queries, keys and values, `[(heads + 2 * kv_heads) * head_dim]`.
    qkv: Tensor,
    /// `[heads * head_dim]`
    attended: Tensor,
    /// `[inner]`
    gated: Tensor,
    /// `[vocab]`
    pub logits: Tensor,
    /// The best of each block of the output layer, `[blocks, 4]`, words.
    best: Tensor,
    /// What each split of attention has found.
    partial: Tensor,
    /// Splits that are through, `[kv_heads * tiles]`, u32.
    arrived: Tensor,
    /// Where the policy asks for a history: the logits of a layer's attention, `[heads, budget]`, and of each head the highest and the
    /// sum, `[heads, 2]`.
    attention: Option<[Tensor; 2]>,
    /// A bit for each token that is never chosen, `[ceil(vocab / 32)]`, u32.
    banned: Tensor,
    /// Tokens that end an answer, u32; at least one word.
    ends: Tensor,
    end_count: usize,
    tile: Tile,
    multiprocessors: usize,
}

/// How the heads of a layer are shared among blocks.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// Most elements of a head, and query heads of a block, of the kernel's instance.
    cap: usize,
    heads: usize,
    /// Blocks that share the query heads of one KV head.
    tiles: usize,
    /// Blocks that share the slots.
    splits: usize,
}

impl Tile {
    fn of(cache: &BoundedCache, multiprocessors: usize) -> std::result::Result<Self, Unfit> {
        let shape = cache.shape();
        let caps = [(32, 2), (64, 8), (128, 8), (256, 8)].into_iter();
        let cap = caps
            .filter(|&(_, multiple)| shape.head_dim.is_multiple_of(multiple))
            .map(|(cap, _)| cap)
            .find(|&cap| shape.head_dim <= cap)
            .ok_or(Unfit::Heads(shape.head_dim))?;
        let group = shape.heads / shape.kv_heads;
        let heads = match (cap, group) {
            (256, 2..) => 4,
            _ => group.next_power_of_two().min(8),
        };
        let tiles = group.div_ceil(heads);
        // As many blocks as have room on each multiprocessor, but no block without a pass over some slots.
        let wanted = (ATTENTION_WAVES * multiprocessors).div_ceil(shape.kv_heads * tiles);
        let most = cache.plan().budget.div_ceil(64).min(128);
        Ok(Self {
            cap,
            heads,
            tiles,
            splits: wanted.clamp(1, most),
        })
    }
}

impl Buffers {
    pub fn new(
        weights: &StepWeights,
        cache: &BoundedCache,
        (chooser, ends): (&Chooser, &[u32]),
        gpu: &dyn Gpu,
    ) -> std::result::Result<Self, Unfit> {
        let device = weights.norm.gain.device();
        let (vocab, hidden) = weights.embedding.dims2()?;
        let shape = cache.shape();
        let multiprocessors = gpu.multiprocessors();
        let tile = Tile::of(cache, multiprocessors)?;
        let inner = weights.layers.iter().map(|layer| layer.gate.rows).max();
        let floats = |count: usize| Tensor::zeros(count, DType::F32, device);
        let words = |count: usize| Tensor::zeros(count, DType::U32, device);
        let head_block = block(weights.head.rows, HEAD_ROWS, multiprocessors);
        let blocks = spread(weights.head.rows, (HEAD_ROWS, head_block), multiprocessors);
        let partial = shape.kv_heads * tile.tiles * tile.splits * tile.heads * (shape.head_dim + 2);
        Ok(Self {
            x: floats(hidden)?,
            qkv: floats((shape.heads + 2 * shape.kv_heads) * shape.head_dim)?,
            attended: floats(shape.heads * shape.head_dim)?,
            gated: floats(inner.unwrap_or(1))?,
            logits: floats(weights.head.rows)?,
            best: words(4 * blocks as usize)?,
            partial: floats(partial)?,
            arrived: words(shape.kv_heads * tile.tiles)?,
            attention: match cache.history_decay() {
                Some(_) => Some([
                    floats(shape.heads * cache.plan().budget)?,
                    floats(shape.heads * 2)?,
                ]),
                None => None,
            },
            banned: bits(chooser.banned(), vocab.max(weights.head.rows), device)?,
            ends: match ends {
                [] => words(1)?,
                ends => Tensor::from_slice(ends, ends.len(), device)?,
            },
            end_count: ends.len(),
            tile,
            multiprocessors,
        })
    }

    /// A launch of a product with `rows` rows of outputs of matrices like `weight`, `at_a_time` rows to a warp.
    fn product(
        &self,
        kernel: &str,
        weight: &Weight,
        rows: usize,
        at_a_time: usize,
    ) -> Result<Launch> {
        let (_, width) = weight.dims2()?;
        let block = block(rows, at_a_time, self.multiprocessors);
        let blocks = spread(rows, (at_a_time, block), self.multiprocessors);
        let kernel = format!("{kernel}_{}", weight.suffix()?);
        let launch = Launch::new(kernel, [blocks, 1, 1], block);
        Ok(launch.shared(weight.shared_bytes(width)))
    }
}

/// Threads of a block for so many rows, `at_a_time` to a warp: fewer where every multiprocessor could not have a block otherwise.
fn block(rows: usize, at_a_time: usize, multiprocessors: usize) -> u32 {
    match rows < at_a_time * PRODUCT_BLOCK as usize / 32 * multiprocessors {
        true => PRODUCT_BLOCK / 2,
        false => PRODUCT_BLOCK,
    }
}

/// Blocks for so many rows, `at_a_time` to a warp, of so many threads.
fn spread(rows: usize, (at_a_time, block): (usize, u32), multiprocessors: usize) -> u32 {
    let rows_of_block = at_a_time * block as usize / 32;
    rows.div_ceil(rows_of_block)
        .clamp(1, WAVES * multiprocessors) as u32
}

/// A bit for each of `tokens` among `vocab`.
fn bits(tokens: &[u32], vocab: usize, device: &Device) -> Result<Tensor> {
    let mut words = vec![0u32; vocab.div_ceil(32).max(1)];
    for &token in tokens {
        if let Some(word) = words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }
    Tensor::from_slice(&words, words.len(), device)
}

/// The launches of a step, in their order.
pub fn step(
    weights: &StepWeights,
    buffers: &Buffers,
    state: &DeviceState,
    cache: &BoundedCache,
    chosen: &dyn Mapped,
) -> std::result::Result<Vec<Launch>, Unfit> {
    let mut launches = vec![embed(&weights.embedding, (state, buffers))?];
    let (_, hidden) = weights.embedding.dims2()?;
    let parts = weights.layers.iter().zip(cache.step_layers());
    for (index, (layer, cached)) in parts.enumerate() {
        let [q, k, v] = [&layer.q, &layer.k, &layer.v];
        let rows = q.rows + k.rows + v.rows;
        let products = buffers.product("norm_qkv", &q.weight, rows, ROWS)?;
        let mut products = normed(products, (state, buffers, &layer.input_norm))?;
        for product in [q, k, v] {
            products = product.weight.argue(products)?;
        }
        launches.push(
            products
                .optional(q.bias.as_ref())?
                .optional(k.bias.as_ref())?
                .optional(v.bias.as_ref())?
                .int(q.rows)
                .int(k.rows)
                .int(v.rows)
                .int(hidden)
                .tensor(&buffers.qkv)?,
        );
        launches.push(attend((index, layer, &cached), buffers, state, cache)?);
        launches.extend(remember(index, buffers, state, cache)?);
        launches.push(added(&layer.o, &buffers.attended, (state, buffers))?);
        let (gate, up) = (&layer.gate, &layer.up);
        let products = buffers.product("norm_gate_up", &gate.weight, gate.rows, GATED_ROWS)?;
        let products = normed(products, (state, buffers, &layer.post_norm))?;
        let products = up.weight.argue(gate.weight.argue(products)?)?;
        launches.push(
            products
                .optional(gate.bias.as_ref())?
                .optional(up.bias.as_ref())?
                .int(gate.rows)
                .int(hidden)
                .tensor(&buffers.gated)?,
        );
        launches.push(added(&layer.down, &buffers.gated, (state, buffers))?);
    }
    let (head, vocab) = (&weights.head.weight, weights.head.rows);
    let logits = buffers.product("norm_lm_head", head, vocab, HEAD_ROWS)?;
    let bests = logits.grid[0] as usize;
    let logits = head.argue(normed(logits, (state, buffers, &weights.norm))?)?;
    launches.push(
        logits
            .tensor(&buffers.banned)?
            .int(vocab)
            .int(hidden)
            .tensor(&buffers.logits)?
            .tensor(&buffers.best)?,
    );
    let word = |index: usize| chosen.address() + (index * size_of::<u32>()) as u64;
    launches.push(
        Launch::new("choose", [1, 1, 1], PRODUCT_BLOCK)
            .tensor(&state.step)?
            .tensor(&buffers.best)?
            .int(bests)
            .tensor(&buffers.ends)?
            .int(buffers.end_count)
            .pointer(word(0))
            .pointer(word(CHOICES))
            .int(CHOICES)
            .pointer(word(2 * CHOICES))
            .tensor(&state.layers)?
            .int(weights.layers.len()),
    );
    Ok(launches)
}

/// The row of the token in the table of embeddings.
fn embed(table: &Weight, (state, buffers): (&DeviceState, &Buffers)) -> Result<Launch> {
    let (vocab, hidden) = table.dims2()?;
    let numbers = match table {
        Weight::Dense(_) => 1,
        Weight::Planes(_) => PLANE_NUMBERS,
    };
    let blocks = (hidden as u32).div_ceil(PRODUCT_BLOCK * numbers);
    let kernel = format!("embed_{}", table.suffix()?);
    let launch = Launch::new(kernel, [blocks, 1, 1], PRODUCT_BLOCK).tensor(&state.step)?;
    let launch = table.argue(launch)?;
    let launch = match table {
        Weight::Dense(_) => launch,
        Weight::Planes(_) => launch.int(vocab),
    };
    launch.int(hidden).tensor(&buffers.x)
}

/// The attention of one layer, which takes the token in.
fn attend(
    (index, layer, cached): (usize, &LayerWeights, &StepLayer<'_>),
    buffers: &Buffers,
    state: &DeviceState,
    cache: &BoundedCache,
) -> std::result::Result<Launch, Unfit> {
    let (shape, tile) = (cache.shape(), buffers.tile);
    let kernel = format!(
        "attend_{}_{}_{}",
        cached.keys.storage().suffix()?,
        tile.cap,
        tile.heads
    );
    let grid = [shape.kv_heads, tile.splits, tile.tiles].map(|count| count as u32);
    let gains = layer.head_norms.as_ref();
    let [q_gain, k_gain] = [0, 1].map(|i| gains.map(|gains| &gains[i].gain));
    let attention = buffers.attention.as_ref();
    let [logits, tops] = [0, 1].map(|i| attention.map(|attention| &attention[i]));
    Ok(Launch::new(kernel, grid, ATTENTION_BLOCK)
        .tensor(&state.step)?
        .tensor(&state.layers.narrow(0, index, 1)?)?
        .tensor(&buffers.qkv)?
        .optional(q_gain)?
        .optional(k_gain)?
        .float(gains.map_or(0.0, |gains| gains[0].eps))
        .tensor(cached.keys.rows())?
        .tensor(cached.values.rows())?
        .tensor(&state.ranks.narrow(0, index, 1)?)?
        .int(state.rank_stride)
        .tensor(&state.cos)?
        .tensor(&state.sin)?
        .int(state.turn_stride)
        .int(shape.heads / shape.kv_heads)
        .int(shape.head_dim)
        .int(cache.plan().budget)
        .float(1.0 / (shape.head_dim as f32).sqrt())
        .tensor(cached.queries)?
        .tensor(&state.undo.narrow(0, index, 1)?)?
        .int(Element::of(cached.queries.dtype())?.code)
        .int(cached.queries.dim(1)?)
        .optional(logits)?
        .optional(tops)?
        .tensor(&buffers.partial)?
        .tensor(&buffers.arrived)?
        .tensor(&buffers.attended)?)
}

/// The attention of one layer added to its history, if the policy asks for one.
fn remember(
    index: usize,
    buffers: &Buffers,
    state: &DeviceState,
    cache: &BoundedCache,
) -> Result<Option<Launch>> {
    let (Some([logits, tops]), Some(history), Some(decay)) =
        (&buffers.attention, &state.history, cache.history_decay())
    else {
        return Ok(None);
    };
    let (shape, budget) = (cache.shape(), cache.plan().budget);
    let blocks = (budget as u32).div_ceil(PRODUCT_BLOCK);
    let grid = [blocks, shape.kv_heads as u32, 1];
    let launch = Launch::new("remember", grid, PRODUCT_BLOCK)
        .tensor(&state.step)?
        .tensor(&state.layers.narrow(0, index, 1)?)?
        .tensor(logits)?
        .tensor(tops)?
        .int(shape.heads / shape.kv_heads)
        .int(budget)
        .float(decay)
        .tensor(&history.narrow(0, index, 1)?)?;
    Ok(Some(launch))
}

/// The first arguments of a product of the normed residual stream.
fn normed(
    launch: Launch,
    (state, buffers, norm): (&DeviceState, &Buffers, &Gain),
) -> Result<Launch> {
    let launch = launch.tensor(&state.step)?.tensor(&buffers.x)?;
    Ok(launch.tensor(&norm.gain)?.float(norm.eps))
}

/// A product that is added to the residual stream.
fn added(
    product: &Product,
    input: &Tensor,
    (state, buffers): (&DeviceState, &Buffers),
) -> Result<Launch> {
    let launch = buffers.product("matvec_add", &product.weight, product.rows, ROWS)?;
    let launch = launch.tensor(&state.step)?.tensor(input)?;
    let launch = product.weight.argue(launch)?;
    launch
        .optional(product.bias.as_ref())?
        .int(product.rows)
        .int(product.width)
        .tensor(&buffers.x)
}

/// The choice of the last step, where `count` steps have chosen so far.
pub fn choice(chosen: &dyn Mapped, count: u32) -> Choice {
    let place = count.wrapping_sub(1) as usize % CHOICES;
    Choice {
        token: chosen.word(place),
        logprob: f32::from_bits(chosen.word(CHOICES + place)),
    }
}

/// The state after the last step: choices so far, why decoding stopped, what went wrong, and the token that it concerns.
pub fn status(chosen: &dyn Mapped) -> [u32; 4] {
    [0, 1, 2, 3].map(|i| chosen.word(2 * CHOICES + i))
}
