//! How much each of many units is what a question asks for.

use super::summary::Side;

/// Temperatures of a match: of keys with keys, where what is meant is all but equal, and of queries with keys.
const OF_KEYS: f32 = 0.05;
const OF_QUERIES: f32 = 0.6;

/// How a question's tokens find units.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// Of each unit, 0 to 1.
    pub units: Vec<f32>,
    /// How far the best match of any token stands out from the mean of its matches, 0 to 2: a question that names nothing is matched by
    /// all units alike.
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
/// queries: w[i] = c[i]^3                           t = 0.6
/// ```
///
/// Of keys a token counts by how near it comes to its best match anywhere, as for a standing instruction, and the more the fewer units match
/// it so well: `w` is the inverse document frequency (Spärck Jones 1972) with soft counts. Queries of tokens that look for nothing match
/// all units alike, if badly; what they look for stands out from the rest.
pub fn scores(matches: &[Vec<f32>], side: Side) -> Scores {
    let count = matches.len() as f32;
    let tokens = matches.first().map_or(0, Vec::len);
    let mut scores = Scores {
        units: vec![0.0; matches.len()],
        contrast: 0.0,
    };
    let mut total = 0.0;
    for i in 0..tokens {
        let of_token = || matches.iter().map(|unit| unit[i]);
        let best = of_token().fold(f32::NEG_INFINITY, f32::max);
        let contrast = best - of_token().sum::<f32>() / count;
        scores.contrast = scores.contrast.max(contrast);
        let temperature = match side {
            Side::Keys => OF_KEYS,
            Side::Queries => OF_QUERIES,
        };
        let near = |unit: &Vec<f32>| ((unit[i] - best) / temperature).exp();
        let weight = match side {
            Side::Keys => (count / matches.iter().map(near).sum::<f32>()).ln_1p(),
            Side::Queries => contrast.max(0.0).powi(3),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_few_units_match_counts_more_than_one_that_many_do() {
        // Two tokens: the first is matched by all units but the last, the second by the last alone.
        let mut matches = vec![vec![0.9, 0.1]; 9];
        matches.push(vec![0.1, 0.9]);
        for side in Side::ALL {
            let scores = scores(&matches, side).units;
            assert!(scores[9] > 0.7, "{scores:?}");
            assert!(scores[..9].iter().all(|&score| score < 0.5), "{scores:?}");
        }
    }

    #[test]
    fn a_unit_that_matches_every_token_best_scores_one() {
        for side in Side::ALL {
            let matches = [vec![0.8, 0.7], vec![0.2, 0.1], vec![0.2, 0.7]];
            let found = scores(&matches, side);
            assert!((found.units[0] - 1.0).abs() < 1e-6, "{found:?}");
            assert!(found.units[1] < found.units[2], "{found:?}");
            assert!(found.units[2] < 0.8, "{found:?}");
            assert!((found.contrast - 0.4).abs() < 1e-6, "{found:?}");
            assert!(super::scores(&[], side).units.is_empty());
        }
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
        let mut matches = vec![vec![-0.5, 0.3]; 9];
        matches.push(vec![-0.4, 0.9]);
        matches[3][0] = -0.3;
        let scores = scores(&matches, Side::Queries).units;
        assert!(scores[9] > 0.95 && scores[3] < 0.5, "{scores:?}");
    }
}
