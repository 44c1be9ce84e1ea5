//! The rotary embedding of a GGUF file: base, scaling, and the axes of positions.
//!
//! Scaled frequencies are told by a tensor with a divisor for each, and by no key. The one scaling that converters write this way is Llama 3.1's, of which the divisors are the values at the frequencies; its
//! parameters are worked out from them, so that the arithmetic is that of a published checkpoint.

use serde_json::{json, Value as Json};

use super::decoder::{QWEN2_VL, QWEN3_VL};
use super::value::Value;
use super::Gguf;
use crate::model::weights::Bands;
use crate::model::ModelError;

pub const FACTORS: &str = "rope_freqs.weight";

/// Largest relative difference between a divisor and what the parameters make of it.
const TOLERANCE: f64 = 1e-4;

impl Gguf {
    /// The rotary embedding of heads of `head_dim`, as `rope_parameters` of a configuration.
    pub(super) fn rope_parameters(&self, head_dim: usize) -> Result<Json, ModelError> {
        let mut parameters = self.frequencies(head_dim)?;
        // That the axes take turns is said by the architecture alone.
        let interleaved = match self.architecture.as_str() {
            QWEN2_VL => false,
            QWEN3_VL => true,
            _ => return Ok(parameters),
        };
        parameters["mrope_section"] = self.sections(head_dim)?.into();
        parameters["mrope_interleaved"] = interleaved.into();
        Ok(parameters)
    }

    /// Pairs of a head on each axis of positions: time, row, column, and a fourth that these models do not have.
    fn sections(&self, head_dim: usize) -> Result<Vec<u64>, ModelError> {
        let key = format!("{}.rope.dimension_sections", self.architecture);
        let sections = self.elements(&key, "a whole number", Value::whole)?;
        let pairs = (head_dim / 2) as u64;
        let sum = |numbers: &[u64]| numbers.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        match sections.as_slice() {
            [axes @ .., 0] | axes if axes.len() == 3 && sum(axes) == pairs => Ok(axes.to_vec()),
            _ => Err(self.unsupported(
                &key,
                format!("{sections:?}"),
                format!("three numbers that add up to {pairs}, half of a head, and 0"),
            )),
        }
    }

    /// The frequencies as `rope_parameters` of a configuration.
    fn frequencies(&self, head_dim: usize) -> Result<Json, ModelError> {
        let architecture = &self.architecture;
        let theta = self.optional_float(&format!("{architecture}.rope.freq_base"))?;
        let theta = theta.unwrap_or(10_000.0);
        let factors = self.rope_factors(head_dim)?;
        let key = format!("{architecture}.rope.scaling.type");
        // Files without a kind have the factor of a linear scaling under another key.
        let old = self.optional_float(&format!("{architecture}.rope.scale_linear"))?;
        let kind = match self.optional_text(&key)? {
            Some(kind) => kind,
            None if old.is_some_and(|factor| factor != 1.0) => "linear",
            None => "none",
        };
        match (kind, factors) {
            ("none", None) => Ok(json!({ "rope_type": "default", "rope_theta": theta })),
            ("none", Some(factors)) => {
                let found = (theta > 1.0).then(|| llama3(theta, &factors)).flatten();
                found.ok_or_else(|| {
                    let (first, last) = (factors[0], factors[factors.len() - 1]);
                    let value = format!("{first} to {last}");
                    self.unsupported(FACTORS, value, "the divisors of llama3 scaling")
                })
            }
            ("linear", None) => {
                let factor = format!("{architecture}.rope.scaling.factor");
                let factor = match (self.optional_float(&factor)?, old) {
                    (Some(factor), _) | (None, Some(factor)) => factor,
                    (None, None) => return Err(self.missing(&factor)),
                };
                Ok(json!({ "rope_type": "linear", "rope_theta": theta, "factor": factor }))
            }
            ("linear", Some(_)) => {
                Err(self.unsupported(&key, "\"linear\"", format!("\"none\" beside {FACTORS}")))
            }
            (other, _) => {
                Err(self.unsupported(&key, format!("{other:?}"), "\"none\" or \"linear\""))
            }
        }
    }

    /// The divisors, if there are any: as many as a head has pairs.
    fn rope_factors(&self, head_dim: usize) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(info) = self.header.tensors.get(FACTORS) else {
            return Ok(None);
        };
        let pairs = head_dim / 2;
        if info.dims != [pairs] || pairs == 0 {
            let (value, expected) = (format!("{:?}", info.dims), format!("[{pairs}]"));
            return Err(self.unsupported(&format!("shape of {FACTORS}"), value, expected));
        }
        let fail = |error| self.fail(format!("tensor {FACTORS}: {error}"));
        let factors = self.stored(info, None).dense(candle_core::DType::F32);
        let factors = factors
            .and_then(|factors| factors.to_vec1::<f32>())
            .map_err(fail)?;
        Ok(Some(factors.into_iter().map(f64::from).collect()))
    }
}

/// The parameters of llama3 scaling whose divisors of the frequencies `theta^(-i / pairs)` are `factors`.
///
/// With u = the reciprocal of a wavelength, 1 / divisor = s + (1 - s) / factor, where s rises linearly from 0 at `low / original`
/// to 1 at `high / original`. `original` is set to 1: the quotients alone matter.
fn llama3(theta: f64, factors: &[f64]) -> Option<Json> {
    let pairs = factors.len() as f64;
    let turns = |i: usize| theta.powf(-(i as f64) / pairs) / (2.0 * std::f64::consts::PI);
    let factor = *factors.last()?;
    if !factors.iter().all(|f| f.is_finite() && *f > 0.0) || factor <= 1.0 {
        return None;
    }
    let share = |f: f64| (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor);
    let points = factors.iter().enumerate();
    let points = points
        .map(|(i, &f)| (turns(i), share(f)))
        .collect::<Vec<_>>();
    let kept = points.iter().rev().find(|(_, s)| *s > 1.0 - TOLERANCE);
    let divided = points.iter().find(|(_, s)| *s < TOLERANCE);
    let ramp = points
        .iter()
        .filter(|(_, s)| (TOLERANCE..1.0 - TOLERANCE).contains(s));
    let ramp = ramp.collect::<Vec<_>>();
    // Two points of the rise; where the frequencies leave it open, it may end at the next one.
    let candidates = match ramp.as_slice() {
        [first, .., last] => vec![(*first, *last)],
        [one] => [
            kept.map(|kept| (kept, *one)),
            divided.map(|divided| (*one, divided)),
        ]
        .into_iter()
        .flatten()
        .collect(),
        [] => vec![(kept?, divided?)],
    };
    let fits = |&(low, high): &(f64, f64)| {
        points.iter().zip(factors).all(|(&(u, _), f)| {
            let s = ((u - low) / (high - low)).clamp(0.0, 1.0);
            let made = 1.0 / (s + (1.0 - s) / factor);
            (made - f).abs() <= TOLERANCE * f
        })
    };
    let lines = candidates.into_iter().map(|((u1, s1), (u2, s2))| {
        let slope = (s1 - s2) / (u1 - u2);
        (u2 - s2 / slope, u2 + (1.0 - s2) / slope)
    });
    let (low, high) = lines
        .filter(|(low, high)| 0.0 < *low && low < high)
        .find(fits)?;
    Some(json!({
        "rope_type": "llama3", "rope_theta": theta, "factor": factor,
        "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": 1.0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Rope, RopeScaling};

    fn divisors(theta: f64, pairs: usize, scaling: RopeScaling) -> Vec<f64> {
        let plain = Rope::new(theta);
        let scaled = Rope { scaling, ..plain };
        let pairs = plain
            .pairs(2 * pairs)
            .into_iter()
            .zip(scaled.pairs(2 * pairs));
        let divisors = pairs.map(|(plain, scaled)| plain.frequency / scaled.frequency);
        // As a file holds them.
        divisors.map(|divisor| f64::from(divisor as f32)).collect()
    }

    fn llama(factor: f64, low: f64, high: f64, original: f64) -> RopeScaling {
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original,
        }
    }

    #[test]
    fn the_parameters_found_make_the_same_divisors() {
        for (theta, pairs, scaling) in [
            (5e5, 64, llama(8.0, 1.0, 4.0, 8192.0)),
            (5e5, 32, llama(32.0, 1.0, 4.0, 8192.0)),
            // One frequency on the rise, then none.
            (5e5, 8, llama(8.0, 1.0, 4.0, 8192.0)),
            (1e4, 8, llama(8.0, 1.0, 1.2, 64.0)),
        ] {
            let wanted = divisors(theta, pairs, scaling);
            let found = llama3(theta, &wanted).unwrap();
            let number = |name: &str| found[name].as_f64().unwrap();
            let found = llama(
                number("factor"),
                number("low_freq_factor"),
                number("high_freq_factor"),
                number("original_max_position_embeddings"),
            );
            for (found, wanted) in divisors(theta, pairs, found).iter().zip(&wanted) {
                assert!((found - wanted).abs() < 2e-6 * wanted, "{scaling:?}");
            }
        }
    }

    #[test]
    fn other_divisors_are_refused() {
        for factors in [
            &[1.0, 1.0, 1.0][..],
            &[1.0, 5.0, 2.0, 8.0],
            &[8.0, 8.0, 1.0],
            &[1.0, f64::NAN, 8.0],
            &[1.0, 0.0, 8.0],
            &[2.0, 4.0, 8.0, 16.0],
            &[4.0, 4.0, 4.0],
        ] {
            assert!(llama3(1e4, factors).is_none(), "{factors:?}");
        }
    }
}
