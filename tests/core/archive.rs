//! The archive: what must hold of it whatever enters, and of a cache beside which it stands.

use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, Heard, PolicyKind, Probe, Retained, Side, Summary};
use inf_mllm::eval::model::EvalModel;
use inf_mllm::eval::text_memory::TextMemory;
use inf_mllm::stream::archive::{
    Archive, ArchiveConfig, Content, Entered, Found, Kind, TextUnits, Unit, Wanted,
};
use proptest::prelude::*;

use crate::cache_stream::{any_config, vectors, Fed, Seen, SHAPE};

/// Keys of `tokens` (numbers that stand for what they say) in two layers, as if they had been heard.
fn heard(tokens: &[u64]) -> Vec<Heard> {
    let rows = |heads: usize, salt: u64| {
        let values = tokens.iter().flat_map(|&token| vectors(token, heads, salt));
        let shape = (tokens.len(), heads, SHAPE.head_dim);
        let rows = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap();
        rows.transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let layers = 0..2;
    layers
        .map(|layer| Heard {
            layer,
            queries: rows(SHAPE.heads, layer as u64),
            keys: rows(SHAPE.kv_heads, 10 + layer as u64),
        })
        .collect()
}

fn unit(stamp_ns: i64, tokens: &[u64]) -> Unit {
    let ids = tokens.iter().map(|&token| token as u32);
    let summary = Summary::of(&heard(tokens), 0..tokens.len()).unwrap();
    Unit::new(stamp_ns, Content::Text(ids.collect()), summary)
}

fn wanted(units: usize) -> Wanted {
    Wanted {
        kind: Kind::Text,
        units,
        tokens: 1000,
        share: 0.0,
        span_ns: None,
        best: units,
        beyond_cache: false,
    }
}

fn text(found: &Found) -> Vec<u32> {
    match &found.unit.content {
        Content::Text(ids) => ids.to_vec(),
        other => panic!("{other:?}, expected a text"),
    }
}

/// What an archive holds, as far as it can be seen.
fn seen(archive: &Archive) -> Vec<(u64, i64, u64)> {
    let entries = archive.entries().iter();
    entries
        .map(|entry| (entry.id, entry.seen_ns, entry.extent.start))
        .collect()
}

/// Sentences of few words, so that many are alike and some are the same.
fn any_sentences() -> impl Strategy<Value = Vec<Vec<u64>>> {
    prop::collection::vec(prop::collection::vec(0u64..6, 1..9), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn bytes_are_bounded_and_what_its_neighbours_explain_best_leaves(
        sentences in any_sentences(),
        bytes in 0usize..20_000,
        nothing_new in prop::sample::select(vec![0.9, 0.999, 1.0]),
    ) {
        let config = ArchiveConfig { archive_bytes: bytes, nothing_new, ..ArchiveConfig::default() };
        let [mut archive, mut twin] = [0; 2].map(|_| Archive::new(config.clone()));
        let mut at = 0;
        for (time, sentence) in (0i64..).zip(&sentences) {
            let extent = at..at + sentence.len() as u64;
            at = extent.end;
            let new = unit(time, sentence);
            let copy = archive.clone();
            let before = seen(&copy);
            let entered = archive.enter(new.clone(), extent.clone());
            prop_assert_eq!(entered, twin.enter(new.clone(), extent.clone()));
            prop_assert_eq!(seen(&copy), before.clone());
            prop_assert!(archive.bytes() <= bytes);
            let units = archive.entries().iter().map(|entry| entry.unit.bytes());
            prop_assert!(units.sum::<usize>() <= archive.bytes());
            let after = seen(&archive);
            prop_assert!(after.windows(2).all(|pair| pair[0].0 < pair[1].0), "no unit twice");
            let alike = |i: usize, j: usize| {
                let units = [i, j].map(|i| archive.entries()[i].unit.clone());
                f64::from(units[0].likeness(&units[1]))
            };
            match entered {
                Entered::NoRoom(_) => prop_assert_eq!(after, before),
                Entered::NothingNew(id) => {
                    let entry = archive.entries().iter().find(|entry| entry.id == id).unwrap();
                    prop_assert!(f64::from(entry.unit.likeness(&new)) > nothing_new);
                    prop_assert_eq!((entry.seen_ns, entry.extent.clone()), (time, extent));
                    prop_assert_eq!(after.len(), before.len());
                }
                Entered::New(id) => {
                    prop_assert_eq!(after.last().unwrap().0, id);
                    for i in 1..after.len() {
                        prop_assert!((0..i).all(|j| alike(i, j) <= nothing_new));
                    }
                    // One after the other left, each the one that was most like one of its neighbours then.
                    let mut units = copy.entries().to_vec();
                    let gone = |id| !after.iter().any(|there| there.0 == id);
                    while units.len() >= after.len() {
                        let explained = |i: usize| {
                            let others = [i.checked_sub(1), (i + 1 < units.len()).then_some(i + 1)];
                            let others = others.into_iter().flatten();
                            let like = others.map(|j| units[i].unit.likeness(&units[j].unit));
                            like.fold(-1.0, f32::max)
                        };
                        let most = (0..units.len()).map(explained).fold(-1.0, f32::max);
                        let left = (0..units.len()).find(|&i| explained(i) == most).unwrap();
                        prop_assert!(gone(units[left].id));
                        units.remove(left);
                    }
                }
            }
        }
        prop_assert_eq!(seen(&archive), seen(&twin));
    }

    #[test]
    fn what_is_found_has_left_the_cache_scores_highest_and_fits(
        sentences in any_sentences(),
        question in prop::collection::vec(0u64..6, 1..6),
        (config, system) in any_config(),
        units in 0usize..9,
        tokens in 0usize..40,
        span in prop::option::of((0i64..40, 0i64..40)),
    ) {
        let mut archive = Archive::new(ArchiveConfig::default());
        let mut fed = Fed::new(inf_mllm::cache::RopeAxes::One, &config, system).unwrap();
        let mut at = 0;
        for (time, sentence) in (0i64..).zip(&sentences) {
            fed.feed(sentence.len());
            archive.enter(unit(time, sentence), at..at + sentence.len() as u64);
            at += sentence.len() as u64;
        }
        let retained = fed.cache.retained();
        let probe = Probe::of(&heard(&question), Side::Keys).unwrap();
        let wanted = Wanted { kind: Kind::Text, units, tokens, share: 0.0, span_ns: span, best: units, beyond_cache: false };
        let found = archive.find(&probe, &wanted, &retained);
        prop_assert!(found.len() <= units);
        prop_assert!(found.iter().map(|found| found.unit.content.tokens()).sum::<usize>() <= tokens);
        let order = |found: &Found| (found.seen_ns, found.id);
        let in_order = found.windows(2).all(|pair| order(&pair[0]) < order(&pair[1]));
        prop_assert!(in_order, "in the order of when they were seen last");
        let reached = match config.withdraw_layer {
            0 => SHAPE.layers,
            layer => layer,
        };
        let held = |extent: &std::ops::Range<u64>| share(&fed.cache, reached, extent.clone());
        for found in &found {
            prop_assert!(held(&found.extent) < 0.5, "still in the cache");
            let (from, to) = span.unwrap_or((i64::MIN, i64::MAX));
            prop_assert!(found.unit.stamp_ns <= to && from <= found.seen_ns);
        }
        // With room for all, what is left out scores no higher than what is found.
        let all = Wanted { units: usize::MAX, tokens: usize::MAX, ..wanted };
        let all = archive.find(&probe, &all, &retained);
        let some = Wanted { tokens: usize::MAX, ..wanted };
        let some = archive.find(&probe, &some, &retained);
        prop_assert_eq!(some.len(), units.min(all.len()));
        let least = some.iter().map(|found| found.score).fold(1.0, f32::min);
        let others = all.iter().filter(|one| !some.iter().any(|found| found.id == one.id));
        prop_assert!(units == 0 || others.into_iter().all(|one| one.score <= least));
    }
}

/// The share of tokens that the first `reached` layers keep, counted one by one.
fn share(cache: &BoundedCache, reached: usize, tokens: std::ops::Range<u64>) -> f64 {
    let layers = cache.layers()[..reached].iter();
    let sets = layers.flat_map(|layer| layer.sets()).collect::<Vec<_>>();
    let kept = sets
        .iter()
        .flatten()
        .filter(|token| tokens.contains(&token.index));
    kept.count() as f64 / (sets.len() * tokens.count()) as f64
}

#[test]
fn a_question_finds_what_it_is_about_and_names_its_time() {
    let mut archive = Archive::new(ArchiveConfig::default());
    let sentences = [[1, 2, 3, 9], [4, 5, 6, 9], [7, 8, 1, 9], [4, 5, 2, 9]];
    for (time, sentence) in (0i64..).zip(&sentences) {
        let at = 4 * time as u64;
        assert_eq!(
            archive.enter(unit(time, sentence), at..at + 4),
            Entered::New(time as u64)
        );
    }
    let probe = Probe::of(&heard(&[4, 5, 6]), Side::Keys).unwrap();
    let none = Retained::default();
    let found = archive.find(&probe, &wanted(2), &none);
    assert_eq!(
        found.iter().map(text).collect::<Vec<_>>(),
        [[4, 5, 6, 9], [4, 5, 2, 9]]
    );
    assert!(found[0].score > 0.99 && found[1].score < 0.8);
    let close = Wanted {
        share: 0.9,
        ..wanted(2)
    };
    assert_eq!(archive.find(&probe, &close, &none).len(), 1);
    // How little is good enough to be brought says nothing of what makes it needless.
    let any = Wanted {
        beyond_cache: true,
        ..wanted(2)
    };
    assert_eq!(archive.find(&probe, &any, &none).len(), 2);
    // Seen once more: the same unit, of a later time.
    assert_eq!(
        archive.enter(unit(9, &sentences[1]), 90..94),
        Entered::NothingNew(1)
    );
    let late = Wanted {
        span_ns: Some((9, 9)),
        ..wanted(4)
    };
    let found = archive.find(&probe, &late, &none);
    assert_eq!(
        (found.len(), found[0].unit.stamp_ns, found[0].seen_ns),
        (1, 1, 9)
    );
    assert_eq!(found[0].extent, 90..94);
    let nothing = Wanted {
        span_ns: Some((5, 4)),
        ..wanted(4)
    };
    assert!(archive.find(&probe, &nothing, &none).is_empty());
}

#[test]
fn sentences_are_the_same_for_any_chunks() {
    let tokens = (0..60u64).map(|i| i * 7 % 23).collect::<Vec<_>>();
    let cut = |chunk: usize| {
        let mut units = TextUnits::new(8);
        let mut all = Vec::new();
        for chunk in tokens.chunks(chunk) {
            let ids = chunk.iter().map(|&token| token as u32).collect::<Vec<_>>();
            all.extend(
                units
                    .push(&ids, &heard(chunk), |id| id == 5 || id == 19)
                    .unwrap(),
            );
        }
        all
    };
    let whole = cut(60);
    assert_eq!(
        whole.iter().map(|(_, at)| at.clone()).collect::<Vec<_>>()[..2],
        [0..5, 5..13]
    );
    for (unit, at) in &whole {
        let own = &tokens[at.start as usize..at.end as usize];
        assert_eq!(unit, &crate::archive::unit(at.start as i64, own));
    }
    for chunk in [1, 3, 8, 17] {
        assert_eq!(cut(chunk), whole);
    }
}

static MODEL: LazyLock<EvalModel> = LazyLock::new(crate::eval::model);

/// A text in which the same things come again and again.
fn ids(from: usize, count: usize) -> Vec<u32> {
    const TEXT: &str = "The robot sees a red ball on the left. A blue box is behind it. It turns to the door, waits, and \
        drives along the wall until the green lamp is in view. What did it see first? The ball was red.\n";
    let ids = MODEL.encode(TEXT).unwrap();
    ids.into_iter().cycle().skip(from).take(count).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Questions with recall leave keys, values, positions, scores and statistics as they were, and so what comes next.
    #[test]
    fn a_question_with_recall_leaves_no_trace(
        (cache, system) in any_config(),
        chunk in 1usize..40,
        recall_units in 0usize..9,
        layers in prop::sample::select(vec!["0", "0/1", "2"]),
    ) {
        let archive = ArchiveConfig {
            recall_units,
            recall_layers: layers.to_string(),
            nothing_new: 1.0,
            ..ArchiveConfig::default()
        };
        let [mut one, mut twin] = [0; 2].map(|_| [MODEL.cache_after(&cache, system).unwrap()]);
        let mut memory = TextMemory::new(&MODEL, &archive).unwrap();
        let mut fed = 0;
        for _ in 0..6 {
            for piece in ids(fed, 150).chunks(chunk) {
                let before = MODEL.append(None, piece, &mut twin).unwrap();
                let same = memory.append(None, piece, &mut one).unwrap();
                prop_assert_eq!(bits(&same), bits(&before));
                for caches in [&mut one, &mut twin] {
                    caches[0].reserve(chunk).unwrap();
                }
            }
            fed += 150;
            let question = ids(fed / 3, 9);
            one[0].mark();
            let found = memory.find(&question, &mut one).unwrap();
            prop_assert_eq!(Seen::of(&one[0]), Seen::of(&twin[0]));
            let mut again = memory.text(&found);
            again.extend(&question);
            prop_assert!(again.len() <= one[0].longest_turn().max(question.len()));
            MODEL.append(None, &again, &mut one).unwrap();
            prop_assert!(one[0].layers().iter().all(|layer| layer.len() <= cache.budget));
            one[0].put_back().unwrap();
            one[0].let_go();
            prop_assert_eq!(Seen::of(&one[0]), Seen::of(&twin[0]));
        }
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    let values = x.to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn what_is_found_does_not_depend_on_the_threads() {
    let mut archive = Archive::new(ArchiveConfig {
        nothing_new: 1.0,
        ..ArchiveConfig::default()
    });
    for time in 0..700u64 {
        let sentence = (0..7)
            .map(|i| (time * 31 + i * i * 17) % 97)
            .collect::<Vec<_>>();
        archive.enter(unit(time as i64, &sentence), 7 * time..7 * time + 7);
    }
    let probe = Probe::of(&heard(&[3, 20, 61, 4]), Side::Keys).unwrap();
    let found = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let found = pool.install(|| archive.find(&probe, &wanted(12), &Retained::default()));
        found
            .iter()
            .map(|found| (found.id, found.score.to_bits()))
            .collect::<Vec<_>>()
    });
    assert_eq!(found[0].len(), 12);
    assert!(found[0] == found[1] && found[0] == found[2]);
}

#[test]
fn keys_heard_are_those_of_the_cache_and_only_while_somebody_listens() {
    let config = inf_mllm::cache::CacheConfig {
        policy: PolicyKind::StreamingLlm,
        budget: 256,
        ..Default::default()
    };
    let mut caches = [MODEL.cache(&config).unwrap()];
    MODEL.append(None, &ids(0, 20), &mut caches).unwrap();
    assert!(caches[0].heard().unwrap().is_empty());
    caches[0].listen(&[1]);
    for piece in ids(20, 30).chunks(11) {
        MODEL.append(None, piece, &mut caches).unwrap();
    }
    let heard = caches[0].heard().unwrap();
    assert_eq!((heard.len(), heard[0].layer), (1, 1));
    let stored = caches[0].layers()[1].raw_keys().unwrap();
    assert_eq!(
        bits(&heard[0].keys),
        bits(&stored.narrow(1, 20, 30).unwrap().contiguous().unwrap())
    );
    caches[0].mark();
    caches[0].listen(&[0]);
    caches[0].put_back().unwrap();
    caches[0].let_go();
    MODEL.append(None, &ids(50, 5), &mut caches).unwrap();
    assert!(caches[0].heard().unwrap().is_empty());
}
