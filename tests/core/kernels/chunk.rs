//! A chunk of queries on a bounded cache, and what each slot gets of them.

use super::quantised::row_bytes;
use super::reference::{softmax, Cache, Turns};
use super::{off, Kind, Launch, Random, Stored, ORDERS};

#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: Kind,
    /// Of the queries.
    query: Kind,
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    budget: usize,
    len: usize,
    tokens: usize,
    /// Of each head's queries in memory.
    capacity: usize,
    splits: usize,
    /// A kept set and a rotary table for each KV head.
    per_head: bool,
}

impl Shape {
    fn new(kind: Kind, head_dim: usize, group: usize) -> Self {
        Self {
            kind,
            query: Kind::F32,
            head_dim,
            kv_heads: 2,
            group,
            budget: 90,
            len: 75,
            tokens: 13,
            capacity: 13,
            splits: 1,
            per_head: false,
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn cap(&self) -> usize {
        let caps = [64, 128, 256];
        caps.into_iter().find(|&cap| self.head_dim <= cap).unwrap()
    }

    /// Rows and slots of a tile.
    fn tile(&self) -> usize {
        if self.cap() == 256 {
            16
        } else {
            32
        }
    }

    fn tiles(&self) -> usize {
        (self.group * self.tokens).div_ceil(self.tile())
    }

    fn stride(&self) -> usize {
        if self.per_head {
            self.budget
        } else {
            0
        }
    }

    fn kernel(&self, name: &str) -> String {
        format!("{name}_{}_{}", self.kind.name(), self.cap())
    }
}

/// A layer and queries to it.
#[derive(Debug, Clone)]
struct Memory {
    keys: Stored,
    values: Stored,
    queries: Stored,
    ranks: Vec<u32>,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Memory {
    fn new(shape: &Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let sets = if shape.per_head { shape.kv_heads } else { 1 };
        let rows = shape.kv_heads * shape.budget * shape.head_dim;
        let keys = random.numbers(rows);
        let keys = keys.iter().map(|x| 3.0 * x).collect::<Vec<_>>();
        let values = random.numbers(rows);
        let queries = random.numbers(shape.heads() * shape.capacity * shape.head_dim);
        let ranks = (0..sets).flat_map(|_| {
            let mut ranks = random.permutation(shape.len);
            ranks.resize(shape.budget, u32::MAX);
            ranks
        });
        let ranks = ranks.collect();
        // The newest positions, the last one as if it stood in the middle.
        let mut positions = (shape.len - shape.tokens..shape.len)
            .map(|p| p as u32)
            .collect::<Vec<_>>();
        positions[0] = shape.len as u32 / 2;
        let turns = Turns::new(sets, shape.budget, shape.head_dim);
        Self {
            keys: Stored::rows(shape.kind, &keys, shape.head_dim),
            values: Stored::rows(shape.kind, &values, shape.head_dim),
            queries: Stored::new(shape.query, &queries),
            ranks,
            positions,
            cos: turns.cos,
            sin: turns.sin,
        }
    }

    /// Output `[heads, tokens, head_dim]`, and what score_sums takes.
    fn attend(&mut self, shape: &Shape, order: u32) -> (Stored, Vec<f32>) {
        let tiles = shape.kv_heads * shape.tiles() * shape.splits;
        let mut partial = vec![f32::NAN; tiles * shape.tile() * (shape.head_dim + 2)];
        let mut arrived = vec![0u32; shape.kv_heads * shape.tiles()];
        let mut tops = vec![f32::NAN; shape.heads() * shape.tokens * 2];
        let outputs = shape.heads() * shape.tokens * shape.head_dim;
        let mut out = Stored::new(shape.query, &vec![f32::NAN; outputs]);
        let split = shape.splits > 1;
        let grid = [shape.tiles(), shape.kv_heads, shape.splits];
        Launch::new(shape.kernel("attend_chunk"), grid, 128)
            .pointer(self.queries.pointer())
            .number(shape.query as usize)
            .buffer(&mut self.positions)
            .number(shape.tokens)
            .pointer(self.keys.pointer())
            .pointer(self.values.pointer())
            .buffer(&mut self.ranks)
            .number(shape.stride())
            .buffer(&mut self.cos)
            .buffer(&mut self.sin)
            .number(0)
            .number(shape.stride())
            .number(shape.group)
            .number(shape.head_dim)
            .number(shape.budget)
            .number(shape.len)
            .float(1.0 / (shape.head_dim as f32).sqrt())
            .buffer(&mut tops)
            .optional(split.then_some(&mut partial))
            .optional(split.then_some(&mut arrived))
            .pointer(out.pointer())
            .run(order);
        assert!(arrived.iter().all(|&n| n == 0));
        (out, tops)
    }

    /// Attention in f64, and the sums `[kv_heads, budget]`, zero behind len.
    fn reference(&self, shape: &Shape) -> (Vec<f64>, Vec<f64>) {
        let turns = Turns {
            cos: self.cos.clone(),
            sin: self.sin.clone(),
        };
        let cache = Cache {
            keys: &self.keys,
            values: &self.values,
            budget: shape.budget,
            head_dim: shape.head_dim,
            len: shape.len,
            ranks: &self.ranks,
            turns: &turns,
        };
        let mut out = Vec::new();
        let mut sums = vec![0.0; shape.kv_heads * shape.budget];
        for head in 0..shape.heads() {
            let kv = head / shape.group;
            for (token, &position) in self.positions.iter().enumerate() {
                let from = (head * shape.capacity + token) * shape.head_dim;
                let query = (from..from + shape.head_dim).map(|i| self.queries.get(i));
                let query = query.collect::<Vec<_>>();
                let probabilities = softmax(&cache.logits(&query, kv, position));
                out.extend(cache.mix(&probabilities, kv));
                let sums = &mut sums[kv * shape.budget..];
                for (sum, p) in sums.iter_mut().zip(&probabilities) {
                    *sum += p / shape.group as f64;
                }
            }
        }
        (out, sums)
    }
}

/// The sums of several layers, `[layers, kv_heads, budget]`; with `tops` given, those that a chunk left.
fn scores(
    shape: &Shape,
    layers: &mut [(Memory, Shape)],
    tops: Option<Vec<f32>>,
    order: u32,
) -> Vec<f32> {
    let given = tops.is_some();
    let first = 12 * layers.len();
    let (mut scored, mut behind) = (Vec::new(), Vec::new());
    for (memory, shape) in layers.iter_mut() {
        let pointers = [
            memory.queries.pointer() as u64,
            memory.keys.pointer() as u64,
            memory.cos.as_ptr() as u64,
            memory.sin.as_ptr() as u64,
        ];
        scored.extend(
            pointers
                .iter()
                .flat_map(|&at| [at as u32, (at >> 32) as u32]),
        );
        let ranks = first + behind.len();
        behind.extend_from_slice(&memory.ranks);
        let positions = first + behind.len();
        behind.extend_from_slice(&memory.positions);
        scored.extend([shape.tokens, shape.len, ranks, positions].map(|n| n as u32));
    }
    scored.append(&mut behind);
    let count = layers.len();
    let mut tops =
        tops.unwrap_or_else(|| vec![f32::NAN; count * shape.heads() * shape.capacity * 2]);
    let mut sums = vec![0.0; count * shape.kv_heads * shape.budget];
    let mut launch = |name: &str, blocks: usize, sums: Option<&mut Vec<f32>>| {
        let launch = Launch::new(shape.kernel(name), [blocks, shape.kv_heads, count], 128)
            .buffer(&mut scored)
            .number(shape.query as usize)
            .number(shape.capacity)
            .number(shape.stride())
            .number(shape.stride())
            .number(shape.group)
            .number(shape.head_dim)
            .number(shape.budget)
            .float(1.0 / (shape.head_dim as f32).sqrt())
            .buffer(&mut tops);
        match sums {
            Some(sums) => launch.buffer(sums).run(order),
            None => launch.run(order),
        }
    };
    if !given {
        launch("score_tops", shape.tiles(), None);
    }
    let blocks = shape.budget.div_ceil(shape.tile());
    launch("score_sums", blocks, Some(&mut sums));
    sums
}

#[test]
fn a_chunk_attends_as_in_f64_and_its_sums_are_those_of_its_probabilities() {
    let mut n = 0;
    for kind in Kind::KEPT {
        for head_dim in [2, 12, 30, 64, 80, 96, 128, 256] {
            for group in [1, 3, 8] {
                n += 1;
                let mut shape = Shape::new(kind, head_dim, group);
                shape.query = Kind::ALL[n % 3];
                shape.splits = [1, 2, 5][n / 3 % 3];
                shape.per_head = n % 2 == 0;
                shape.len = [13, 33, 75, 90][n % 4];
                let before = Memory::new(&shape, n as u64);
                let (want, want_sums) = before.reference(&shape);
                let mut first: Option<(Stored, Vec<f32>)> = None;
                for order in ORDERS {
                    let mut memory = before.clone();
                    let (out, tops) = memory.attend(&shape, order);
                    let sums = scores(&shape, &mut [(memory, shape)], Some(tops), order);
                    if let Some(first) = &first {
                        assert_eq!((&out, &sums), (&first.0, &first.1), "{shape:?} {order}");
                    }
                    first.get_or_insert((out, sums));
                }
                let (out, sums) = first.unwrap();
                let out = out.all().iter().map(|&x| x as f32).collect::<Vec<_>>();
                let out_off = off(&out, &want);
                // The result is rounded to the queries' type.
                let near = [1e-5, 5e-4, 4e-3][shape.query as usize];
                assert!(out_off < near, "{shape:?}: off by {out_off:.1e}");
                let sums_off = off(&sums, &want_sums);
                assert!(sums_off < 1e-5, "{shape:?}: sums off by {sums_off:.1e}");
            }
        }
    }
}

#[test]
fn a_query_that_sees_no_slot_gets_zeros_and_adds_nothing() {
    let shape = Shape::new(Kind::F32, 16, 2);
    let mut memory = Memory::new(&shape, 5);
    // The first slots' ranks are above position 0.
    memory.positions = vec![0; shape.tokens];
    for rank in &mut memory.ranks[..shape.len] {
        *rank += 1;
    }
    let (out, tops) = memory.attend(&shape, 0);
    assert!(out.all().iter().all(|&x| x == 0.0));
    let sums = scores(&shape, &mut [(memory, shape)], Some(tops), 0);
    assert!(sums.iter().all(|&x| x == 0.0));
}

#[test]
fn all_layers_are_scored_at_once_whatever_their_lengths_and_queries() {
    for (kind, head_dim, group) in [
        (Kind::F32, 16, 3),
        (Kind::F16, 64, 1),
        (Kind::BF16, 128, 8),
        (Kind::BF16, 256, 2),
        (Kind::Q8, 80, 4),
    ] {
        for per_head in [false, true] {
            let mut shape = Shape::new(kind, head_dim, group);
            (shape.per_head, shape.capacity) = (per_head, 20);
            if kind != Kind::Q8 {
                shape.query = kind;
            }
            let layer = |len: usize, tokens: usize| {
                let layer = Shape {
                    len,
                    tokens,
                    ..shape
                };
                (Memory::new(&layer, len as u64), layer)
            };
            let layers = [layer(90, 13), layer(20, 20), layer(33, 1)];
            let want = layers.iter().flat_map(|(memory, layer)| {
                let (_, sums) = memory.reference(layer);
                sums
            });
            let want = want.collect::<Vec<_>>();
            // As large as the largest of them.
            shape.tokens = 20;
            let mut first = None;
            for order in ORDERS {
                let sums = scores(&shape, &mut layers.clone(), None, order);
                let off = off(&sums, &want);
                assert!(off < 1e-5, "{shape:?}: off by {off:.1e}");
                let bits = sums.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()));
            }
        }
    }
}

#[test]
fn rows_move_in_the_heads_of_their_set_in_all_buffers_and_are_copied_before() {
    let (kv_heads, budget, head_dim) = (4, 6, 10);
    for kind in [Kind::F32, Kind::BF16, Kind::Q8] {
        for heads in [1, 2, 4] {
            let mut random = Random(9);
            let mut buffer = || {
                let numbers = random.numbers(kv_heads * budget * head_dim);
                Stored::rows(kind, &numbers, head_dim)
            };
            let mut keys = [buffer(), buffer()];
            let mut values = [buffer(), buffer()];
            let sets = kv_heads / heads;
            let mut moves = vec![[0, 0, 5, 1], [1, sets as u32 - 1, 4, 0]];
            moves.push([1, 0, 5, 2]);
            let moved = |numbers: Vec<f64>, layer: u32, width: usize| {
                let mut numbers = numbers;
                for &[_, set, from, to] in moves.iter().filter(|m| m[0] == layer) {
                    for head in set as usize * heads..(set as usize + 1) * heads {
                        let row = |slot: u32| (head * budget + slot as usize) * width;
                        numbers.copy_within(row(from)..row(from) + width, row(to));
                    }
                }
                numbers
            };
            let all = |buffers: &[Stored; 2]| [buffers[0].all(), buffers[1].all()];
            let want = [&keys, &values].map(|buffers| {
                let [first, second] = all(buffers);
                [moved(first, 0, head_dim), moved(second, 1, head_dim)]
            });
            let row_bytes = match kind {
                Kind::F32 => 4 * head_dim,
                Kind::Q8 => row_bytes(head_dim),
                _ => 2 * head_dim,
            };
            let overwritten = moves.iter().map(|&[layer, set, _, to]| [layer, set, to, 0]);
            let mut overwritten = overwritten.collect::<Vec<_>>();
            let mut moves = moves.clone();
            let mut buffers = Vec::new();
            for layer in 0..2 {
                for buffers_of in [&mut keys, &mut values] {
                    let at = buffers_of[layer].pointer() as u64;
                    buffers.push([at, row_bytes as u64]);
                }
            }
            let mut copies = [0; 2].map(|_| {
                let room = vec![f32::NAN; moves.len() * heads * head_dim];
                Stored::rows(kind, &room, head_dim)
            });
            let mut places = copies.each_mut().map(Stored::pointer);
            let before = [all(&keys), all(&values)];
            Launch::new("take_rows", [moves.len(), heads, 2], 32)
                .buffer(&mut overwritten)
                .buffer(&mut buffers)
                .number(heads)
                .number(budget)
                .buffer(&mut places)
                .run(0);
            assert_eq!([all(&keys), all(&values)], before);
            for (copy, of_layers) in copies.iter().zip(&before) {
                let copy = copy.all();
                for (i, &[layer, set, slot, _]) in overwritten.iter().enumerate() {
                    for head in 0..heads {
                        let row = (i * heads + head) * head_dim;
                        let head = set as usize * heads + head;
                        let from = (head * budget + slot as usize) * head_dim;
                        let want = &of_layers[layer as usize][from..from + head_dim];
                        assert_eq!(&copy[row..row + head_dim], want);
                    }
                }
            }
            Launch::new("move_rows", [moves.len(), heads, 2], 32)
                .buffer(&mut moves)
                .buffer(&mut buffers)
                .number(heads)
                .number(budget)
                .run(0);
            assert_eq!([all(&keys), all(&values)], want);
        }
    }
}

#[test]
fn a_chunk_is_remembered_and_its_own_slots_begin_at_zero() {
    let budget = 8;
    for (start, len) in [(3, 6), (2, 6), (4, 7)] {
        // Of two histories the one is read and the other written, or the same if start and len are both odd or both even.
        let mut history = (0..4 * budget).map(|i| i as f32).collect::<Vec<_>>();
        let mut sums = (0..2 * budget).map(|i| 0.25 * i as f32).collect::<Vec<_>>();
        let mut want = history.clone();
        for head in 0..2 {
            for slot in 0..len {
                let before = history[(start % 2 * 2 + head) * budget + slot];
                let before = if slot >= start { 0.0 } else { 0.5 * before };
                let sum = sums[head * budget + slot];
                want[(len % 2 * 2 + head) * budget + slot] = before + sum;
            }
        }
        Launch::new("remember_chunk", [1, 2, 1], 32)
            .buffer(&mut sums)
            .number(start)
            .number(len)
            .number(budget)
            .float(0.5)
            .buffer(&mut history)
            .run(0);
        assert_eq!(history, want);
    }
}
