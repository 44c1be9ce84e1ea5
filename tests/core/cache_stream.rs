//! A random but repeatable stream of text and images through a cache alone, for what must hold of it whatever comes.

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::policy::{BiasForm, PlusConfig};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheError, CacheShape, CacheUsage, KvStorage, Mark, Place, Plan,
    PolicyKind, QuerySource, Rope, RopeAxes, Scope, StateShape, Token,
};
use proptest::prelude::*;

use crate::support::stored;

pub const SHAPE: CacheShape = CacheShape {
    layers: 3,
    heads: 6,
    kv_heads: 2,
    head_dim: 8,
    rope: Rope::new(1e4),
    max_positions: 4096,
    states: StateShape::NONE,
};

/// Every policy but `full`.
pub fn evicting() -> Vec<PolicyKind> {
    let all = PolicyKind::ALL.into_iter();
    all.filter(|&policy| policy != PolicyKind::Full).collect()
}

/// Random but repeatable numbers for token `index` of a stream, so that every chunking feeds the same stream.
pub fn vectors(index: u64, heads: usize, salt: u64) -> Vec<f32> {
    let mut state = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (salt << 32);
    (0..heads * SHAPE.head_dim)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as f32 / (1u64 << 30) as f32 - 1.0) * 2.0
        })
        .collect()
}

/// `[heads, tokens, head_dim]` for tokens of a stream.
fn rows(tokens: &[Token], heads: usize, salt: u64) -> Tensor {
    let values = tokens
        .iter()
        .flat_map(|token| vectors(token.index, heads, salt))
        .collect::<Vec<_>>();
    let shape = (tokens.len(), heads, SHAPE.head_dim);
    let rows = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    rows.transpose(0, 1).unwrap().contiguous().unwrap()
}

/// What token `index` of the stream is: images of two rows of three tokens with text in between, in units of 1 to 9 tokens, now and
/// then an instruction, the border of a turn.
pub fn mark(index: u64) -> Mark {
    let at = index % 23;
    if (9..15).contains(&at) {
        let i = (at - 9) as u16;
        return Mark {
            starts_unit: i == 0,
            place: Place {
                offset: [0, i / 3, i % 3],
                extent: 3,
                video: None,
            },
            ..Mark::image((index / 23) as u32)
        };
    }
    Mark {
        starts_unit: index.is_multiple_of(9) || index % 5 == 3,
        boundary: index % 17 == 4,
        instruction: index % 40 < 6,
        ..Mark::default()
    }
}

/// A cache that the stream is fed to.
pub struct Fed {
    pub cache: BoundedCache,
    config: CacheConfig,
}

/// All that can be seen of a cache, floats by their bits.
#[derive(Debug, PartialEq)]
pub struct Seen {
    usage: CacheUsage,
    plan: Plan,
    kept: Vec<Vec<Vec<Token>>>,
    positions: Vec<Vec<Vec<[usize; 3]>>>,
    scores: Vec<Vec<Vec<u32>>>,
    rotated_keys: Vec<Vec<u32>>,
    states: Vec<Vec<u32>>,
}

impl Seen {
    pub fn of(cache: &BoundedCache) -> Self {
        let layers = 0..cache.layers().len();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        let sets = |layer| cache.scores(layer).unwrap().into_iter().map(bits).collect();
        Self {
            usage: cache.usage(),
            plan: *cache.plan(),
            kept: kept(cache),
            positions: layers.clone().map(|i| cache.positions(i)).collect(),
            scores: layers.clone().map(sets).collect(),
            rotated_keys: layers
                .filter(|&i| !cache.layers()[i].is_empty())
                .map(|i| bits(flat(&cache.rotated_keys(i).unwrap())))
                .collect(),
            states: cache
                .states()
                .iter()
                .flat_map(|state| [Some(state.inputs()), state.matrices()])
                .flatten()
                .map(|numbers| bits(flat(numbers)))
                .collect(),
        }
    }
}

pub fn flat(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    x.to_vec1().unwrap()
}

/// The tokens of each layer and kept set, in the order of time.
pub fn kept(cache: &BoundedCache) -> Vec<Vec<Vec<Token>>> {
    let layers = cache.layers().iter();
    layers.map(|layer| layer.sets().collect()).collect()
}

impl Fed {
    pub fn new(
        axes: RopeAxes,
        config: &CacheConfig,
        system_tokens: usize,
    ) -> Result<Self, CacheError> {
        let rope = Rope { axes, ..SHAPE.rope };
        let shape = CacheShape { rope, ..SHAPE };
        Ok(Self {
            cache: BoundedCache::new(shape, config, system_tokens, DType::F32, &Device::Cpu)?,
            config: config.clone(),
        })
    }

    /// Whether a layer gets a token.
    fn takes(&self, layer: usize, mark: &Mark) -> bool {
        let withdraw = self.config.withdraw_layer;
        withdraw == 0 || layer < withdraw || mark.frame.is_none()
    }

    /// Feeds the next `tokens` tokens of the stream as one chunk, or in as many pieces as the cache asks for; what the layers give, by
    /// their bits.
    pub fn feed(&mut self, mut tokens: usize) -> Vec<u32> {
        let mut outs = Vec::new();
        while tokens > 0 {
            let first = self.cache.usage().tokens_seen;
            let marks = (first..first + tokens as u64).map(mark).collect::<Vec<_>>();
            let count = self.cache.admissible(&marks).unwrap();
            outs.extend(self.feed_piece(count, SHAPE.layers));
            tokens -= count;
        }
        outs
    }

    /// Feeds the next `tokens` tokens, the last piece of them to the first `layers` layers alone, as if the next one had failed.
    pub fn feed_torn(&mut self, mut tokens: usize, layers: usize) {
        loop {
            let first = self.cache.usage().tokens_seen;
            let marks = (first..first + tokens as u64).map(mark).collect::<Vec<_>>();
            let count = self.cache.admissible(&marks).unwrap();
            if count == tokens {
                self.feed_piece(count, layers);
                return;
            }
            self.feed_piece(count, SHAPE.layers);
            tokens -= count;
        }
    }

    fn feed_piece(&mut self, tokens: usize, layers: usize) -> Vec<u32> {
        let first = self.cache.usage().tokens_seen;
        let marks = (first..first + tokens as u64).map(mark).collect::<Vec<_>>();
        let admitted = self.cache.admit(&marks).unwrap();
        let mut outs = Vec::new();
        for i in 0..layers {
            let taken = admitted.iter().filter(|token| self.takes(i, &token.mark));
            let taken = taken.copied().collect::<Vec<_>>();
            if taken.is_empty() {
                continue;
            }
            let salt = 10 * i as u64;
            let q = rows(&taken, SHAPE.heads, salt);
            let k = rows(&taken, SHAPE.kv_heads, salt + 1);
            let v = rows(&taken, SHAPE.kv_heads, salt + 2);
            let out = self.cache.layer(i).attend(&q, &k, &v, &taken).unwrap();
            outs.extend(flat(&out).into_iter().map(f32::to_bits));
        }
        outs
    }

    /// The invariants of a cache at rest.
    pub fn check(&self) {
        let cache = &self.cache;
        let plan = cache.plan();
        let usage = cache.usage();
        assert_eq!(usage.used, usage.prefix + usage.relevant + usage.recent);
        assert_eq!(usage.tokens_seen, cache.len() as u64 + usage.tokens_evicted);
        for (i, layer) in cache.layers().iter().enumerate() {
            assert!(layer.len() <= plan.budget, "layer {i} above {plan:?}");
            let taken = (0..usage.tokens_seen).filter(|&index| self.takes(i, &mark(index)));
            let taken = taken.collect::<Vec<_>>();
            for set in layer.sets() {
                assert_eq!(set.len(), layer.len());
                let indices = set.iter().map(|token| token.index).collect::<Vec<_>>();
                assert!(indices.windows(2).all(|w| w[0] < w[1]), "order of time");
                assert!(indices.iter().all(|index| taken.contains(index)));
                let prefix = plan.prefix.min(indices.len());
                assert_eq!(indices[..prefix], taken[..prefix], "prefix");
                let recent = plan.recent.min(indices.len());
                let newest = &indices[indices.len() - recent..];
                assert_eq!(newest, &taken[taken.len() - recent..], "newest tokens");
            }
        }
    }

    /// Every cached key is that of its token, to the bit (of what it is stored as).
    pub fn check_keys(&self) {
        for (i, layer) in self.cache.layers().iter().enumerate() {
            if layer.is_empty() {
                continue;
            }
            let keys = layer.raw_keys().unwrap().to_dtype(DType::F32).unwrap();
            let keys = keys.to_vec3::<f32>().unwrap();
            let sets = layer.sets().collect::<Vec<_>>();
            for (head, keys) in keys.iter().enumerate() {
                let set = &sets[head.min(sets.len() - 1)];
                let all = rows(set, SHAPE.kv_heads, 10 * i as u64 + 1);
                let want = stored(&all, self.config.storage).get(head).unwrap();
                assert_eq!(keys.concat(), flat(&want), "layer {i}, head {head}");
            }
        }
    }
}

fn any_plus() -> impl Strategy<Value = PlusConfig> {
    (
        any::<bool>(),
        prop::sample::select(vec![1, 3, 7]),
        any::<bool>(),
        prop::sample::select(vec![0.0, 0.4, 1.0]),
        0.0..=1.0,
        prop::sample::select(vec![0.0, 0.3, 1.0]),
    )
        .prop_map(
            |(units, pool, value_norms, novelty_weight, standing_weight, position_gap)| {
                PlusConfig {
                    units,
                    pool,
                    value_norms,
                    novelty_weight,
                    novelty_bias: 0.001,
                    standing_weight,
                    standing_bias: 0.001,
                    position_gap,
                }
            },
        )
}

/// Any policy with any parameters it takes, and a system prompt's length.
pub fn any_config() -> impl Strategy<Value = (CacheConfig, usize)> {
    let sizes = (0usize..12, 8usize..90, 0usize..40, 1usize..40);
    // Shares of what the sizes leave to them; 0 is automatic, and none.
    let shares = (
        prop::sample::select(vec![0.0, 0.2, 0.8, 1.0]),
        prop::sample::select(vec![0.0, 0.0, 0.3, 1.0]),
    );
    let storage = vec![KvStorage::Auto, KvStorage::F16, KvStorage::Q8];
    (
        prop::sample::select(evicting()),
        sizes,
        shares,
        prop::sample::select(Scope::ALL.to_vec()),
        prop::sample::select(vec![QuerySource::Stream, QuerySource::Instruction]),
        prop::sample::select(vec![
            (BiasForm::Slope, 0.0),
            (BiasForm::Slope, 0.01),
            (BiasForm::Range, 0.7),
        ]),
        prop::sample::select(vec![1.0, 0.99]),
        prop::sample::select(storage),
        0..SHAPE.layers,
        any_plus(),
    )
        .prop_map(
            |(policy, sizes, shares, scope, source, bias, decay, storage, withdraw, plus)| {
                let (system, above, slack, query_window) = sizes;
                let mut config = CacheConfig {
                    policy,
                    budget: system.max(4) + above,
                    slack: slack.min(above - 4),
                    query_window,
                    scope,
                    query_source: source,
                    bias_form: bias.0,
                    bias: bias.1,
                    h2o_decay: decay,
                    storage,
                    withdraw_layer: withdraw,
                    plus,
                    ..CacheConfig::default()
                };
                let plan = |config: &CacheConfig| config.plan(system, SHAPE.max_positions).unwrap();
                let whole = plan(&config);
                config.n_recent = ((whole.recent + whole.relevant) as f64 * shares.0) as usize;
                config.protect_boundaries = (plan(&config).relevant as f64 * shares.1) as usize;
                (config, system)
            },
        )
}
