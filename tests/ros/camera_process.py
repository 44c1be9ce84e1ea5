"""A camera as a process of its own: publishes an image ten times per second on /image until it is killed."""

import itertools
import time

import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

RATE = 10.0
WIDTH, HEIGHT = 64, 48


def main() -> None:
    rclpy.init()
    publisher = rclpy.create_node("camera").create_publisher(Image, "image", qos_profile_sensor_data)
    for count in itertools.count():
        now = time.time()
        image = Image(
            height=HEIGHT, width=WIDTH, encoding="mono8", step=WIDTH, data=bytes([count % 256]) * (WIDTH * HEIGHT)
        )
        image.header.stamp.sec, image.header.stamp.nanosec = int(now), int(now % 1 * 1e9)
        publisher.publish(image)
        time.sleep(1 / RATE)


if __name__ == "__main__":
    main()
