//! The rotary embedding as configurations describe it, in today's spelling and in the older ones.

use serde::Deserialize;

use super::Unsupported;
use crate::cache::{Rope, RopeAxes, RopeScaling};

/// Mirrors `rope_parameters` (transformers 5) and `rope_scaling` (before).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RopeParameters {
    pub rope_theta: Option<f64>,
    pub rope_type: Option<String>,
    /// The same in older files; files that were saved again have both, and then this is the old name of it.
    #[serde(rename = "type")]
    pub old_type: Option<String>,
    pub factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
    pub mrope_section: Option<Vec<usize>>,
    pub mrope_interleaved: Option<bool>,
    /// Share of a head that rotates.
    pub partial_rotary_factor: Option<f64>,
}

impl RopeParameters {
    /// The cache's description, for heads of `head_dim` and the base and share that stand beside the parameters.
    pub fn rope(
        &self,
        head_dim: usize,
        theta: f64,
        rotary_share: f64,
    ) -> Result<Rope, Unsupported> {
        let theta = self.rope_theta.unwrap_or(theta);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(Unsupported::new("rope_theta", theta, "a number above 1"));
        }
        let share = self.partial_rotary_factor.unwrap_or(rotary_share);
        let rotary_dim = (head_dim as f64 * share) as usize;
        if !(2..=head_dim).contains(&rotary_dim) || !rotary_dim.is_multiple_of(2) {
            return Err(Unsupported::new(
                "rotary width",
                format!("{share} of head_dim {head_dim}"),
                "an even number of dimensions, at least 2",
            ));
        }
        Ok(Rope {
            theta,
            rotary_dim,
            scaling: self.scaling()?,
            axes: self.axes(head_dim)?,
        })
    }

    fn scaling(&self) -> Result<RopeScaling, Unsupported> {
        let positive = |name: &'static str, value: Option<f64>| {
            value
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| Unsupported::new(name, format!("{value:?}"), "a positive number"))
        };
        let kind = self.rope_type.as_ref().or(self.old_type.as_ref());
        match kind.map_or("default", String::as_str) {
            // M-RoPE is told by its sections.
            "default" | "mrope" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: positive("rope factor", self.factor)?,
            }),
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: positive("rope factor", self.factor)?,
                    low_freq_factor: positive("low_freq_factor", self.low_freq_factor)?,
                    high_freq_factor: positive("high_freq_factor", self.high_freq_factor)?,
                    original: positive(
                        "original_max_position_embeddings",
                        self.original_max_position_embeddings,
                    )?,
                };
                match self.low_freq_factor < self.high_freq_factor {
                    true => Ok(scaling),
                    false => Err(Unsupported::new(
                        "low_freq_factor",
                        format!("{:?}", self.low_freq_factor),
                        format!("less than high_freq_factor ({:?})", self.high_freq_factor),
                    )),
                }
            }
            other => Err(Unsupported::new(
                "rope_type",
                other,
                "default, linear, llama3 or mrope",
            )),
        }
    }

    fn axes(&self, head_dim: usize) -> Result<RopeAxes, Unsupported> {
        let Some(sections) = &self.mrope_section else {
            return Ok(RopeAxes::One);
        };
        let whole = <[usize; 3]>::try_from(sections.as_slice())
            .ok()
            .filter(|three| three.iter().sum::<usize>() == head_dim / 2);
        match whole {
            Some(three) if self.mrope_interleaved == Some(true) => Ok(RopeAxes::Interleaved(three)),
            Some(three) => Ok(RopeAxes::Sections(three)),
            None => Err(Unsupported::new(
                "mrope_section",
                format!("{sections:?}"),
                format!(
                    "three numbers that add up to {}, half of head_dim",
                    head_dim / 2
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_the_kind_may_stand_together() {
        let scaling = |json: &str| {
            let parameters = serde_json::from_str::<RopeParameters>(json).unwrap();
            parameters.rope(8, 1e4, 1.0).unwrap().scaling
        };
        let linear = RopeScaling::Linear { factor: 8.0 };
        for json in [
            r#"{"type": "linear", "factor": 8.0}"#,
            r#"{"rope_type": "linear", "factor": 8.0}"#,
            r#"{"type": "linear", "rope_type": "linear", "factor": 8.0}"#,
        ] {
            assert_eq!(scaling(json), linear, "{json}");
        }
        let saved_again =
            r#"{"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}"#;
        assert_eq!(scaling(saved_again), RopeScaling::None);
    }
}
