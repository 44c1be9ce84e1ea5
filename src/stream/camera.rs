//! The cameras of a stream: their labels, and what holds for one of them only.
//!
//! A camera is known by its index in the parameter `cameras`. Without that parameter there is one camera, of index 0 and without a label,
//! and the model is told nothing of cameras.

use super::gate::GateConfig;
use crate::cache::parameter::{parameters, ParameterError};
use crate::model::tokenizer::ChatTokenizer;

/// The most cameras of one stream.
const MOST: usize = 16;

/// The longest label, bytes: it is fed with every frame.
const LONGEST_LABEL: usize = 64;

parameters! {
    section "Cameras";
    /// What is known of the cameras beforehand.
    #[derive(Debug, Clone, PartialEq)]
    pub struct CamerasConfig {
        /// Labels of the cameras, such as `front` and `rear`, where there are several: the model is told the label with every frame, and
        /// an answer says which camera its newest image is of. Empty: one camera.
        labels: Vec<String> = Vec::new(), name "cameras", set Start;
        /// Most frames used per second of each camera, in the order of `cameras`; `frame_rate` holds for those behind the end of the list.
        rates: Vec<f64> = Vec::new(), name "camera_rates", range 0.0..=1000.0, unit "1/s", set Running;
    }
    parts {}
    others {}
}

impl CamerasConfig {
    /// How many there are, at least 1.
    pub fn count(&self) -> usize {
        self.labels.len().max(1)
    }

    /// What the model and who asks are told of a camera; none where there is but one.
    pub fn label(&self, camera: usize) -> Option<&str> {
        let labels = (self.labels.len() > 1).then_some(&self.labels)?;
        labels.get(camera).map(String::as_str)
    }

    /// What the gate of a camera goes by.
    pub fn gate(&self, camera: usize, general: GateConfig) -> GateConfig {
        GateConfig {
            frame_rate: self
                .rates
                .get(camera)
                .copied()
                .unwrap_or(general.frame_rate),
            ..general
        }
    }

    /// Fails where labels cannot be told apart or are none, and where lists are not as long as they should be.
    pub fn check(&self) -> Result<(), ParameterError> {
        let labels = &self.labels;
        if labels.len() > MOST {
            let value = format!("{} labels", labels.len());
            return Err(wrong("cameras", value, format!("at most {MOST}")));
        }
        for (i, label) in labels.iter().enumerate() {
            let expected = if label.trim().is_empty() || label.trim() != label {
                "a label that is not empty and neither begins nor ends with a blank"
            } else if label.len() > LONGEST_LABEL {
                "labels of at most 64 bytes"
            } else if label.chars().any(char::is_control) {
                "labels without control characters"
            } else if labels[..i].contains(label) {
                "labels that differ"
            } else {
                continue;
            };
            return Err(refused(label, expected));
        }
        of_each("camera_rates", &self.rates, labels.len(), false)
    }

    /// Fails where a label holds what is a control token of the model.
    pub fn check_tokens(&self, tokenizer: &ChatTokenizer) -> Result<(), ParameterError> {
        let typed = |label: &&String| tokenizer.guard(label) != **label;
        match self.labels.iter().find(typed) {
            Some(label) => Err(refused(label, "labels without control tokens of the model")),
            None => Ok(()),
        }
    }
}

/// Fails where `list` is not for so many cameras, of which each is to have its number if it is `whole`.
pub(super) fn of_each(
    name: &'static str,
    list: &[f64],
    cameras: usize,
    whole: bool,
) -> Result<(), ParameterError> {
    let fits = match whole {
        true => list.len() == cameras,
        false => list.len() <= cameras,
    };
    if fits {
        return Ok(());
    }
    let most = if whole { "" } else { "at most " };
    let expected = format!("{most}one for each of cameras, which has {cameras}");
    Err(wrong(name, format!("{list:?}"), expected))
}

fn refused(label: &str, expected: &str) -> ParameterError {
    wrong(
        "cameras",
        format!("a list with {label:?}"),
        expected.to_string(),
    )
}

fn wrong(name: &'static str, value: String, expected: String) -> ParameterError {
    ParameterError::Value {
        name,
        value,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cameras(labels: &[&str], rates: &[f64]) -> CamerasConfig {
        CamerasConfig {
            labels: labels.iter().map(|label| label.to_string()).collect(),
            rates: rates.to_vec(),
        }
    }

    #[test]
    fn labels_that_are_none_or_not_to_be_told_apart_are_refused_with_what_is_expected() {
        for (labels, told) in [
            (
                vec!["front", ""],
                r#"parameter cameras is a list with "", expected a label that is not empty"#,
            ),
            (vec![" front"], "neither begins nor ends with a blank"),
            (
                vec!["front", "rear", "front"],
                r#"a list with "front", expected labels that differ"#,
            ),
            (vec!["front\nrear"], "control characters"),
            (vec!["x"; 17], "17 labels, expected at most 16"),
        ] {
            let error = cameras(&labels, &[]).check().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let long = "x".repeat(65);
        assert!(cameras(&[&long], &[]).check().is_err());
        assert_eq!(cameras(&["front", "rear"], &[1.0, 2.0]).check(), Ok(()));
        let error = cameras(&["front"], &[1.0, 2.0]).check().unwrap_err();
        let told = "parameter camera_rates is [1.0, 2.0], expected at most one for each of cameras, which has 1";
        assert_eq!(error.to_string(), told);
    }

    #[test]
    fn one_camera_has_no_label_and_a_rate_that_is_not_given_is_the_general_one() {
        assert_eq!(cameras(&[], &[]).label(0), None);
        assert_eq!(cameras(&["front"], &[]).label(0), None);
        let two = cameras(&["front", "rear"], &[5.0]);
        assert_eq!(
            (two.label(1), two.label(2), two.count()),
            (Some("rear"), None, 2)
        );
        let general = GateConfig {
            frame_rate: 2.0,
            ..GateConfig::default()
        };
        let rates = [0, 1].map(|camera| two.gate(camera, general).frame_rate);
        assert_eq!(rates, [5.0, 2.0]);
    }
}
