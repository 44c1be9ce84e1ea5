//! Embedding, logits and choice, and how they move a step on.

use super::{off, rms_norm, wide, Kind, Launch, LayerState, Random, Step, Stored, ORDERS};

const EPS: f32 = 1e-5;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Best {
    logit: f32,
    token: u32,
    sum: f32,
    invalid: u32,
}

#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq)]
struct Status([u32; 4]);

/// The end of a step with logits that are given: the head is the identity, so that they are the input.
#[derive(Debug, Clone)]
struct Ending {
    step: Step,
    layers: Vec<LayerState>,
    banned: Vec<u32>,
    ends: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    status: Status,
    logits: Vec<f32>,
}

impl Ending {
    fn new() -> Self {
        Self {
            step: Step::ready(),
            layers: vec![
                LayerState {
                    len: 5,
                    cursor: 2,
                    window: 3,
                    first_row: 0,
                },
                LayerState {
                    len: 9,
                    cursor: 0,
                    window: 0,
                    first_row: 0,
                },
            ],
            banned: Vec::new(),
            ends: vec![90, 91],
            tokens: vec![u32::MAX; 4],
            logprobs: vec![f32::NAN; 4],
            status: Status([77; 4]),
            logits: Vec::new(),
        }
    }

    /// Puts one block on every 8 warps' rows or fewer.
    fn run(&mut self, logits: &[f32], blocks: usize, order: u32) {
        let vocab = logits.len();
        // Row i gives logit i from an input of ones.
        let mut weights = vec![0.0; vocab * 8];
        for (row, logit) in weights.chunks_exact_mut(8).zip(logits) {
            row[0] = *logit;
        }
        self.logits = vec![f32::NAN; vocab];
        let mut bits = vec![0u32; vocab.div_ceil(32)];
        for &token in &self.banned {
            bits[token as usize / 32] |= 1 << (token % 32);
        }
        let banned = (!self.banned.is_empty()).then_some(&mut bits);
        let mut best = vec![
            Best {
                logit: f32::NAN,
                token: 0,
                sum: f32::NAN,
                invalid: 0
            };
            blocks
        ];
        Launch::new("norm_lm_head_f32", [blocks, 1, 1], 64)
            .shared(32)
            .state(&mut self.step)
            .buffer(&mut [1.0f32; 8])
            .buffer(&mut [1.0f32; 8])
            .float(0.0)
            .buffer(&mut weights)
            .optional(banned)
            .number(vocab)
            .number(8)
            .buffer(&mut self.logits)
            .buffer(&mut best)
            .run(order);
        let (tokens, layers) = (self.tokens.len(), self.layers.len());
        let ends = self.ends.len();
        Launch::new("choose", [1, 1, 1], 64)
            .state(&mut self.step)
            .buffer(&mut best)
            .number(blocks)
            .buffer(&mut self.ends)
            .number(ends)
            .buffer(&mut self.tokens)
            .buffer(&mut self.logprobs)
            .number(tokens)
            .state(&mut self.status)
            .buffer(&mut self.layers)
            .number(layers)
            .run(order);
        let Step {
            count,
            stop,
            fault,
            fault_token,
            ..
        } = self.step;
        assert_eq!(self.status.0, [count, stop, fault, fault_token]);
    }

    fn lens(&self) -> Vec<(u32, u32)> {
        self.layers.iter().map(|l| (l.len, l.cursor)).collect()
    }
}

#[test]
fn a_row_of_the_table_is_embedded() {
    for kind in Kind::ALL {
        let mut random = Random(4);
        let (vocab, hidden) = (7, 300);
        let mut table = Stored::new(kind, &random.numbers(vocab * hidden));
        let mut x = vec![f32::NAN; hidden];
        let mut step = Step {
            token: 5,
            ..Step::ready()
        };
        Launch::new(format!("embed_{}", kind.name()), [2, 1, 1], 64)
            .state(&mut step)
            .pointer(table.pointer())
            .number(hidden)
            .buffer(&mut x)
            .run(0);
        assert_eq!(wide(&x), table.all()[5 * hidden..6 * hidden]);
        step.stop = 1;
        let mut untouched = vec![3.0; hidden];
        Launch::new(format!("embed_{}", kind.name()), [2, 1, 1], 64)
            .state(&mut step)
            .pointer(table.pointer())
            .number(hidden)
            .buffer(&mut untouched)
            .run(0);
        assert_eq!(untouched, vec![3.0; hidden]);
    }
}

#[test]
fn logits_are_products_of_the_normed_input_and_the_best_is_chosen_with_its_probability() {
    for kind in Kind::ALL {
        for (vocab, hidden, blocks) in [(1, 8, 1), (333, 40, 3), (1000, 31, 40)] {
            let mut random = Random(hidden as u64);
            let x = random.numbers(hidden);
            let gain = random.numbers(hidden);
            let weights = Stored::new(kind, &random.numbers(vocab * hidden));
            let normed = rms_norm(&wide(&x), &gain, EPS);
            let rows = weights.all();
            let want = rows
                .chunks_exact(hidden)
                .map(|row| row.iter().zip(&normed).map(|(a, b)| a * b).sum::<f64>())
                .collect::<Vec<_>>();
            let top = want.iter().copied().fold(f64::MIN, f64::max);
            let total = want.iter().map(|l| (l - top).exp()).sum::<f64>();
            let mut bits: Option<Vec<u32>> = None;
            for order in ORDERS {
                let mut logits = vec![f32::NAN; vocab];
                let mut best = vec![[f32::NAN; 4]; blocks];
                let mut step = Step::ready();
                Launch::new(format!("norm_lm_head_{}", kind.name()), [blocks, 1, 1], 128)
                    .shared(hidden * 4)
                    .state(&mut step)
                    .buffer(&mut x.clone())
                    .buffer(&mut gain.clone())
                    .float(EPS)
                    .pointer(weights.clone().pointer())
                    .optional::<u32>(None)
                    .number(vocab)
                    .number(hidden)
                    .buffer(&mut logits)
                    .buffer(&mut best)
                    .run(order);
                let (mut tokens, mut logprobs) = ([0u32], [f32::NAN]);
                Launch::new("choose", [1, 1, 1], 32)
                    .state(&mut step)
                    .buffer(&mut best)
                    .number(blocks)
                    .optional::<u32>(None)
                    .number(0)
                    .buffer(&mut tokens)
                    .buffer(&mut logprobs)
                    .number(1)
                    .state(&mut Status([0; 4]))
                    .optional::<LayerState>(None)
                    .number(0)
                    .run(order);
                let logits_off = off(&logits, &want);
                assert!(
                    logits_off < 1e-5,
                    "{kind:?} {vocab}: off by {logits_off:.1e}"
                );
                let first = logits.iter().copied().fold(f32::MIN, f32::max);
                let first = logits.iter().position(|&l| l == first).unwrap();
                assert_eq!((tokens[0] as usize, step.token as usize), (first, first));
                let logprob = f64::from(logprobs[0]);
                assert!((logprob + total.ln()).abs() < 1e-5, "{logprob}, {total}");
                let all = logits.iter().chain(&logprobs).map(|x| x.to_bits());
                let all = all.collect::<Vec<_>>();
                assert_eq!(&all, bits.get_or_insert_with(|| all.clone()));
            }
        }
    }
}

#[test]
fn of_equal_logits_the_first_is_chosen_wherever_they_lie() {
    for (a, b) in [(0, 1), (3, 4), (7, 8), (2, 99), (40, 41), (98, 99)] {
        for blocks in [1, 2, 7, 30] {
            for order in ORDERS {
                let mut logits = vec![-1.0; 100];
                (logits[a], logits[b]) = (2.5, 2.5);
                let mut ending = Ending::new();
                ending.run(&logits, blocks, order);
                assert_eq!(ending.tokens[0], a as u32, "{a} {b}, {blocks} blocks");
                ending = Ending::new();
                ending.banned = vec![a as u32, 50];
                ending.run(&logits, blocks, order);
                assert_eq!(ending.tokens[0], b as u32, "{a} {b}, {blocks} blocks");
            }
        }
    }
}

#[test]
fn banned_tokens_are_left_out_of_choice_and_probability() {
    let mut ending = Ending::new();
    ending.banned = vec![1, 33];
    let mut logits = vec![f32::MIN; 40];
    (logits[0], logits[1], logits[2], logits[33]) = (0.0, 50.0, 2.0, 60.0);
    ending.run(&logits, 3, 0);
    assert_eq!(ending.tokens[0], 2);
    let p = 2f32.exp() / (1.0 + 2f32.exp());
    assert!((ending.logprobs[0] - p.ln()).abs() < 1e-6);
    // What the host may draw from is there as it was.
    assert_eq!(ending.logits, logits);
}

#[test]
fn a_logit_that_is_no_finite_number_is_a_fault_even_if_banned_and_nothing_moves() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for order in ORDERS {
            let mut ending = Ending::new();
            ending.banned = vec![17];
            let mut logits = vec![1.0; 70];
            (logits[17], logits[60]) = (bad, bad);
            let before = (ending.lens(), ending.tokens.clone());
            ending.run(&logits, 4, order);
            let expected = Step {
                fault: 2,
                fault_token: 17,
                ..Step::ready()
            };
            assert_eq!(ending.step, expected);
            assert_eq!((ending.lens(), ending.tokens.clone()), before);
        }
    }
    let mut ending = Ending::new();
    ending.banned = vec![0, 1];
    ending.run(&[1.0, 2.0], 2, 0);
    assert_eq!(ending.step.fault, 3);
    assert_eq!(ending.lens(), [(5, 2), (9, 0)]);
}

#[test]
fn a_step_moves_lengths_and_cursors_on_and_an_end_stops() {
    let mut ending = Ending::new();
    ending.step.count = 3;
    let choosing = |token: usize| {
        let mut logits = vec![0.0; 100];
        logits[token] = 9.0;
        logits
    };
    ending.run(&choosing(7), 2, 0);
    // The cursor turns through the window; a layer that takes no queries keeps its own.
    assert_eq!(ending.lens(), [(6, 0), (10, 0)]);
    assert_eq!(ending.tokens, [u32::MAX, u32::MAX, u32::MAX, 7]);
    let running = Step {
        token: 7,
        left: 8,
        count: 4,
        ..Step::default()
    };
    assert_eq!(ending.step, running);
    // An end is written and counted, and not appended: its step is never run.
    ending.run(&choosing(91), 2, 1);
    assert_eq!(ending.tokens, [91, u32::MAX, u32::MAX, 7]);
    let stopped = Step {
        token: 91,
        stop: 2,
        left: 7,
        count: 5,
        ..Step::default()
    };
    assert_eq!(ending.step, stopped);
    assert_eq!(ending.lens(), [(7, 1), (11, 0)]);
    let before = format!("{ending:?}");
    let logits = ending.logits.clone();
    ending.run(&choosing(3), 2, 0);
    ending.logits = logits;
    assert_eq!(format!("{ending:?}"), before);
}

#[test]
fn the_last_token_is_appended_and_nothing_follows_it() {
    let mut ending = Ending::new();
    ending.step.left = 1;
    // Not even a broken logit is looked at: nobody asks for it.
    ending.run(&[f32::NAN, 1.0], 1, 0);
    assert!(
        ending.logits.iter().all(|l| l.is_nan()),
        "no logits are computed"
    );
    assert_eq!(ending.lens(), [(6, 0), (10, 0)]);
    let expected = Step {
        stop: 1,
        ..Step::default()
    };
    assert_eq!(ending.step, expected);
    assert_eq!(ending.tokens, [u32::MAX; 4]);
}
