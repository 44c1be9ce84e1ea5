//! The rotary embedding as configurations describe it, in today's spelling and in the older ones.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::layer_types::ATTENTION;
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
    pub attention_factor: Option<f64>,
    pub beta_fast: Option<f64>,
    pub beta_slow: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub truncate: Option<bool>,
    pub mrope_section: Option<Vec<usize>>,
    pub mrope_interleaved: Option<bool>,
    /// Share of a head that rotates.
    pub partial_rotary_factor: Option<f64>,
    /// Whatever else there is, among it the parameters of each kind of layer where they are told apart.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// What a configuration says beside the parameters.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of a head that rotates.
    pub rotary_share: f64,
    pub max_position_embeddings: usize,
    /// The kinds of the layers.
    pub layer_types: &'a [String],
}

impl RopeParameters {
    /// What counts of `rope_scaling` and `rope_parameters`: the first, unless it is empty, as transformers reads them (5.24,
    /// `convert_rope_params_to_dict`); nothing of the other is taken then.
    pub fn of(scaling: Option<&Self>, parameters: Option<&Self>) -> Self {
        let scaling = scaling.filter(|scaling| **scaling != Self::default());
        scaling.or(parameters).cloned().unwrap_or_default()
    }

    /// The cache's description.
    pub fn rope(&self, beside: &Beside) -> Result<Rope, Unsupported> {
        self.of_layers(beside.layer_types)?.plain(beside)
    }

    /// The parameters of the layers that there are, which must be the same for all.
    fn of_layers(&self, layer_types: &[String]) -> Result<Self, Unsupported> {
        let of_a_kind = |kind: &String| kind.ends_with("_attention") || layer_types.contains(kind);
        if !self.others.keys().any(of_a_kind) {
            return Ok(self.clone());
        }
        // A decoder that does not say so attends in every layer.
        let full = [ATTENTION.to_string()];
        let kinds = match layer_types {
            [] => &full,
            given => given,
        };
        let mut found: Option<(&str, Self)> = None;
        for kind in kinds {
            let field = format!("rope_parameters.{kind}");
            let value = self.others.get(kind).unwrap_or(&Value::Null);
            let parameters = serde_json::from_value::<Self>(value.clone())
                .map_err(|_| Unsupported::new(&field, value, "rotary parameters"))?;
            match &found {
                Some((first, same)) if *same != parameters => {
                    let expected = format!("the same as for {first}");
                    return Err(Unsupported::new(&field, value, expected));
                }
                Some(_) => {}
                None => found = Some((kind, parameters)),
            }
        }
        Ok(found.map(|(_, parameters)| parameters).unwrap_or_default())
    }

    fn plain(&self, beside: &Beside) -> Result<Rope, Unsupported> {
        let head_dim = beside.head_dim;
        let theta = self.rope_theta.unwrap_or(beside.theta);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(Unsupported::new("rope_theta", theta, "a number above 1"));
        }
        let share = self.partial_rotary_factor.unwrap_or(beside.rotary_share);
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
            scaling: self.scaling(beside.max_position_embeddings as f64)?,
            axes: self.axes(rotary_dim)?,
        })
    }

    /// `longest` is the model's longest input, which stands for that of the first training where nothing is said of it.
    fn scaling(&self, longest: f64) -> Result<RopeScaling, Unsupported> {
        let original = self.original_max_position_embeddings.or(Some(longest));
        let original = || positive("original_max_position_embeddings", original);
        let kind = self.rope_type.as_ref().or(self.old_type.as_ref());
        match kind.map_or("default", String::as_str) {
            // M-RoPE is told by its sections.
            "default" | "mrope" => Ok(RopeScaling::None),
            // Up to the model's longest input, beyond which no cache goes, it changes nothing (`_compute_dynamic_ntk_parameters` of
            // transformers 5.23).
            "dynamic" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: positive("rope factor", self.factor)?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: positive("rope factor", self.factor)?,
                low_freq_factor: positive("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: above(
                    ("high_freq_factor", self.high_freq_factor),
                    ("low_freq_factor", self.low_freq_factor),
                )?,
                original: original()?,
            }),
            "yarn" => self.yarn(longest, original()?),
            other => Err(Unsupported::new(
                "rope_type",
                other,
                "default, dynamic, linear, llama3, yarn or mrope",
            )),
        }
    }

    /// As transformers has it (5.24, `_compute_yarn_parameters`).
    fn yarn(&self, longest: f64, original: f64) -> Result<RopeScaling, Unsupported> {
        let stretched = self.original_max_position_embeddings;
        let stretched = stretched.map(|original| longest / original);
        let factor = positive("rope factor", self.factor.or(stretched))?;
        let given = |value: Option<f64>, default| value.filter(|&x| x != 0.0).or(Some(default));
        let (fast, slow) = (given(self.beta_fast, 32.0), given(self.beta_slow, 1.0));
        let stretch = |weight: f64| match factor > 1.0 {
            true => 0.1 * weight * factor.ln() + 1.0,
            false => 1.0,
        };
        let nonzero = |value: Option<f64>| value.filter(|&x| x != 0.0);
        let attention_factor = match (nonzero(self.mscale), nonzero(self.mscale_all_dim)) {
            (Some(above), Some(below)) => stretch(above) / stretch(below),
            _ => stretch(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_slow: positive("beta_slow", slow)?,
            beta_fast: above(("beta_fast", fast), ("beta_slow", slow))?,
            original,
            truncate: self.truncate.unwrap_or(true),
            attention_factor: positive(
                "attention_factor",
                self.attention_factor.or(Some(attention_factor)),
            )?,
        })
    }

    fn axes(&self, rotary_dim: usize) -> Result<RopeAxes, Unsupported> {
        let Some(sections) = &self.mrope_section else {
            return Ok(RopeAxes::One);
        };
        let whole = <[usize; 3]>::try_from(sections.as_slice())
            .ok()
            .filter(|three| three.iter().sum::<usize>() == rotary_dim / 2);
        match whole {
            Some(three) if self.mrope_interleaved == Some(true) => Ok(RopeAxes::Interleaved(three)),
            Some(three) => Ok(RopeAxes::Sections(three)),
            None => Err(Unsupported::new(
                "mrope_section",
                format!("{sections:?}"),
                format!(
                    "three numbers that add up to {}, half of what rotates of head_dim",
                    rotary_dim / 2
                ),
            )),
        }
    }
}

fn positive(name: &str, value: Option<f64>) -> Result<f64, Unsupported> {
    value
        .filter(|x| x.is_finite() && *x > 0.0)
        .ok_or_else(|| Unsupported::new(name, said(value), "a positive number"))
}

/// The number of the first field, which must be larger than that of the second.
fn above(
    (name, value): (&str, Option<f64>),
    (other, least): (&str, Option<f64>),
) -> Result<f64, Unsupported> {
    let number = positive(name, value)?;
    match least.is_some_and(|least| least < number) {
        true => Ok(number),
        false => {
            let expected = format!("more than {other} ({})", said(least));
            Err(Unsupported::new(name, said(value), expected))
        }
    }
}

fn said(value: Option<f64>) -> String {
    value.map_or("missing".to_string(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BESIDE: Beside = Beside {
        head_dim: 8,
        theta: 1e4,
        rotary_share: 1.0,
        max_position_embeddings: 64,
        layer_types: &[],
    };

    fn rope(json: &str, beside: &Beside) -> Result<Rope, Unsupported> {
        let parameters = serde_json::from_str::<RopeParameters>(json).unwrap();
        parameters.rope(beside)
    }

    #[test]
    fn parameters_by_kind_of_layer_are_those_of_the_layers_that_there_are() {
        let json = r#"{"full_attention": {"rope_theta": 5e4, "rope_type": "linear", "factor": 2.0},
            "sliding_attention": {"rope_theta": 7e3}}"#;
        let full = rope(json, &BESIDE).unwrap();
        assert_eq!(full.theta, 5e4);
        assert_eq!(full.scaling, RopeScaling::Linear { factor: 2.0 });
        let kinds = ["sliding_attention", ATTENTION].map(String::from);
        let of = |layer_types| Beside {
            layer_types,
            ..BESIDE
        };
        assert_eq!(rope(json, &of(&kinds[..1])).unwrap().theta, 7e3);
        let different = rope(json, &of(&kinds)).unwrap_err();
        assert_eq!(different.field, "rope_parameters.full_attention");
        let missing = r#"{"sliding_attention": {"rope_theta": 7e3}}"#;
        assert_eq!(rope(missing, &BESIDE).unwrap_err().value, "null");
    }

    #[test]
    fn yarn_takes_what_is_not_said_from_elsewhere() {
        let yarn = |json: &str| match rope(json, &BESIDE).unwrap().scaling {
            RopeScaling::Yarn {
                factor,
                original,
                attention_factor,
                ..
            } => [factor, original, attention_factor],
            other => panic!("{other:?} instead of YaRN"),
        };
        let close = |found: [f64; 3], wanted: [f64; 3]| {
            let near = |(a, b): (&f64, f64)| (a - b).abs() < 1e-12;
            assert!(found.iter().zip(wanted).all(near), "{found:?}, {wanted:?}");
        };
        close(
            yarn(r#"{"type": "yarn", "factor": 4.0}"#),
            [4.0, 64.0, 0.1 * 4f64.ln() + 1.0],
        );
        close(
            yarn(
                r#"{"type": "yarn", "original_max_position_embeddings": 32, "attention_factor": 1.5}"#,
            ),
            [2.0, 32.0, 1.5],
        );
        close(
            yarn(r#"{"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}"#),
            [4.0, 64.0, (0.2 * 4f64.ln() + 1.0) / (0.1 * 4f64.ln() + 1.0)],
        );
        for (json, field) in [
            (r#"{"type": "yarn", "factor": -1.0}"#, "rope factor"),
            (
                r#"{"type": "yarn", "factor": 2.0, "beta_fast": 1.0}"#,
                "beta_fast",
            ),
            (
                r#"{"type": "yarn", "factor": 2.0, "attention_factor": 0.0}"#,
                "attention_factor",
            ),
        ] {
            assert_eq!(rope(json, &BESIDE).unwrap_err().field, field);
        }
    }

    #[test]
    fn both_spellings_of_the_kind_may_stand_together() {
        let scaling = |json: &str| rope(json, &BESIDE).unwrap().scaling;
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
        let dynamic = r#"{"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}"#;
        assert_eq!(scaling(dynamic), RopeScaling::None);
    }
}
