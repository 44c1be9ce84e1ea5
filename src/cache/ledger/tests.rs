//! The ledger beside a plain model, with lists of numbers for a store.

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::cache::numbering::positions;
use crate::cache::slots::{Mark, Place, Video};
use crate::cache::{CacheConfig, PolicyKind, Rope, RopeAxes, StateShape};

const BUDGET: usize = 24;
const HEADS: usize = 2;
const WINDOW: usize = 5;
const BORDER: usize = 9;

#[derive(Debug, Clone)]
enum Step {
    /// So many tokens, which the store is given in one chunk.
    Append(usize, Kind),
    /// So many tokens, which something else writes into the store and tells of one by one.
    Noted(usize, Kind),
    /// Drops so many tokens; which ones follows from the second number.
    Evict(usize, usize),
    Clear,
    Mark,
    PutBack,
    LetGo,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Instruction,
    Image,
}

/// What the stream is worth to a cache that keeps plain lists.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    /// Of each kept set, in the order of time: each token with the attention that it has got.
    kept: Vec<Vec<(Token, f32)>>,
    relevant: usize,
    /// Queries that are asked at a compaction, oldest first.
    queries: Vec<u64>,
    instructed: bool,
    within: bool,
    counts: Counts,
}

/// A store of plain numbers: instead of a key there stands the index of its token.
#[derive(Debug, Clone)]
struct Plain {
    /// By kept set and slot.
    rows: Vec<Vec<u64>>,
    ring: Vec<u64>,
    /// By kept set and rank: where it stands, and whether the gap farther on.
    tables: Vec<Vec<([usize; 3], bool)>>,
    /// Of each mark, what stood where.
    saved: Vec<Vec<(Part, u32, u64)>>,
}

struct Pair {
    ledger: Ledger,
    store: Plain,
    model: Model,
    marked: Vec<Model>,
    decay: Option<f32>,
    source: QuerySource,
    axes: bool,
    next: u64,
}

impl Pair {
    fn new(config: &CacheConfig, axes: RopeAxes) -> Self {
        let shape = CacheShape {
            layers: 1,
            heads: 2 * HEADS,
            kv_heads: HEADS,
            head_dim: 8,
            rope: Rope {
                axes,
                ..Rope::new(1e4)
            },
            max_positions: 1 << 12,
            states: StateShape::NONE,
        };
        let policy = config.policy.build(config).unwrap();
        let plan = Plan::new(config, policy.as_ref(), 0, shape.max_positions).unwrap();
        let ledger = Ledger::new(&shape, &plan, policy.as_ref());
        let sets = ledger.sets().len();
        Self {
            store: Plain {
                rows: vec![vec![u64::MAX; BUDGET]; sets],
                ring: vec![u64::MAX; WINDOW],
                tables: vec![vec![Default::default(); BUDGET]; sets],
                saved: Vec::new(),
            },
            model: Model::empty(sets),
            marked: Vec::new(),
            decay: match policy.evidence() {
                Evidence::History { decay } => Some(decay),
                Evidence::Age | Evidence::Window { .. } => None,
            },
            source: config.query_source,
            axes: axes != RopeAxes::One,
            next: 0,
            ledger,
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Append(count, kind) => {
                let tokens = self.tokens(count, kind);
                self.write(&tokens);
                self.ledger.note_appended(&tokens);
                self.model.append(&tokens, self.window(), self.source);
                self.remember();
            }
            Step::Noted(count, kind) => {
                let tokens = self.tokens(count, kind);
                self.write(&tokens);
                for token in tokens {
                    self.ledger.note_appended(&[token]);
                    self.model.append(&[token], self.window(), self.source);
                    self.remember();
                }
            }
            Step::Evict(count, seed) => self.evict(count, seed),
            Step::Clear => {
                self.ledger.clear(self.window());
                self.model = Model::empty(self.model.kept.len());
            }
            Step::Mark => {
                self.ledger.mark();
                self.store.saved.push(Vec::new());
                self.marked.push(self.model.clone());
            }
            Step::PutBack => {
                for (set, places) in self.ledger.put_back().iter().enumerate() {
                    self.store.place(set, places);
                }
                if let Some(saved) = self.store.saved.last_mut() {
                    for (part, slot, was) in saved.drain(..) {
                        match part {
                            Part::Set(set) => self.store.rows[set][slot as usize] = was,
                            Part::Ring => self.store.ring[slot as usize] = was,
                        }
                    }
                }
                if let Some(marked) = self.marked.last() {
                    self.model = marked.clone();
                }
            }
            Step::LetGo => {
                self.ledger.let_go();
                self.store.saved.pop();
                self.marked.pop();
            }
        }
    }

    /// The next tokens of the stream, as many as there is room for.
    fn tokens(&mut self, count: usize, kind: Kind) -> Vec<Token> {
        let count = count.min(BUDGET - self.ledger.len());
        let first = self.next;
        self.next += count as u64;
        let token = |index: u64| {
            let mut mark = Mark::default();
            match kind {
                Kind::Text => {}
                Kind::Instruction => mark.instruction = true,
                Kind::Image => {
                    mark = Mark::image(first as u32);
                    let offset = (index - first) as u16;
                    mark.place = Place {
                        offset: [0, offset / 2, offset % 2],
                        extent: 3,
                        // Images that follow one another are of one video.
                        video: NonZeroU16::new(1).map(|number| Video { number, step: 2 }),
                    };
                }
            }
            Token {
                index,
                unit: first,
                mark,
            }
        };
        (first..self.next).map(token).collect()
    }

    /// Queries that the policy asks.
    fn window(&self) -> usize {
        self.decay.map_or(WINDOW, |_| 0)
    }

    fn write(&mut self, tokens: &[Token]) {
        let next = self.ledger.next(tokens);
        for set in 0..self.store.rows.len() {
            self.save(Part::Set(set), next.slots.clone());
            for (slot, token) in next.slots.clone().zip(tokens) {
                self.store.rows[set][slot] = token.index;
            }
        }
        for run in next.runs {
            self.save(Part::Ring, run.slots.clone());
            for (slot, token) in run.slots.zip(&tokens[run.from..]) {
                self.store.ring[slot] = token.index;
            }
        }
        for (set, places) in next.places.iter().enumerate() {
            self.store.place(set, places);
        }
    }

    fn save(&mut self, part: Part, slots: Range<usize>) {
        for mark in 0..self.ledger.marks() {
            let slots = slots.clone().map(|slot| slot as u32);
            let unsaved = self.ledger.unsaved(mark, part, slots);
            for &slot in &unsaved {
                let was = match part {
                    Part::Set(set) => self.store.rows[set][slot as usize],
                    Part::Ring => self.store.ring[slot as usize],
                };
                self.store.saved[mark].push((part, slot, was));
            }
            self.ledger.note_saved(mark, part, &unsaved);
        }
    }

    /// One step's attention: of every head a different number for every slot.
    fn remember(&mut self) {
        let Some(decay) = self.decay else { return };
        let attention = |head: usize, token: &Token| (head + 1) as f32 / (token.index + 2) as f32;
        let heads = 0..HEADS;
        let sums = heads.flat_map(|head| {
            let tokens = self.ledger.set_of(head).tokens().iter();
            tokens.map(move |token| attention(head, token))
        });
        let sums = sums.collect::<Vec<_>>();
        if sums.is_empty() {
            return;
        }
        self.ledger.remember(&sums, decay);
        for (head, kept) in self.model.kept.iter_mut().enumerate() {
            for (token, sum) in kept {
                *sum = *sum * decay + attention(head, token);
            }
        }
    }

    fn evict(&mut self, count: usize, seed: usize) {
        let len = self.ledger.len();
        let count = count.min(len.saturating_sub(WINDOW));
        let relevant = seed % 3;
        for set in 0..self.store.rows.len() {
            // Ranks that go, never the newest ones, in another place in each set.
            let going = |rank: usize| {
                let old = len - WINDOW;
                rank < old && (rank + seed * (set + 1)) % old < count
            };
            let mut order = Vec::new();
            self.ledger.sets()[set].order(&mut order);
            let mut kept = vec![true; len];
            for (rank, &slot) in order.iter().enumerate() {
                kept[slot as usize] = count == 0 || !going(rank);
            }
            let mut moves = Vec::new();
            let border = Some(BORDER);
            let places = self
                .ledger
                .evict(set, (&kept, &order), (relevant, border), &mut moves);
            assert!(moves.len() <= count);
            if let Some(places) = places {
                self.store.place(set, &places);
            }
            for &(from, to) in &moves {
                self.save(Part::Set(set), to as usize..to as usize + 1);
                self.store.rows[set][to as usize] = self.store.rows[set][from as usize];
            }
            let mut rank = 0;
            self.model.kept[set].retain(|_| {
                rank += 1;
                count == 0 || !going(rank - 1)
            });
            self.model.counts.moved += moves.len() as u64;
        }
        self.ledger.note_compaction();
        self.model.counts.compactions += 1;
        self.model.relevant = relevant;
    }

    fn check(&self) {
        let Self {
            ledger,
            store,
            model,
            ..
        } = self;
        assert_eq!(ledger.counts(), &model.counts);
        assert_eq!(ledger.has_relevant(), model.relevant > 0);
        let history = ledger.history();
        for (set, kept) in model.kept.iter().enumerate() {
            let slots = &ledger.sets()[set];
            let tokens = kept.iter().map(|(token, _)| *token).collect::<Vec<_>>();
            assert_eq!(
                (ledger.len(), slots.by_time()),
                (tokens.len(), tokens.clone())
            );
            for (slot, &rank) in slots.positions().iter().enumerate() {
                let (token, sum) = kept[rank as usize];
                assert_eq!(store.rows[set][slot], token.index);
                if self.decay.is_some() {
                    assert_eq!(history[set * kept.len() + slot], sum);
                }
            }
            if self.axes {
                let places = positions(&tokens).enumerate();
                let apart = |rank| model.counts.compactions > 0 && rank >= BORDER;
                let places = places.map(|(rank, place)| (place, apart(rank)));
                let places = places.collect::<Vec<_>>();
                assert_eq!(store.tables[set][..tokens.len()], places);
            }
        }
        let asked = ledger.ring().positions(ledger.len()).into_iter();
        let mut asked = asked.zip(&store.ring).collect::<Vec<_>>();
        asked.sort_unstable();
        let end = ledger.len() - model.queries.len();
        let held = (end as u32..).zip(&model.queries).collect::<Vec<_>>();
        assert_eq!(asked, held);
    }
}

impl Plain {
    fn place(&mut self, set: usize, places: &Places) {
        for (rank, &at) in (places.first..).zip(&places.at) {
            let apart = places.border.is_some_and(|border| rank >= border);
            self.tables[set][rank] = (at, apart);
        }
    }
}

impl Model {
    fn empty(sets: usize) -> Self {
        Self {
            kept: vec![Vec::new(); sets],
            relevant: 0,
            queries: Vec::new(),
            instructed: false,
            within: false,
            counts: Counts::default(),
        }
    }

    fn append(&mut self, tokens: &[Token], window: usize, source: QuerySource) {
        for kept in &mut self.kept {
            kept.extend(tokens.iter().map(|&token| (token, 0.0)));
        }
        self.counts.attended += (tokens.len() * self.kept[0].len()) as u64;
        for token in tokens {
            let instruction = token.mark.instruction && source == QuerySource::Instruction;
            if instruction && !self.within {
                self.instructed = true;
                self.queries.clear();
            }
            self.within = instruction;
            if instruction || !self.instructed {
                self.queries.push(token.index);
            }
            let beyond = self.queries.len().saturating_sub(window);
            self.queries.drain(..beyond);
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = || prop_oneof![Just(Kind::Text), Just(Kind::Instruction), Just(Kind::Image)];
    prop_oneof![
        4 => (1..9usize, kind()).prop_map(|(count, kind)| Step::Append(count, kind)),
        4 => (1..5usize, kind()).prop_map(|(count, kind)| Step::Noted(count, kind)),
        3 => (0..12usize, 0..30usize).prop_map(|(count, seed)| Step::Evict(count, seed)),
        1 => Just(Step::Clear),
        3 => Just(Step::Mark),
        3 => Just(Step::PutBack),
        1 => Just(Step::LetGo),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_goes_or_is_taken_back_is_noted_as_plain_lists_have_it(
        steps in prop::collection::vec(any_step(), 1..60),
        policy in prop::sample::select(vec![PolicyKind::H2o, PolicyKind::InfMllm]),
        scope in prop::sample::select(vec![Scope::Layer, Scope::KvHead]),
        query_source in prop::sample::select(QuerySource::ALL.to_vec()),
        axes in prop::sample::select(vec![RopeAxes::One, RopeAxes::Sections([2, 1, 1])]),
    ) {
        let config = CacheConfig {
            policy,
            scope,
            query_source,
            budget: BUDGET,
            query_window: WINDOW,
            h2o_decay: 0.9,
            ..CacheConfig::default()
        };
        let mut pair = Pair::new(&config, axes);
        for step in &steps {
            pair.run(step);
            pair.check();
        }
    }
}
