//! Keys compared by their direction before rotation: those of a unit with a standing instruction's, each with the mean of the stream.

use candle_core::{DType, Result, Tensor, D};

use super::slots::SlotMap;

/// Temperature of the likeness to a standing instruction.
const TEMPERATURE: f32 = 0.05;

/// The mean of the stream forgets what is older than about so many budgets.
const HORIZON: usize = 16;

/// The vectors of `x` (`[.., head_dim]`) at length 1, f32.
pub fn directions(x: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    x.broadcast_div(&(length + 1e-12)?)
}

/// How much the unit of each slot is like the standing instruction, 0 to 1, `[kv_heads * len]`, for directions `standing`
/// (`[kv_heads, n, head_dim]`) and `keys` (`[kv_heads, len, head_dim]`); `sets` are the layer's kept sets, one or as many as
/// there are KV heads.
///
/// `T[u] = (1 / n) * sum_i exp((max_{j in u} cos(s_i, k_j) - max_j cos(s_i, k_j)) / t)` over the n keys s_i of the instruction,
/// t = 0.05: each of the instruction's tokens looks for its best match in the unit (MaxSim of ColBERT, arXiv 2004.12832), which
/// counts by how near it comes to the best of all that is cached. The exponential is ours.
pub fn likeness(standing: &Tensor, keys: &Tensor, sets: &[SlotMap]) -> Result<Vec<f32>> {
    let cosines = standing.matmul(&keys.t()?)?;
    let (heads, words, len) = cosines.dims3()?;
    let cosines = cosines.flatten_all()?.to_vec1::<f32>()?;
    let units = sets.iter().map(SlotMap::units).collect::<Vec<_>>();
    let mut likeness = Vec::with_capacity(heads * len);
    for (head, cosines) in cosines.chunks_exact((words * len).max(1)).enumerate() {
        let units = &units[head.min(units.len() - 1)];
        let count = units.iter().max().map_or(0, |&last| last + 1);
        let mut sums = vec![0.0; count];
        for cosines in cosines.chunks_exact(len) {
            let mut best = vec![f32::NEG_INFINITY; count];
            for (&unit, &cosine) in units.iter().zip(cosines) {
                best[unit] = best[unit].max(cosine);
            }
            let all = best.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (sum, best) in sums.iter_mut().zip(best) {
                *sum += ((best - all) / TEMPERATURE).exp() / words as f32;
            }
        }
        likeness.extend(units.iter().map(|&unit| sums[unit]));
    }
    Ok(likeness)
}

/// The running mean of the directions of all keys of the stream, newer ones counting more in the long run.
#[derive(Debug, Clone, Default)]
pub struct KeyMean {
    /// `[kv_heads, 1, head_dim]`, f32; `None` before the first key.
    mean: Option<Tensor>,
    /// Keys that the mean stands for.
    count: usize,
    /// Stream index of the first key that it does not know yet.
    next: u64,
}

impl KeyMean {
    /// Takes the keys in that have come since the last time; all of them must still be there. `keys` are directions by slot,
    /// `[kv_heads, len, head_dim]`; `sets` are the layer's kept sets, one or as many as there are KV heads.
    pub fn update(&mut self, keys: &Tensor, sets: &[SlotMap], budget: usize) -> Result<()> {
        let sums = (0..keys.dim(0)?)
            .map(|head| {
                let tokens = sets[head.min(sets.len() - 1)].tokens();
                let new = (0u32..).zip(tokens).filter(|(_, t)| t.index >= self.next);
                let new = new.map(|(slot, _)| slot).collect::<Vec<_>>();
                let index = Tensor::from_slice(&new, new.len(), keys.device())?;
                keys.get(head)?.index_select(&index, 0)?.sum_keepdim(0)
            })
            .collect::<Result<Vec<_>>>()?;
        let tokens = sets[0].tokens();
        let new = tokens.iter().filter(|t| t.index >= self.next).count();
        let sum = Tensor::stack(&sums, 0)?;
        let total = match &self.mean {
            Some(mean) => ((mean * self.count as f64)? + sum)?,
            None => sum,
        };
        let count = self.count + new;
        self.mean = Some((total / count.max(1) as f64)?);
        self.count = count.min(HORIZON * budget);
        self.next = tokens.iter().map(|t| t.index + 1).max().unwrap_or(0);
        Ok(())
    }

    /// How unlike the mean each key is, `N[j] = 1 - cos(k_j, mean)`, `[kv_heads, len]`, for directions `[kv_heads, len, head_dim]`
    /// (KeyDiff, arXiv 2504.15364, whose mean is that of the cached keys; a mean of the whole stream does not move towards
    /// what is kept).
    pub fn novelty(&self, keys: &Tensor) -> Result<Tensor> {
        let Some(mean) = &self.mean else {
            return Tensor::zeros(
                keys.dims3().map(|(h, len, _)| (h, len))?,
                DType::F32,
                keys.device(),
            );
        };
        let cosine = keys.matmul(&directions(mean)?.t()?)?.squeeze(2)?;
        1.0 - cosine
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::cache::slots::{Mark, Token};

    /// Keys of two dimensions at the given angles in degrees, with the stream indices of their tokens.
    fn stream(keys: &[(u64, f32)]) -> (Tensor, [SlotMap; 1]) {
        let angles = keys.iter().map(|(_, angle)| angle.to_radians());
        let values = angles.flat_map(|a| [3.0 * a.cos(), 3.0 * a.sin()]);
        let values = values.collect::<Vec<_>>();
        let keys_at = Tensor::from_vec(values, (1, keys.len(), 2), &Device::Cpu).unwrap();
        let tokens = keys.iter().map(|&(index, _)| Token {
            index,
            unit: index,
            mark: Mark::default(),
        });
        let mut set = SlotMap::with_capacity(keys.len());
        set.append(&tokens.collect::<Vec<_>>());
        (directions(&keys_at).unwrap(), [set])
    }

    fn novelty(mean: &mut KeyMean, keys: &[(u64, f32)], budget: usize) -> Vec<f32> {
        let (keys, sets) = stream(keys);
        mean.update(&keys, &sets, budget).unwrap();
        let novelty = mean.novelty(&keys).unwrap();
        novelty.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn near(got: &[f32], want: &[f32]) {
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5),
            "{got:?} is not {want:?}"
        );
    }

    #[test]
    fn novelty_is_the_distance_from_the_mean_direction_of_all_keys_of_the_stream() {
        let mut mean = KeyMean::default();
        near(
            &novelty(
                &mut mean,
                &[(0, 30.0), (1, 90.0), (2, -30.0), (3, 30.0)],
                64,
            ),
            &[0.0, 0.5, 0.5, 0.0],
        );
        // Keys that were counted before do not count again, and those that are gone still do: 2 x 30, 90, -30 and now 210 degrees.
        near(
            &novelty(&mut mean, &[(1, 90.0), (4, 210.0)], 64),
            &[0.5, 2.0],
        );
    }

    #[test]
    fn the_mean_follows_the_stream_in_the_long_run() {
        let mut mean = KeyMean::default();
        let steady = |from: u64, angle| (from..from + 160).map(|i| (i, angle)).collect::<Vec<_>>();
        // 16 budgets are forgotten for the most part after ten times as many.
        novelty(&mut mean, &steady(0, 0.0), 1);
        for from in (160..1600).step_by(160) {
            let last = novelty(&mut mean, &steady(from, 90.0), 1);
            assert!(last[0] < 0.01, "{}", last[0]);
        }
    }

    #[test]
    fn a_unit_is_like_an_instruction_by_the_best_match_of_each_of_its_tokens() {
        // Slots of two units, not in the order of time.
        let (keys, _) = stream(&[(0, 0.0), (1, 90.0), (2, 90.0)]);
        let token = |index, unit| Token {
            index,
            unit,
            mark: Mark::default(),
        };
        let mut set = SlotMap::with_capacity(3);
        set.append(&[token(0, 0), token(1, 1), token(2, 1)]);
        set.evict(&[true, true, false], &[0, 1, 2], 0, &mut Vec::new());
        set.append(&[token(3, 1)]);
        // Its second token, at 87 degrees, is nearest to the second unit, 3 degrees off; the first unit is 87 degrees off.
        let (standing, _) = stream(&[(0, 0.0), (1, 87.0)]);
        let off = |degrees: f32| {
            let best = 3.0f32.to_radians().cos();
            ((degrees.to_radians().cos() - best) / 0.05).exp()
        };
        let (first, second) = (
            (1.0 + off(87.0)) / 2.0,
            ((-1.0f32 / 0.05).exp() + 1.0) / 2.0,
        );
        near(
            &likeness(&standing, &keys, &[set]).unwrap(),
            &[first, second, second],
        );
    }
}
