//! The frames that the last answer rests on, as a picture for rqt, rviz and Foxglove.

use r2r::sensor_msgs::msg::CompressedImage;
use r2r::std_msgs::msg::Header;
use r2r::{Publisher, QosProfile};

use super::outputs::{advertise, report};
use super::{messages, NodeError};
use crate::stream::montage::montage;
use crate::stream::Answer;

/// The picture's own topic, and the same by the name under which image_transport looks for compressed pictures, and with it rqt and rviz.
pub const TOPICS: [&str; 2] = ["~/evidence_image", "~/evidence_image/compressed"];

pub struct EvidenceImage([Publisher<CompressedImage>; 2]);

impl EvidenceImage {
    pub fn advertise(node: &mut r2r::Node) -> Result<Self, NodeError> {
        // A viewer is opened after the answer that one wonders about.
        let latched = QosProfile::default().keep_last(1).transient_local();
        let [own, transport] = TOPICS;
        Ok(Self([
            advertise(node, own, latched.clone())?,
            advertise(node, transport, latched)?,
        ]))
    }

    /// Publishes the evidence of an answer, if there are thumbnails of any.
    pub fn publish(&self, answer: &Answer) {
        let Some(newest) = &answer.newest_frame else {
            return;
        };
        let Some(data) = montage(&answer.evidence, newest.stamp_ns) else {
            return;
        };
        let image = CompressedImage {
            header: Header {
                stamp: messages::time(newest.stamp_ns),
                frame_id: messages::publishable(&newest.frame_id),
            },
            format: "jpeg".to_string(),
            data,
        };
        for (topic, publisher) in TOPICS.iter().zip(&self.0) {
            report(topic, publisher.publish(&image));
        }
    }
}
