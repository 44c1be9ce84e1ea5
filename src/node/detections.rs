//! The boxes and points in an answer, for rviz and whatever else draws or follows them.

use r2r::std_msgs::msg::Header;
use r2r::vision_msgs::msg::{
    BoundingBox2D, Detection2D, Detection2DArray, ObjectHypothesis, ObjectHypothesisWithPose,
    Point2D, Pose2D,
};
use r2r::{Publisher, QosProfile};

use super::messages::{publishable, time};
use super::outputs::{advertise, report};
use super::NodeError;
use crate::stream::detections::Detection;
use crate::stream::Answer;

pub const TOPIC: &str = "~/detections";

pub struct DetectionArrays(Publisher<Detection2DArray>);

impl DetectionArrays {
    pub fn advertise(node: &mut r2r::Node) -> Result<Self, NodeError> {
        let qos = QosProfile::default();
        Ok(Self(advertise(node, TOPIC, qos)?))
    }

    /// Publishes the boxes and points of an answer, if it has any or says that there are none.
    pub fn publish(&self, answer: &Answer) {
        let said = &answer.detections;
        let Some(newest) = &answer.newest_frame else {
            return;
        };
        if said.found.is_empty() && !said.none {
            return;
        }
        let header = Header {
            stamp: time(newest.stamp_ns),
            frame_id: publishable(&newest.frame_id),
        };
        // A model that writes boxes gives no score to any: this is that of the whole answer, the geometric mean of its tokens' probabilities.
        let score = f64::from(answer.mean_logprob).exp();
        let found = said.found.iter();
        let message = Detection2DArray {
            detections: found
                .map(|found| detection(found, &header, score))
                .collect(),
            header,
        };
        report(TOPIC, self.0.publish(&message));
    }
}

/// One of them. It has no id: that would say that it is the same object as one of another answer.
fn detection(found: &Detection, header: &Header, score: f64) -> Detection2D {
    let [left, top, right, bottom] = found.edges;
    let hypothesis = ObjectHypothesis {
        class_id: publishable(&found.label),
        score,
    };
    Detection2D {
        header: header.clone(),
        results: vec![ObjectHypothesisWithPose {
            hypothesis,
            ..ObjectHypothesisWithPose::default()
        }],
        bbox: BoundingBox2D {
            center: Pose2D {
                position: Point2D {
                    x: (left + right) / 2.0,
                    y: (top + bottom) / 2.0,
                },
                theta: 0.0,
            },
            size_x: right - left,
            size_y: bottom - top,
        },
        id: String::new(),
    }
}
