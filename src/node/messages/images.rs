//! Images as they come from cameras.

use r2r::sensor_msgs::msg::{CompressedImage, Image};
use r2r::{NativeMsg, WrappedTypesupport};

use super::{nanoseconds, text};
use crate::stream::{CameraImage, ImageData};

/// A raw image, copied once out of the middleware's message. `arrival_ns` is now, ROS clock.
pub fn raw_image(message: &NativeMsg<Image>, arrival_ns: i64) -> CameraImage {
    CameraImage {
        camera: 0,
        stamp_ns: nanoseconds(message.header.stamp.sec, message.header.stamp.nanosec),
        arrival_ns,
        frame_id: text(&message.header.frame_id),
        data: ImageData::Raw {
            encoding: text(&message.encoding),
            width: message.width,
            height: message.height,
            step: message.step,
            is_bigendian: message.is_bigendian != 0,
            data: message.data.to_vec(),
        },
    }
}

/// A compressed image, copied once out of the middleware's message.
pub fn compressed_image(
    message: &<CompressedImage as WrappedTypesupport>::CStruct,
    arrival_ns: i64,
) -> CameraImage {
    CameraImage {
        camera: 0,
        stamp_ns: nanoseconds(message.header.stamp.sec, message.header.stamp.nanosec),
        arrival_ns,
        frame_id: text(&message.header.frame_id),
        data: ImageData::Compressed {
            format: text(&message.format),
            data: message.data.to_vec(),
        },
    }
}
