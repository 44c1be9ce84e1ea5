//! How much each of many units is what a question asks for.

/// Temperature of a match.
const TEMPERATURE: f32 = 0.05;

/// The scores of units, 0 to 1, from how well each token of a question is matched in each of them (`matches`, `[units][tokens]`, as
/// [`super::Probe::matches`] gives them).
///
/// ```text
/// e[u,i] = exp((m[u,i] - max_u m[u,i]) / t)          t = 0.05
/// w[i]   = ln(1 + units / sum_u e[u,i])
/// S[u]   = sum_i w[i] * e[u,i] / sum_i w[i]
/// ```
///
/// A token counts by how near it comes to its best match anywhere, as for a standing instruction, and the more the fewer units match it
/// so well: `w` is the inverse document frequency (Spärck Jones 1972) with soft counts.
pub fn scores(matches: &[Vec<f32>]) -> Vec<f32> {
    let tokens = matches.first().map_or(0, Vec::len);
    let mut scores = vec![0.0; matches.len()];
    let mut total = 0.0;
    for i in 0..tokens {
        let best = matches.iter().map(|unit| unit[i]);
        let best = best.fold(f32::NEG_INFINITY, f32::max);
        let near = |unit: &Vec<f32>| ((unit[i] - best) / TEMPERATURE).exp();
        let like = matches.iter().map(near).sum::<f32>();
        let weight = (matches.len() as f32 / like).ln_1p();
        total += weight;
        for (score, unit) in scores.iter_mut().zip(matches) {
            *score += weight * near(unit);
        }
    }
    for score in &mut scores {
        *score /= total.max(f32::MIN_POSITIVE);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_few_units_match_counts_more_than_one_that_many_do() {
        // Two tokens: the first is matched by all units but the last, the second by the last alone.
        let mut matches = vec![vec![0.9, 0.1]; 9];
        matches.push(vec![0.1, 0.9]);
        let scores = scores(&matches);
        assert!(scores[9] > 0.7, "{scores:?}");
        assert!(scores[..9].iter().all(|&score| score < 0.3), "{scores:?}");
    }

    #[test]
    fn a_unit_that_matches_every_token_best_scores_one() {
        let scores = scores(&[vec![0.8, 0.7], vec![0.2, 0.1], vec![0.2, 0.7]]);
        assert!((scores[0] - 1.0).abs() < 1e-6, "{scores:?}");
        assert!(scores[1] < 1e-4 && scores[2] > 0.1, "{scores:?}");
        assert!(super::scores(&[]).is_empty());
    }
}
