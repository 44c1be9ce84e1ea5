//! How much of the way from floor to oracle a lane goes, with an interval.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Draws of the questions, each with replacement.
const RESAMPLES: usize = 2000;
/// The same questions and answers give the same interval.
const SEED: u64 = 0;
/// Ends of a two-sided 95 % interval.
const ENDS: [f64; 2] = [0.025, 0.975];

/// What one question was worth in the three lanes: whether lane, floor and oracle were right.
pub type Outcome = [bool; 3];

/// (lane - floor) / (oracle - floor) of the shares of right answers: 0 is no better than black images, 1 as good as with the right
/// frames before the question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Questions that all three lanes answered.
    pub of: usize,
    /// None where the oracle is not above the floor.
    pub share: Option<f64>,
    /// The 95 % interval by the paired bootstrap over questions (percentiles); an end is none where it is at no finite value: too
    /// many of the draws have an oracle that is not above the floor.
    pub low: Option<f64>,
    pub high: Option<f64>,
}

impl Way {
    pub fn of(outcomes: &[Outcome]) -> Self {
        let of = outcomes.len();
        let own = ratio(outcomes.iter());
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut draws = Vec::with_capacity(RESAMPLES);
        if of > 0 {
            for _ in 0..RESAMPLES {
                let drawn = (0..of).map(|_| &outcomes[rng.random_range(0..of)]);
                draws.push(ratio(drawn));
            }
        }
        draws.sort_by(f64::total_cmp);
        let [low, high] = ENDS.map(|end| {
            let at = (draws.len().saturating_sub(1)) as f64 * end;
            finite(draws.get(at.round() as usize))
        });
        Self {
            of,
            share: finite(Some(&own)),
            low,
            high,
        }
    }
}

/// Infinite where the oracle is not above the floor, in the direction of what the lane is above it.
fn ratio<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> f64 {
    let mut right = [0i64; 3];
    for outcome in outcomes {
        for (sum, &one) in right.iter_mut().zip(outcome) {
            *sum += i64::from(one);
        }
    }
    let [lane, floor, oracle] = right;
    match (lane - floor, oracle - floor) {
        (gain, room) if room > 0 => gain as f64 / room as f64,
        (gain, _) if gain > 0 => f64::INFINITY,
        _ => f64::NEG_INFINITY,
    }
}

fn finite(value: Option<&f64>) -> Option<f64> {
    value.copied().filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many questions that only the oracle, lane and oracle, and all got right.
    fn outcomes(oracle: usize, lane: usize, all: usize) -> Vec<Outcome> {
        let of = |count, outcome| vec![outcome; count];
        [
            of(oracle, [false, false, true]),
            of(lane, [true, false, true]),
            of(all, [true, true, true]),
        ]
        .concat()
    }

    #[test]
    fn the_way_is_counted_from_the_floor_to_the_oracle() {
        // Lane 70, floor 20, oracle 100 of 100.
        let way = Way::of(&outcomes(30, 50, 20));
        assert_eq!((way.of, way.share), (100, Some(0.625)));
        // Of 80 questions between floor and oracle 50: the normal interval of a share is 0.52 to 0.73.
        let (low, high) = (way.low.unwrap(), way.high.unwrap());
        assert!((0.49..0.55).contains(&low), "{low}");
        assert!((0.70..0.76).contains(&high), "{high}");
        assert_eq!(Way::of(&outcomes(30, 50, 20)), way);
        let [all, none] = [outcomes(0, 80, 20), outcomes(80, 0, 20)].map(|o| Way::of(&o));
        assert_eq!(
            (all.share, all.low, all.high),
            (Some(1.0), Some(1.0), Some(1.0))
        );
        assert_eq!(
            (none.share, none.low, none.high),
            (Some(0.0), Some(0.0), Some(0.0))
        );
    }

    #[test]
    fn a_lane_can_be_below_the_floor_and_above_the_oracle() {
        let below = [
            [false, true, true],
            [false, false, true],
            [false, false, true],
        ];
        assert_eq!(Way::of(&below).share, Some(-0.5));
        let above = [
            [true, false, true],
            [true, false, false],
            [false, false, false],
        ];
        assert_eq!(Way::of(&above).share, Some(2.0));
    }

    #[test]
    fn without_room_between_floor_and_oracle_there_is_no_share() {
        for same in [Vec::new(), outcomes(0, 0, 10)] {
            let way = Way::of(&same);
            assert_eq!((way.share, way.low, way.high), (None, None, None));
        }
        // One question of room among ten: a third of the draws have none, and what is beyond them is not known.
        let way = Way::of(&outcomes(0, 1, 9));
        assert_eq!((way.share, way.low), (Some(1.0), None));
    }
}
