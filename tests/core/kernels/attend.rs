//! One query on a bounded cache: append, attend, remember.

use super::reference::{softmax, Cache, Turns};
use super::{off, rms_norm, wide, Kind, Launch, LayerState, Random, Step, Stored, ORDERS};

const EPS: f32 = 1e-6;

#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: Kind,
    head_dim: usize,
    /// Of the kernel.
    cap: usize,
    tile: usize,
    kv_heads: usize,
    group: usize,
    budget: usize,
    len: usize,
    splits: usize,
    norms: bool,
    /// A kept set and a rotary table for each KV head.
    per_head: bool,
    window: usize,
    ring: Kind,
}

impl Shape {
    fn new(kind: Kind, head_dim: usize, group: usize) -> Self {
        Self {
            kind,
            head_dim,
            cap: [32, 64, 128, 256]
                .into_iter()
                .find(|&cap| head_dim <= cap)
                .unwrap(),
            tile: tiles(head_dim)
                .iter()
                .copied()
                .find(|&tile| group <= tile)
                .unwrap_or(4),
            kv_heads: 2,
            group,
            budget: 70,
            len: 33,
            splits: 3,
            norms: false,
            per_head: false,
            window: 0,
            ring: Kind::F32,
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

/// The query heads that a block takes, of which there are kernels.
fn tiles(head_dim: usize) -> &'static [usize] {
    match head_dim {
        0..=128 => &[1, 2, 4, 8],
        _ => &[1, 4],
    }
}

/// Everything that the kernel reads and writes.
#[derive(Debug, Clone, PartialEq)]
struct Memory {
    step: Step,
    layer: LayerState,
    qkv: Vec<f32>,
    gains: Option<[Vec<f32>; 2]>,
    keys: Stored,
    values: Stored,
    ranks: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    ring: Stored,
    undo: Stored,
    logits: Vec<f32>,
    tops: Vec<f32>,
    partial: Vec<f32>,
    arrived: Vec<u32>,
    out: Vec<f32>,
    history: Vec<f32>,
}

const RING_CAPACITY: usize = 5;
/// Rows of other layers before the table's.
const FIRST_ROW: usize = 3;

fn behind_other_rows(table: &[f32], head_dim: usize) -> Vec<f32> {
    let mut rows = vec![f32::NAN; FIRST_ROW * head_dim / 2];
    rows.extend(table);
    rows
}

impl Memory {
    fn new(shape: &Shape) -> Self {
        let Shape {
            head_dim, kv_heads, ..
        } = *shape;
        let mut random = Random(shape.len as u64 * 77 + head_dim as u64);
        let sets = if shape.per_head { kv_heads } else { 1 };
        let tiles = shape.group.div_ceil(shape.tile);
        let mut doubled = |count| {
            let numbers = random.numbers(count);
            numbers.iter().map(|x| 2.0 * x).collect::<Vec<_>>()
        };
        let qkv = doubled((shape.heads() + 2 * kv_heads) * head_dim);
        let keys = doubled(kv_heads * shape.budget * head_dim);
        let values = random.numbers(keys.len());
        let mut gain = || {
            let numbers = random.numbers(head_dim);
            numbers.iter().map(|x| 1.0 + 0.3 * x).collect::<Vec<_>>()
        };
        let gains = shape.norms.then(|| [gain(), gain()]);
        let ranks = (0..sets).flat_map(|_| {
            let mut ranks = random.permutation(shape.len);
            ranks.extend(shape.len as u32..shape.budget as u32);
            ranks
        });
        let ranks = ranks.collect();
        let turns = Turns::new(sets, shape.budget, head_dim);
        let nan = |count| vec![f32::NAN; count];
        Self {
            step: Step::ready(),
            layer: LayerState {
                len: shape.len as u32,
                cursor: shape.window.saturating_sub(1) as u32,
                window: shape.window as u32,
                first_row: FIRST_ROW as u32,
            },
            qkv,
            gains,
            keys: Stored::rows(shape.kind, &keys, head_dim),
            values: Stored::rows(shape.kind, &values, head_dim),
            ranks,
            cos: behind_other_rows(&turns.cos, head_dim),
            sin: behind_other_rows(&turns.sin, head_dim),
            ring: Stored::new(
                shape.ring,
                &vec![7.0; shape.heads() * RING_CAPACITY * head_dim],
            ),
            undo: Stored::new(shape.ring, &vec![5.0; shape.heads() * head_dim]),
            logits: nan(shape.heads() * shape.budget),
            tops: nan(shape.heads() * 2),
            partial: nan(kv_heads * tiles * shape.splits * shape.tile * (head_dim + 2)),
            arrived: vec![0; kv_heads * tiles],
            out: nan(shape.heads() * head_dim),
            history: (0..2 * kv_heads * shape.budget).map(|i| i as f32).collect(),
        }
    }

    fn attend(&mut self, shape: &Shape, order: u32) {
        let stride = |elements| if shape.per_head { elements } else { 0 };
        let name = format!("attend_{}_{}_{}", shape.kind.name(), shape.cap, shape.tile);
        let grid = [
            shape.kv_heads,
            shape.splits,
            shape.group.div_ceil(shape.tile),
        ];
        let gains = self.gains.as_mut();
        let (q_gain, k_gain) = gains.map(|[q, k]| (q, k)).unzip();
        Launch::new(name, grid, 128)
            .state(&mut self.step)
            .state(&mut self.layer)
            .buffer(&mut self.qkv)
            .optional(q_gain)
            .optional(k_gain)
            .float(EPS)
            .pointer(self.keys.pointer())
            .pointer(self.values.pointer())
            .buffer(&mut self.ranks)
            .number(stride(shape.budget))
            .buffer(&mut self.cos)
            .buffer(&mut self.sin)
            .number(stride(shape.budget))
            .number(shape.group)
            .number(shape.head_dim)
            .number(shape.budget)
            .float(1.0 / (shape.head_dim as f32).sqrt())
            .pointer(self.ring.pointer())
            .pointer(self.undo.pointer())
            .number(shape.ring as usize)
            .number(RING_CAPACITY)
            .buffer(&mut self.logits)
            .buffer(&mut self.tops)
            .buffer(&mut self.partial)
            .buffer(&mut self.arrived)
            .buffer(&mut self.out)
            .run(order);
    }

    fn remember(&mut self, shape: &Shape, decay: f32, order: u32) {
        Launch::new("remember", [2, shape.kv_heads, 1], 32)
            .state(&mut self.step)
            .state(&mut self.layer)
            .buffer(&mut self.logits)
            .buffer(&mut self.tops)
            .number(shape.group)
            .number(shape.budget)
            .float(decay)
            .buffer(&mut self.history)
            .run(order);
    }

    /// The parts that do not depend on the order may not hold anything that does.
    fn bits(&self) -> Vec<u32> {
        let all = [&self.out, &self.tops, &self.history];
        all.iter()
            .flat_map(|x| x.iter().map(|x| x.to_bits()))
            .collect()
    }
}

/// Runs a shape in every order and compares all that was written with f64.
fn check(shape: &Shape) {
    let before = Memory::new(shape);
    let decay = 0.75;
    let mut first: Option<Memory> = None;
    for order in ORDERS {
        let mut memory = before.clone();
        memory.attend(shape, order);
        memory.remember(shape, decay, order);
        if let Some(first) = &first {
            assert_eq!(memory.bits(), first.bits(), "{shape:?}, order {order}");
            assert_eq!(memory.keys, first.keys);
        }
        first.get_or_insert(memory);
    }
    let after = first.unwrap();
    let Shape {
        head_dim,
        kv_heads,
        group,
        budget,
        len,
        ..
    } = *shape;

    // What was appended, and nothing else.
    let row = |n: usize| wide(&before.qkv[n * head_dim..][..head_dim]);
    let normed = |n: usize, gain: usize| match &before.gains {
        Some(gains) => rms_norm(&row(n), &gains[gain], EPS),
        None => row(n),
    };
    let appended = |buffer: &Stored, new: &dyn Fn(usize) -> Vec<f64>| {
        let mut numbers = buffer.all();
        for head in 0..kv_heads {
            let narrow = new(head).iter().map(|&x| x as f32).collect::<Vec<_>>();
            let to = (head * budget + len) * head_dim;
            let stored = Stored::rows(shape.kind, &narrow, head_dim);
            numbers[to..to + head_dim].copy_from_slice(&stored.all());
        }
        numbers
    };
    let new_keys = appended(&before.keys, &|head| normed(shape.heads() + head, 1));
    let new_values = appended(&before.values, &|head| row(shape.heads() + kv_heads + head));
    // A norm's last bit may round to the neighbour; normed keys are below 9, that of quantised ones is 9 / 127 away at most.
    let near = if shape.norms { 1e-2 } else { 0.0 };
    let near_keys = match shape.kind {
        Kind::Q8 => 8.0 * near,
        _ => near,
    };
    for (got, want) in after.keys.all().iter().zip(&new_keys) {
        let off = (got - want).abs();
        assert!(off <= near_keys, "{shape:?}: {got} for {want}");
    }
    assert_eq!(after.values.all(), new_values, "{shape:?}");
    assert!(after.arrived.iter().all(|&n| n == 0));

    let turns = Turns {
        cos: before.cos[FIRST_ROW * head_dim / 2..].to_vec(),
        sin: before.sin[FIRST_ROW * head_dim / 2..].to_vec(),
    };
    let cache = Cache {
        keys: &after.keys,
        values: &after.values,
        budget,
        head_dim,
        len: len + 1,
        ranks: &before.ranks,
        turns: &turns,
    };
    let mut want = Vec::new();
    let mut history = wide(&before.history);
    let mut ring = before.ring.all();
    for head in 0..shape.heads() {
        let (kv, query) = (head / group, normed(head, 0));
        let probabilities = softmax(&cache.logits(&query, kv, len as u32));
        want.extend(cache.mix(&probabilities, kv));
        for (slot, p) in probabilities.iter().enumerate() {
            let row = |half: usize| ((half % 2) * kv_heads + kv) * budget + slot;
            let before = f64::from(before.history[row(len)]);
            let history = &mut history[row(len + 1)];
            if head % group == 0 {
                *history = if slot == len {
                    0.0
                } else {
                    before * f64::from(decay)
                };
            }
            *history += p / group as f64;
        }
        if shape.window > 0 {
            let narrow = query.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let to = (head * RING_CAPACITY + shape.window - 1) * head_dim;
            ring[to..to + head_dim].copy_from_slice(&Stored::new(shape.ring, &narrow).all());
        }
    }
    let out_off = off(&after.out, &want);
    assert!(out_off < 1e-5, "{shape:?}: off by {out_off:.1e}");
    let history_off = off(&after.history, &history);
    assert!(
        history_off < 1e-5,
        "{shape:?}: history off by {history_off:.1e}"
    );
    for (got, want) in after.ring.all().iter().zip(&ring) {
        assert!((got - want).abs() <= near, "{shape:?}: {got} for {want}");
    }
    let overwritten = if shape.window > 0 { 7.0 } else { 5.0 };
    assert!(after.undo.all().iter().all(|&x| x == overwritten));
}

#[test]
fn attention_is_that_of_f64_for_every_type_head_size_and_group() {
    let mut n = 0;
    for kind in Kind::KEPT {
        for head_dim in [2, 12, 16, 30, 64, 80, 96, 128, 256] {
            for group in [1, 3, 4, 7, 8, 12] {
                // Neighbouring shapes differ in the rest.
                n += 1;
                let mut shape = Shape::new(kind, head_dim, group);
                shape.splits = [1, 2, 3, 5][n % 4];
                shape.norms = n % 2 == 0;
                shape.per_head = n % 5 < 2;
                shape.window = [0, 3, RING_CAPACITY][n / 2 % 3];
                shape.ring = Kind::ALL[n % 3];
                shape.len = [0, 1, 16, 33, shape.budget - 1][n % 5];
                check(&shape);
            }
        }
    }
}

#[test]
fn attention_is_that_of_f64_at_every_length_and_for_every_number_of_splits() {
    for (kind, head_dim) in [(Kind::F32, 64), (Kind::BF16, 128), (Kind::Q8, 80)] {
        for splits in [1, 3, 128] {
            for len in (0..Shape::new(kind, head_dim, 2).budget).step_by(3) {
                let mut shape = Shape::new(kind, head_dim, 2);
                (shape.kv_heads, shape.len, shape.splits) = (1, len, splits);
                // One order does here.
                let mut memory = Memory::new(&shape);
                memory.attend(&shape, len as u32 % 3);
                let mut whole = Memory::new(&shape);
                check_against(&mut whole, &memory, &shape);
            }
        }
    }
}

/// The same by one split: equal bits as long as one block takes all slots at once, else near.
fn check_against(whole: &mut Memory, split: &Memory, shape: &Shape) {
    let one = Shape {
        splits: 1,
        ..*shape
    };
    whole.attend(&one, 0);
    let at_once = 1024 / shape.cap;
    if shape.len < at_once {
        assert_eq!(whole.out, split.out, "{shape:?}");
    }
    let off = off(&split.out, &wide(&whole.out));
    assert!(off < 1e-5, "{shape:?}: off by {off:.1e}");
}

#[test]
fn a_tile_smaller_than_the_group_gives_what_one_tile_gives() {
    let whole = Shape::new(Kind::F16, 64, 7);
    let mut expected = Memory::new(&whole);
    expected.attend(&whole, 0);
    for tile in [1, 2, 4] {
        let shape = Shape { tile, ..whole };
        let mut memory = Memory::new(&shape);
        memory.attend(&shape, 2);
        let off = off(&memory.out, &wide(&expected.out));
        assert!(off < 1e-6, "tile {tile}: off by {off:.1e}");
        assert_eq!(memory.keys, expected.keys);
    }
}

#[test]
fn a_full_cache_is_a_fault_and_nothing_is_written() {
    for order in ORDERS {
        let mut shape = Shape::new(Kind::BF16, 16, 3);
        shape.window = 3;
        shape.len = shape.budget - 1;
        let mut memory = Memory::new(&shape);
        memory.layer.len = shape.budget as u32;
        let mut expected = memory.clone();
        expected.step.fault = 1;
        expected.step.fault_token = shape.budget as u32;
        memory.attend(&shape, order);
        memory.remember(&shape, 1.0, order);
        assert_eq!(format!("{memory:?}"), format!("{expected:?}"));
    }
}

#[test]
fn an_ended_step_changes_nothing() {
    for step in Step::ended() {
        let mut shape = Shape::new(Kind::F32, 64, 2);
        shape.window = 3;
        let mut memory = Memory::new(&shape);
        memory.step = step;
        let before = format!("{memory:?}");
        memory.attend(&shape, 0);
        memory.remember(&shape, 1.0, 0);
        assert_eq!(format!("{memory:?}"), before);
    }
}
