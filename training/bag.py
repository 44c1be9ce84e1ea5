"""Writes and reads the demo's rosbag2 bags: camera JPEGs and camera info."""

import math
import shutil
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE_TOPIC, INFO_TOPIC = "/camera/image/compressed", "/camera/camera_info"
FRAME_ID = "camera_optical_frame"
EPOCH_NS = 1_750_000_000 * 10**9


def header(stamp_ns: int) -> object:
    """A message header of the camera."""
    time = STORE.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    return STORE.types["std_msgs/msg/Header"](time, FRAME_ID)


def camera_info(stamp_ns: int, size: tuple[int, int], fovy: float) -> object:
    """The pinhole camera of a renderer with the given vertical field of view in degrees."""
    width, height = size
    focal = height / 2 / math.tan(math.radians(fovy) / 2)
    k = np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1])
    p = np.array([focal, 0, width / 2, 0, 0, focal, height / 2, 0, 0, 0, 1, 0])
    roi = STORE.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return STORE.types["sensor_msgs/msg/CameraInfo"](
        header(stamp_ns), height, width, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), p, 0, 0, roi
    )


def write_bag(path: Path, frames: list[tuple[float, bytes, float]], size: tuple[int, int]) -> None:
    """Writes frames of (seconds, JPEG, vertical field of view in degrees) as a new bag; camera info once a second."""
    shutil.rmtree(path, ignore_errors=True)
    image_type, info_type = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/CameraInfo"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        image = writer.add_connection(IMAGE_TOPIC, image_type, typestore=STORE)
        info = writer.add_connection(INFO_TOPIC, info_type, typestore=STORE)
        told = -math.inf
        for seconds, jpeg, fovy in frames:
            stamp = EPOCH_NS + round(seconds * 1000) * 10**6
            if seconds - told >= 1:
                writer.write(info, stamp, STORE.serialize_cdr(camera_info(stamp, size, fovy), info_type))
                told = seconds
            message = STORE.types[image_type](header(stamp), "jpeg", np.frombuffer(jpeg, np.uint8))
            writer.write(image, stamp, STORE.serialize_cdr(message, image_type))


def read_bag(path: Path) -> list[tuple[float, bytes]]:
    """The camera frames of a bag as (seconds since the first frame's stamp, JPEG)."""
    frames = []
    with Reader(path) as reader:
        for connection, _, raw in reader.messages():
            if connection.topic == IMAGE_TOPIC:
                message = STORE.deserialize_cdr(raw, connection.msgtype)
                stamp = message.header.stamp
                frames.append((stamp.sec * 10**9 + stamp.nanosec, message.data.tobytes()))
    return [((stamp - frames[0][0]) / 1e9, jpeg) for stamp, jpeg in frames]
