//! Watches under a clock of their own, without a model.

use super::*;
use crate::stream::answer::Chosen;
use crate::stream::CameraImage;

const SECOND: Duration = Duration::from_secs(1);

fn watching(every: Every) -> Watching {
    Watching {
        every,
        on_change: false,
        hysteresis: 0.0,
        min_interval: Duration::ZERO,
        survives_reset: false,
    }
}

fn given(id: &str, text: &str, watching: Watching) -> Instruction {
    Instruction {
        id: id.to_string(),
        watch: Some(watching),
        ..Instruction::new(text)
    }
}

/// Watches at a time of their own.
struct Stand {
    watches: Watches,
    start: Instant,
}

impl Stand {
    fn of(limit: usize, given: &[(&str, &str, Watching)]) -> Self {
        let start = Instant::now();
        let mut watches = Watches::new(limit);
        for (id, text, watching) in given {
            watches.add(self::given(id, text, *watching), *watching, start, 0);
            watches.checked(id);
        }
        Self { watches, start }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// Ids of those that are asked.
    fn ask(&mut self, seconds: f64, frames: u64) -> Vec<String> {
        let now = self.at(seconds);
        let asking = self.watches.take_due(now, frames);
        asking.map_or_else(Vec::new, |asking| asking.ids)
    }

    /// Ids of those that publish.
    fn answer(&mut self, seconds: f64, ids: &[String], text: &str) -> Vec<String> {
        let mut answer = Answer::new(&Instruction::new("asked"));
        answer.text = text.to_string();
        answer.finish = FinishReason::Stop;
        let published = self.watches.answered(ids, &answer, self.at(seconds));
        let ids = published.iter().map(|watch| watch.instruction.id.clone());
        ids.collect()
    }

    fn counts(&self, id: &str) -> (u64, u64, u64, u64) {
        let list = self.watches.list();
        let watch = list.iter().find(|watch| watch.instruction.id == id);
        let watch = watch.unwrap();
        (watch.asked, watch.published, watch.failed, watch.skipped)
    }
}

#[test]
fn a_watch_is_asked_at_once_and_then_on_its_beat_and_beats_that_passed_are_skipped() {
    let mut stand = Stand::of(1, &[("a", "?", watching(Every::Period(SECOND)))]);
    assert_eq!(stand.watches.next_at(), Some(stand.start));
    assert_eq!(stand.ask(0.2, 0), ["a"]);
    assert!(stand.ask(0.9, 0).is_empty());
    assert_eq!(stand.watches.next_at(), Some(stand.at(1.0)));
    assert_eq!(stand.ask(1.0, 0), ["a"]);
    // The model was busy for three beats and a half.
    assert_eq!(stand.ask(5.5, 0), ["a"]);
    assert_eq!(stand.watches.next_at(), Some(stand.at(6.0)));
    assert_eq!(stand.counts("a"), (3, 0, 0, 3));
}

#[test]
fn a_watch_by_frames_is_asked_after_so_many_whatever_the_time() {
    let mut stand = Stand::of(1, &[("a", "?", watching(Every::Frames(10)))]);
    assert_eq!(stand.watches.next_at(), None);
    assert_eq!(stand.ask(0.0, 0), ["a"]);
    assert!(stand.ask(1e6, 9).is_empty());
    assert_eq!(stand.ask(1.0, 10), ["a"]);
    assert_eq!(stand.ask(1.0, 47), ["a"]);
    assert!(stand.ask(1.0, 49).is_empty());
    assert_eq!(stand.ask(1.0, 50), ["a"]);
    assert_eq!(stand.counts("a"), (4, 0, 0, 2));
}

#[test]
fn those_that_ask_the_same_share_an_asking_and_the_highest_priority_is_first() {
    let every = watching(Every::Period(SECOND));
    let mut stand = Stand::of(
        9,
        &[("a", "?", every), ("b", "!", every), ("c", "?", every)],
    );
    let urgent = Instruction {
        priority: 1,
        recall: crate::stream::Recall {
            mode: Some(crate::stream::RecallMode::Never),
            ..Default::default()
        },
        ..given("d", "?", every)
    };
    stand.watches.add(urgent, every, stand.start, 0);
    stand.watches.checked("d");
    assert_eq!(
        stand.ask(0.0, 0),
        ["d"],
        "with another recall it is another question"
    );
    assert_eq!(stand.ask(0.0, 0), ["a", "c"]);
    assert_eq!(stand.ask(0.0, 0), ["b"]);
    assert!(stand.ask(0.0, 0).is_empty());
    let both = ["a".to_string(), "c".to_string()];
    assert_eq!(stand.answer(0.1, &both, "yes"), both);
    let asking = stand.watches.take_due(stand.at(1.0), 0).unwrap();
    assert!(asking.instruction.ephemeral && asking.instruction.received == stand.at(1.0));
    // What was cut off has not been asked.
    stand.watches.not_asked(&asking.ids);
    assert_eq!(stand.counts("d"), (1, 0, 0, 1));
}

#[test]
fn on_change_only_other_answers_are_published_and_no_more_often_than_wanted() {
    let rare = Watching {
        on_change: true,
        min_interval: 3 * SECOND,
        ..watching(Every::Period(SECOND))
    };
    let always = watching(Every::Period(SECOND));
    let mut stand = Stand::of(2, &[("rare", "?", rare), ("always", "?", always)]);
    let mut told = Vec::new();
    for (second, text) in ["no", "no", "yes", "yes", " yes", "no", "yes"]
        .iter()
        .enumerate()
    {
        let ids = stand.ask(second as f64, 0);
        assert_eq!(ids.len(), 2);
        let published = stand.answer(second as f64, &ids, text);
        assert!(published.contains(&"always".to_string()));
        if published.contains(&"rare".to_string()) {
            told.push(second);
        }
    }
    // The change after two seconds is told when three are over, the next two within three seconds of it cancel each other.
    assert_eq!(told, [0, 3]);
    assert_eq!(stand.counts("rare"), (7, 2, 0, 0));
    let list = stand.watches.list();
    let last = list[0].last.as_ref().unwrap();
    assert_eq!((last.id.as_str(), last.text.as_str()), ("rare", "yes"));
    let count = WatchCount {
        asked: 4,
        ended: false,
    };
    assert_eq!(last.watch, Some(count));
}

#[test]
fn of_choices_another_is_told_only_if_it_is_likelier_by_the_hysteresis() {
    let careful = Watching {
        on_change: true,
        hysteresis: 0.2,
        ..watching(Every::Frames(1))
    };
    let mut stand = Stand::of(1, &[("a", "?", careful)]);
    let mut told = Vec::new();
    for (frame, probability) in [0.6, 0.45, 0.39, 0.41, 0.55, 0.61].into_iter().enumerate() {
        let ids = stand.ask(0.0, frame as u64);
        let mut answer = Answer::new(&Instruction::new("asked"));
        answer.finish = FinishReason::Stop;
        let probabilities = vec![probability, 1.0 - probability];
        answer.chosen = Some(Chosen {
            index: usize::from(probability < 0.5),
            by: ChosenBy::Sum,
            mean_probabilities: vec![0.5, 0.5],
            probabilities,
        });
        let now = stand.at(frame as f64);
        let published = stand.watches.answered(&ids, &answer, now);
        told.extend(published.iter().map(|_| frame));
    }
    // 0.55 against 0.45 is likelier by 0.1 only, 0.61 against 0.39 by 0.22.
    assert_eq!(told, [0, 2, 5]);
}

#[test]
fn watches_end_by_id_all_together_and_with_the_memory_unless_they_survive_it() {
    let every = watching(Every::Frames(1));
    let survives = Watching {
        survives_reset: true,
        ..every
    };
    let mut stand = Stand::of(
        9,
        &[("a", "?", every), ("b", "?", survives), ("c", "?", every)],
    );
    let ids = |ended: Vec<Watch>| {
        let ids = ended.into_iter().map(|watch| watch.instruction.id);
        ids.collect::<Vec<_>>()
    };
    assert!(stand.watches.cancel(Which::Id("d")).is_empty());
    assert_eq!(ids(stand.watches.cancel(Which::Id("c"))), ["c"]);
    assert!(stand.watches.has("a") && !stand.watches.has("c"));
    assert_eq!(ids(stand.watches.reset()), ["a"]);
    assert_eq!(stand.ask(0.0, 0), ["b"]);
    assert_eq!(ids(stand.watches.cancel(Which::All)), ["b"]);
    assert!(stand.watches.list().is_empty());
}

#[test]
fn a_watch_that_cannot_stand_is_refused_with_what_was_expected() {
    let every = watching(Every::Frames(1));
    let stand = Stand::of(2, &[("a", "?", every)]);
    let objection = |watching| stand.watches.objection(&given("b", "?", watching));
    assert_eq!(objection(every), None);
    assert_eq!(stand.watches.objection(&Instruction::new("?")), None);
    let told = objection(watching(Every::Period(Duration::ZERO))).unwrap();
    assert!(
        told.contains("watch_period and watch_frames are 0"),
        "{told}"
    );
    let told = objection(watching(Every::Frames(0))).unwrap();
    assert!(
        told.contains("watch_frames is 0, expected at least 1"),
        "{told}"
    );
    for hysteresis in [-0.1, 1.1, f32::NAN] {
        let told = objection(Watching {
            hysteresis,
            ..every
        })
        .unwrap();
        assert!(told.contains("expected 0 to 1"), "{told}");
    }
    let full = Stand::of(1, &[("a", "?", every)]);
    let told = full.watches.objection(&given("b", "?", every)).unwrap();
    assert_eq!(
        told,
        "1 watches stand, expected fewer than 1 (watches_limit) before one more"
    );
}

#[test]
fn watches_take_turns_where_the_model_is_too_slow_for_all() {
    let every = watching(Every::Period(SECOND));
    let mut stand = Stand::of(
        3,
        &[("a", "?", every), ("b", "!", every), ("c", ".", every)],
    );
    // An asking takes longer than the period.
    let asked = (0..6).flat_map(|i| stand.ask(1.5 * f64::from(i), 0));
    assert_eq!(asked.collect::<Vec<_>>(), ["a", "b", "c", "a", "b", "c"]);
    assert!(stand.counts("a").3 > 0);
}

#[test]
fn a_watch_with_pictures_shares_its_asking_with_none_and_keeps_its_beat() {
    let every = watching(Every::Period(SECOND));
    let mut stand = Stand::of(2, &[]);
    for id in ["a", "b"] {
        let data = crate::stream::ImageData::Compressed {
            format: "jpeg".to_string(),
            data: Vec::new(),
        };
        let image = CameraImage::recorded(0, "", data);
        let shown = Instruction {
            images: vec![image],
            ..given(id, "?", every)
        };
        stand.watches.add(shown, every, stand.start, 0);
        assert_eq!(stand.watches.is_due(stand.start, 0), id != "a");
        assert_eq!(stand.watches.unchecked().unwrap().id, id);
        stand.watches.checked(id);
    }
    assert!(stand.watches.unchecked().is_none());
    assert_eq!(stand.ask(0.0, 0), ["a"]);
    assert_eq!(stand.ask(0.0, 0), ["b"]);
    assert!(stand.ask(0.5, 0).is_empty());
    assert_eq!(stand.ask(1.0, 0), ["a"]);
}
