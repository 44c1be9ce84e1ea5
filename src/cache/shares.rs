//! Shares of cameras: a compaction leaves each camera what it is sure of, of the slots that hold frames.
//!
//! The policy has chosen, by its values, what stays. With F the slots that it leaves to frames, camera c is sure of `floor(share[c] * F)`
//! of them, and of no more than it has. Where it has less, the best of its tokens that were to leave stay, and for each of them the worst of the
//! cameras that have more leaves. Neither the newest tokens, nor what is protected, nor text is touched.

use std::ops::Range;

use super::slots::Token;

/// A camera that has sent nothing while so many budgets of tokens came is sure of nothing any more.
const SILENT_BUDGETS: u64 = 16;

/// What a policy was asked about one kept set.
pub struct Ranked<'a> {
    /// By slot.
    pub tokens: &'a [Token],
    /// The slots in the order of time.
    pub order: &'a [u32],
    /// Where in that order the candidates stand.
    pub candidates: Range<usize>,
    /// Of each candidate.
    pub values: &'a [f32],
    /// Which candidates stay whatever their value.
    pub protected: &'a [bool],
}

/// What is known of a camera's tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Those that stay.
    kept: usize,
    all: usize,
    /// Index of the newest.
    newest: u64,
    /// Those that it is sure of.
    sure: usize,
}

/// The weights as shares of 1; none where nothing is to be kept to.
pub fn of_weights(weights: &[f64]) -> Vec<f64> {
    let sum = weights.iter().sum::<f64>();
    match sum > 0.0 {
        true => weights.iter().map(|weight| weight / sum).collect(),
        false => Vec::new(),
    }
}

/// Changes which slots are `kept` (by slot) so that each camera has its share; as many stay as before.
pub fn keep(shares: &[f64], budget: usize, ranked: &Ranked<'_>, kept: &mut [bool]) {
    let mut held = vec![Held::default(); shares.len()];
    let camera = |slot: u32| {
        let camera = ranked.tokens[slot as usize].mark.camera;
        camera
            .map(usize::from)
            .filter(|&camera| camera < shares.len())
    };
    let mut newest = 0;
    for &slot in ranked.order {
        newest = newest.max(ranked.tokens[slot as usize].index);
        if let Some(camera) = camera(slot) {
            let held = &mut held[camera];
            held.all += 1;
            held.kept += usize::from(kept[slot as usize]);
            held.newest = held.newest.max(ranked.tokens[slot as usize].index);
        }
    }
    let frames = held.iter().map(|held| held.kept).sum::<usize>();
    for (held, share) in held.iter_mut().zip(shares) {
        let silent = newest - held.newest > SILENT_BUDGETS * budget as u64;
        if held.all > 0 && !silent {
            held.sure = ((share * frames as f64) as usize).min(held.all);
        }
    }
    if held.iter().all(|held| held.kept >= held.sure) {
        return;
    }
    let order = &ranked.order[ranked.candidates.clone()];
    // From the best to the worst, of equal values the newer first, as the policies' are ranked.
    let mut places = (0..order.len()).collect::<Vec<_>>();
    let values = ranked.values;
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(b.cmp(&a)));
    let of = |place: usize| camera(order[place]);
    let (mut stay, mut leave) = (Vec::new(), Vec::new());
    let mut lacking = held.clone();
    for &place in &places {
        let Some(camera) = of(place).filter(|_| !kept[order[place] as usize]) else {
            continue;
        };
        if lacking[camera].kept < lacking[camera].sure {
            lacking[camera].kept += 1;
            stay.push(place);
        }
    }
    for &place in places.iter().rev() {
        let mine = |camera: &usize| held[*camera].kept > held[*camera].sure;
        let Some(camera) = of(place).filter(mine) else {
            continue;
        };
        if kept[order[place] as usize] && !ranked.protected[place] {
            held[camera].kept -= 1;
            leave.push(place);
        }
    }
    for (&stays, &leaves) in stay.iter().zip(&leave) {
        kept[order[stays] as usize] = true;
        kept[order[leaves] as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::Mark;

    /// Which slots stay of a set whose tokens are of these cameras, in the order of time, and stay or leave as the policy says.
    fn shared_out(
        shares: &[f64],
        cameras: &[Option<u8>],
        values: &[f32],
        kept: &[u8],
        old: u64,
    ) -> Vec<u8> {
        let tokens = (0..).zip(cameras).map(|(index, &camera)| Token {
            index: if camera == Some(1) {
                index
            } else {
                index + old
            },
            unit: 0,
            mark: Mark {
                camera,
                ..Mark::default()
            },
        });
        let tokens = tokens.collect::<Vec<_>>();
        let order = (0..tokens.len() as u32).collect::<Vec<_>>();
        let ranked = Ranked {
            tokens: &tokens,
            order: &order,
            candidates: 0..values.len(),
            values,
            protected: &vec![false; values.len()],
        };
        let mut kept = kept.iter().map(|&kept| kept == 1).collect::<Vec<_>>();
        keep(&of_weights(shares), 4, &ranked, &mut kept);
        kept.into_iter().map(u8::from).collect()
    }

    const FRONT: Option<u8> = Some(0);
    const REAR: Option<u8> = Some(1);

    #[test]
    fn the_worst_of_the_camera_that_has_too_much_makes_way_for_the_best_of_the_other() {
        let cameras = [REAR, FRONT, REAR, FRONT, FRONT, None, FRONT];
        let values = [0.1, 0.9, 0.2, 0.8, 0.7, 0.6];
        // The last one is among the newest.
        let kept = [0, 1, 0, 1, 1, 1, 1];
        // Of four slots of frames one is sure, of equal shares two.
        assert_eq!(
            shared_out(&[3.0, 1.0], &cameras, &values, &kept, 0),
            [0, 1, 1, 1, 0, 1, 1]
        );
        assert_eq!(
            shared_out(&[1.0, 1.0], &cameras, &values, &kept, 0),
            [1, 1, 1, 0, 0, 1, 1]
        );
        // No more than there is, and nothing where nothing is sure.
        assert_eq!(
            shared_out(&[0.0, 1.0], &cameras, &values, &kept, 0),
            [1, 1, 1, 0, 0, 1, 1]
        );
        assert_eq!(shared_out(&[1.0, 0.0], &cameras, &values, &kept, 0), kept);
    }

    #[test]
    fn a_camera_that_has_been_silent_for_long_is_sure_of_nothing() {
        let cameras = [REAR, FRONT, REAR, FRONT];
        let (values, kept) = ([0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1]);
        assert_eq!(
            shared_out(&[1.0, 1.0], &cameras, &values, &kept, 60),
            [0, 1, 1, 0]
        );
        assert_eq!(shared_out(&[1.0, 1.0], &cameras, &values, &kept, 64), kept);
    }
}
