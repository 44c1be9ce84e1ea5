//! How much each of many units is what a question asks for.

use super::summary::Side;
use crate::simd::dot;

/// Temperatures of a match: of keys with keys, where what is meant is all but equal, and of queries with keys.
const OF_KEYS: f32 = 0.05;
const OF_QUERIES: f32 = 0.3;

/// How a question's tokens find units.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// Of each unit, 0 to 1.
    pub units: Vec<f32>,
    /// How far the best match of any token stands out from the mean of its matches, of queries by what is its own, 0 to 2: a question that
    /// names nothing is matched by all units alike.
    pub contrast: f32,
}

/// The scores of units from how well each token of a question is matched in each of them (`matches`, `[units][tokens]`, as
/// [`super::Probe::matches`] gives them for that side).
///
/// ```text
/// e[u,i] = exp((m[u,i] - max_u m[u,i]) / t)
/// S[u]   = sum_i w[i] * e[u,i] / sum_i w[i]
/// c[i]   = max_u m[u,i] - mean_u m[u,i]
/// keys:    w[i] = ln(1 + units / sum_u e[u,i])     t = 0.05
/// queries: w[i] = c[i] (1 - r[i]^2)^2              t = 0.3
/// ```
///
/// Of keys a token counts by how near it comes to its best match anywhere, as for a standing instruction, and the more the fewer units match
/// it so well: `w` is the inverse document frequency (Spärck Jones 1972) with soft counts.
///
/// Of queries a token counts by how far its best match stands out, and by how much of that is its own: `r[i]` is the correlation over the
/// units of `m[u,i]` and `median_i m[u,i]` (0 if negative, `r^2` adjusted for how few units there are). Most tokens look for nothing, and
/// match units alike: badly, but a few units, whose keys are like nothing else, much better than all others. One such among thousands would
/// be the best for every question if their tokens had a say.
pub fn scores(matches: &[Vec<f32>], side: Side) -> Scores {
    let count = matches.len() as f32;
    let tokens = matches.first().map_or(0, Vec::len);
    let mut scores = Scores {
        units: vec![0.0; matches.len()],
        contrast: 0.0,
    };
    let common = match side {
        Side::Keys => Vec::new(),
        Side::Queries => matches.iter().map(|unit| median(unit)).collect::<Vec<_>>(),
    };
    let mut total = 0.0;
    for i in 0..tokens {
        let of_token = || matches.iter().map(|unit| unit[i]);
        let best = of_token().fold(f32::NEG_INFINITY, f32::max);
        let contrast = best - of_token().sum::<f32>() / count;
        let (contrast, temperature) = match side {
            Side::Keys => (contrast, OF_KEYS),
            Side::Queries => {
                let own = 1.0 - explained(&of_token().collect::<Vec<_>>(), &common);
                (contrast * own * own, OF_QUERIES)
            }
        };
        scores.contrast = scores.contrast.max(contrast);
        let near = |unit: &Vec<f32>| ((unit[i] - best) / temperature).exp();
        let weight = match side {
            Side::Keys => (count / matches.iter().map(near).sum::<f32>()).ln_1p(),
            Side::Queries => contrast,
        };
        total += weight;
        for (score, unit) in scores.units.iter_mut().zip(matches) {
            *score += weight * near(unit);
        }
    }
    for score in &mut scores.units {
        *score /= total.max(f32::MIN_POSITIVE);
    }
    scores
}

/// How far the best match of any token in units stands out, 0 to 2, where there may be few of them: from the mean of its matches in the units
/// and in the question itself (`own`, `[tokens]`, as [`super::Probe::own`] gives them).
pub fn contrast(matches: &[Vec<f32>], own: &[f32]) -> f32 {
    let contrasts = own.iter().enumerate().map(|(i, own)| {
        let of_token = || matches.iter().map(|unit| unit[i]);
        let best = of_token().fold(f32::NEG_INFINITY, f32::max);
        best - (of_token().sum::<f32>() + own) / (matches.len() + 1) as f32
    });
    contrasts.fold(0.0, f32::max)
}

/// The upper one where there are two in the middle; 0 of nothing.
fn median(values: &[f32]) -> f32 {
    let mut values = values.to_vec();
    let middle = values.len() / 2;
    match values.get(middle) {
        None => 0.0,
        Some(_) => *values.select_nth_unstable_by(middle, f32::total_cmp).1,
    }
}

/// How much of the variance of `x` is that of `y`, 0 to 1: the coefficient of determination, adjusted for how few there are; 0 where the
/// one falls as the other rises, or where one does neither.
fn explained(x: &[f32], y: &[f32]) -> f32 {
    let count = x.len() as f32;
    let from_mean = |values: &[f32]| {
        let mean = values.iter().sum::<f32>() / count;
        values.iter().map(|value| value - mean).collect::<Vec<_>>()
    };
    let (x, y) = (from_mean(x), from_mean(y));
    let (together, alone) = (dot(&x, &y), dot(&x, &x) * dot(&y, &y));
    if count < 3.0 || together <= 0.0 || alone <= 0.0 {
        return 0.0;
    }
    let left = 1.0 - together * together / alone;
    (1.0 - left * (count - 1.0) / (count - 2.0)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_few_units_match_counts_more_than_one_that_many_do() {
        // Two tokens: the first is matched by all units but the last, the second by the last alone.
        let mut matches = vec![vec![0.9, 0.1]; 9];
        matches.push(vec![0.1, 0.9]);
        let scores = scores(&matches, Side::Keys).units;
        assert!(scores[9] > 0.7, "{scores:?}");
        assert!(scores[..9].iter().all(|&score| score < 0.5), "{scores:?}");
    }

    #[test]
    fn a_unit_that_matches_every_token_best_scores_one() {
        let matches = [vec![0.8, 0.7], vec![0.2, 0.1], vec![0.2, 0.7]];
        for side in Side::ALL {
            let found = scores(&matches, side);
            assert!((found.units[0] - 1.0).abs() < 1e-6, "{found:?}");
            assert!(found.units[1] < found.units[2], "{found:?}");
            assert!(found.units[2] < 0.8, "{found:?}");
            assert!(super::scores(&[], side).units.is_empty());
        }
        assert!((scores(&matches, Side::Keys).contrast - 0.4).abs() < 1e-6);
    }

    /// Five tokens, of which the fourth looks for something: it is matched well by every tenth unit.
    fn question() -> Vec<Vec<f32>> {
        let unit = |u: usize| {
            let common = -0.5 + 0.02 * (u % 7) as f32;
            let wanted = if u % 10 == 3 { 0.8 } else { 0.2 } + 0.02 * (u % 3) as f32;
            vec![common, common + 0.01, common, wanted, common - 0.01]
        };
        (0..100).map(unit).collect()
    }

    #[test]
    fn a_single_unit_stands_out_from_the_question_itself() {
        let own = [0.8, 0.85];
        let says_it = contrast(&[vec![0.98, 0.85]], &own);
        let does_not = contrast(&[vec![0.82, 0.85]], &own);
        assert!(says_it > 0.08 && does_not < 0.02, "{says_it} {does_not}");
        assert_eq!(contrast(&[], &own), 0.0);
    }

    #[test]
    fn what_all_units_match_alike_tells_nothing() {
        let Scores { units, contrast } = scores(&question(), Side::Queries);
        for (u, score) in units.into_iter().enumerate() {
            assert_eq!(score > 0.75, u % 10 == 3, "{u}: {score}");
        }
        assert!((0.4..0.7).contains(&contrast), "{contrast}");
    }

    #[test]
    fn a_unit_whose_keys_are_like_nothing_else_is_not_what_is_meant() {
        let mut matches = question();
        matches[50] = vec![0.4, 0.41, 0.4, 0.45, 0.39];
        let units = scores(&matches, Side::Queries).units;
        for (u, score) in units.into_iter().enumerate() {
            assert_eq!(score > 0.75, u % 10 == 3, "{u}: {score}");
        }
    }

    #[test]
    fn tokens_that_go_together_stand_out_from_nothing() {
        let mut matches = question();
        for unit in &mut matches {
            unit[3] = unit[0];
        }
        let contrast = scores(&matches, Side::Queries).contrast;
        assert!(contrast < 0.05, "{contrast}");
    }

    #[test]
    fn of_two_units_nothing_goes_together() {
        let matches = [vec![-0.5, -0.5, 0.2], vec![-0.4, -0.4, 0.8]];
        let scores = scores(&matches, Side::Queries).units;
        assert!(scores[1] > 0.9 && scores[0] < 0.6, "{scores:?}");
    }
}
