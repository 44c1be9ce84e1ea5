//! Cameras, links and players as they are, and the clock that follows them.

use super::*;
use proptest::prelude::*;

const MS: i64 = 1_000_000;
const SECOND: i64 = 1000 * MS;
const THRESHOLD: i64 = 10 * SECOND;

fn clock() -> StreamClock {
    StreamClock::new(10.0)
}

/// Places images by (stamp, receipt), milliseconds.
fn places(images: &[(i64, i64)]) -> Vec<Arrival> {
    let mut clock = clock();
    let place = |&(stamp, received)| clock.arrive(stamp * MS, received * MS);
    images.iter().map(place).collect()
}

fn jumps(arrivals: &[Arrival]) -> usize {
    let jump = |arrival: &&Arrival| matches!(arrival, Arrival::Jump { .. });
    arrivals.iter().filter(jump).count()
}

fn late(newest_ms: i64) -> Arrival {
    let newest_ns = newest_ms * MS;
    Arrival::Late { newest_ns }
}

fn strange(newest_ms: i64) -> Arrival {
    let newest_ns = newest_ms * MS;
    Arrival::OtherClock { newest_ns }
}

fn jump(newest_ms: i64) -> Arrival {
    let newest_ns = newest_ms * MS;
    Arrival::Jump { newest_ns }
}

#[test]
fn overtaken_images_are_late_also_two_in_a_row() {
    let got = places(&[
        (100, 0),
        (200, 100),
        (150, 110),
        (160, 112),
        (300, 200),
        (250, 210),
        (400, 300),
    ]);
    let in_order = Arrival::InOrder;
    let first = Arrival::First;
    assert_eq!(
        got,
        [
            first,
            in_order,
            late(200),
            late(200),
            in_order,
            late(300),
            in_order
        ]
    );
}

#[test]
fn a_camera_that_was_silent_or_slow_has_not_jumped() {
    // A minute without images, then a model, or a link, that holds images back and lets them go at once.
    let mut images = vec![(0, 0), (100, 100), (60_000, 60_000), (60_100, 90_000)];
    images.extend((0..300).map(|i| (60_200 + i * 100, 90_001 + i)));
    assert_eq!(jumps(&places(&images)), 0);
    // Stamps that stood still (a paused simulation) and go on from there.
    let paused = [(5000, 0), (5100, 100), (5200, 600_000), (5300, 600_100)];
    assert_eq!(jumps(&places(&paused)), 0);
}

#[test]
fn a_recording_played_fast_or_slowly_has_not_jumped() {
    for speed in [20, 1] {
        let played: Vec<_> = (0..1000).map(|i| (i * 100, i * 200 / speed)).collect();
        assert_eq!(jumps(&places(&played)), 0, "speed {speed}");
    }
}

#[test]
fn stamps_that_run_ahead_or_go_far_back_jump_with_the_second_one() {
    let from = [(60_000, 0), (60_100, 100)];
    let then = |stamp| places(&[from[0], from[1], (stamp, 200), (stamp + 100, 300)])[2..].to_vec();
    for stamp in [100, 80_000] {
        assert_eq!(then(stamp), [strange(60_100), jump(60_100)]);
    }
    assert_eq!(then(70_000), [Arrival::InOrder; 2]);
    // However slow the camera is: longer than the threshold, and longer than other clocks are remembered.
    for pace in [20_000, 90_000] {
        let stamps = [500_000, 500_000 + pace, 7, 7 + pace, 7 + 2 * pace];
        let images: Vec<_> = (0..5).map(|i| (stamps[i], i as i64 * pace)).collect();
        let newest = stamps[1];
        assert_eq!(
            places(&images)[2..],
            [strange(newest), jump(newest), Arrival::InOrder]
        );
    }
    let ends = [(i64::MIN / MS, 0), (i64::MAX / MS, 1), (i64::MIN / MS, 2)];
    assert_eq!(places(&ends)[1..], [strange(ends[0].0), Arrival::InOrder]);
    // Every round of a looped bag is an epoch.
    let looped: Vec<_> = (0..300).map(|i| (i % 30 * 1000, i * 1000)).collect();
    assert_eq!(jumps(&places(&looped)), 9);
}

#[test]
fn a_clock_set_back_by_less_than_the_threshold_costs_two_images() {
    let got = places(&[
        (7000, 0),
        (8000, 1000),
        (2000, 2000),
        (3000, 3000),
        (4000, 4000),
        (5000, 5000),
    ]);
    assert_eq!(
        got[2..],
        [late(8000), late(8000), jump(8000), Arrival::InOrder]
    );
}

#[test]
fn a_camera_without_a_clock_is_always_in_order() {
    let got = places(&[(0, 0), (0, 100), (0, 60_000)]);
    assert_eq!(got[1..], [Arrival::InOrder; 2]);
}

#[test]
fn a_strange_stamp_is_left_out_wherever_it_is() {
    for pace in [100, 15_000] {
        for at in 1..10 {
            let image = |i: i64| match i == at {
                true => (7, i * pace),
                false => (500_000 + i * pace, i * pace),
            };
            let got = places(&(0..20).map(image).collect::<Vec<_>>());
            let newest = 500_000 + (at - 1) * pace;
            assert_eq!(got[at as usize], strange(newest), "every {pace} ms, {at}");
            let others = got.iter().enumerate().skip(1);
            let mut others = others.filter(|(i, _)| *i as i64 != at);
            assert!(others.all(|(_, arrival)| *arrival == Arrival::InOrder));
        }
    }
    // The very first one cannot be told from a clock that jumps behind it.
    let got = places(&[(7, 0), (500_100, 100), (500_200, 200), (500_300, 300)]);
    assert_eq!(got[1..], [strange(7), jump(7), Arrival::InOrder]);
}

#[test]
fn strange_stamps_again_and_again_are_left_out_and_hide_no_jump() {
    let mut clock = clock();
    let mut place = |i: i64, stamp: i64| clock.arrive(stamp * MS, i * 100 * MS);
    for i in 0..200 {
        let arrival = match i % 20 {
            10 => place(i, i * 7919 % 1000 * 1_000_000),
            _ => place(i, 500_000 + i * 100),
        };
        let other = matches!(arrival, Arrival::OtherClock { .. });
        assert_eq!(other, i % 20 == 10, "{i}: {arrival:?}");
        assert!(!matches!(arrival, Arrival::Jump { .. }), "{i}");
    }
    assert_eq!(place(200, 5_000_000), strange(519_900));
    assert_eq!(place(201, 5_000_100), jump(519_900));
    assert_eq!(place(202, 5_000_200), Arrival::InOrder);
}

#[test]
fn stamps_without_any_order_begin_few_epochs_but_something_is_used() {
    let mut images: Vec<_> = (0..10).map(|i| (500_000 + i * 100, i * 100)).collect();
    images.extend((0..600).map(|i| (i * 7919 % 1000 * 1_000_000, 1000 + i * 100)));
    // One for every threshold's length of the minute.
    let jumps = jumps(&places(&images));
    assert!((3..=6).contains(&jumps), "{jumps}");
}

#[test]
fn a_clock_that_comes_back_is_followed_with_its_second_image() {
    let real = |from: i64, to: i64| (from..to).map(|i| (500_000 + i * 100, i * 100));
    let other = (40..180).map(|i| (1000 + i * 100, i * 100));
    let images: Vec<_> = real(0, 40).chain(other).chain(real(180, 220)).collect();
    let got = places(&images);
    assert_eq!(got[40..42], [strange(503_900), jump(503_900)]);
    assert_eq!(got[180..182], [strange(18_900), jump(18_900)]);
    assert_eq!(jumps(&got), 2);
}

/// Two publishers on one topic, the second one's clock off by `apart`, milliseconds.
fn two_publishers(apart: i64, periods: (i64, i64)) -> Vec<(i64, i64)> {
    let images = |start: i64, period: i64, offset: i64| {
        (0..60_000 / period).map(move |i| {
            let received = start + i * period;
            (100_000 + received + offset, received)
        })
    };
    let mut both: Vec<_> = images(0, periods.0, 0).collect();
    both.extend(images(3005, periods.1, apart));
    both.sort_by_key(|&(_, received)| received);
    both
}

#[test]
fn of_two_clocks_one_is_followed_until_it_falls_silent() {
    for periods in [(100, 100), (1000, 33), (33, 1000), (100, 47)] {
        for apart in [-1_000_000, -30_000, -5_000, 30_000, 1_000_000] {
            let images = two_publishers(apart, periods);
            let both_there = images.iter().filter(|(_, received)| *received < 60_000);
            let both_there: Vec<_> = both_there.copied().collect();
            let got = places(&both_there);
            assert!(jumps(&got) <= 2, "{apart} ms, {periods:?}: {}", jumps(&got));
            let other = |arrival: &&Arrival| matches!(arrival, Arrival::OtherClock { .. });
            let left_out = got.iter().filter(other).count() as i64;
            let slower = 57_000 / periods.0.max(periods.1);
            assert!(
                left_out >= slower - 3,
                "{apart} ms, {periods:?}: {left_out} left out"
            );
        }
    }
    // The clock that was followed ends; after as long as the threshold the other one is.
    let mut images = two_publishers(-30_000, (100, 100));
    images.retain(|&(stamp, received)| received < 20_000 || stamp < 100_000 + received);
    let got = places(&images);
    let taken = |arrival: &&Arrival| **arrival == Arrival::InOrder;
    assert!(got.iter().rev().take(100).all(|a| taken(&a)));
}

#[test]
fn a_reset_forgets_the_stamps_but_not_the_threshold() {
    let mut clock = clock();
    clock.arrive(60 * SECOND, 0);
    clock.reset();
    assert_eq!(clock, StreamClock::new(10.0));
    assert_eq!(clock.arrive(0, 1), Arrival::First);
}

proptest! {
    /// Whatever a camera of one clock does with its pace, its pauses and its jumps, and whatever delays the way adds: every
    /// jump is found, with its second image, and nothing else is taken for one.
    #[test]
    fn a_jump_is_found_and_nothing_else(
        steps in prop::collection::vec(
            (1i64..400, 0i64..9000, prop::option::weighted(0.05, prop_oneof![-1000i64..-20, 40i64..1000])),
            20..200,
        )
    ) {
        let mut clock = clock();
        let (mut stamp, mut now, mut last, mut made) = (5_000_000, 0, 0, 0);
        clock.arrive(stamp * MS, now * MS);
        let (mut since_jump, mut offset, mut offsets) = (1, 0i64, vec![0i64]);
        for (pace, delay, jumped) in steps {
            stamp += pace;
            now += pace;
            // A clock of which only one image came is none yet, and one that was there before has come back.
            let new = |&to: &i64| offsets.iter().all(|from| (offset + to - from).abs() > 30);
            let jumped = jumped.filter(|_| since_jump > 2).filter(new);
            if let Some(seconds) = jumped {
                offset += seconds;
                offsets.push(offset);
                stamp += seconds * 1000;
                made += 1;
                since_jump = 0;
            }
            since_jump += 1;
            let received = (now + delay).max(last);
            last = received;
            let arrival = clock.arrive(stamp * MS, received * MS);
            let told = matches!(arrival, Arrival::Jump { .. });
            let second = made > 0 && since_jump == 2;
            prop_assert_eq!(told, second, "{:?} after {} made", arrival, made);
            prop_assert_eq!(arrival.check(stamp * MS).is_err(), jumped.is_some());
        }
    }

    /// Nothing that arrives, in whatever order, breaks anything, and what is used is in order within its epoch.
    #[test]
    fn what_is_used_is_in_order(
        images in prop::collection::vec((any::<i64>(), 0i64..100), 1..200),
        near in any::<bool>(),
    ) {
        let mut clock = clock();
        let (mut newest, mut received) = (i64::MIN, 0);
        for (stamp, pace) in images {
            let stamp = if near { stamp % (4 * THRESHOLD) } else { stamp };
            received += pace * 100 * MS;
            let arrival = clock.arrive(stamp, received);
            if matches!(arrival, Arrival::First | Arrival::Jump { .. }) {
                newest = stamp;
            }
            if arrival.check(stamp).is_ok() {
                prop_assert!(stamp >= newest);
                newest = stamp;
            }
            prop_assert!(clock.others.len() <= OTHERS);
        }
    }
}
