//! The subscriptions, drained on the thread that spins the node.

use futures::{FutureExt, Stream, StreamExt};
use r2r::inf_mllm::msg::Instruction as InstructionMsg;
use r2r::sensor_msgs::msg::{CompressedImage, Image};
use r2r::std_msgs::msg::String as StringMsg;
use r2r::NativeMsg;

use super::outputs::RosTime;
use super::topics::{Subscription, Topics};
use super::{messages, ros, NodeError};
use crate::parameters::{ImageTransport, RosConfig};
use crate::stream::{CameraImage, Engine, Instruction};

type Messages<T> = Box<dyn Stream<Item = NativeMsg<T>> + Unpin>;

enum Camera {
    Raw(Messages<Image>),
    Compressed(Messages<CompressedImage>),
}

/// What the node listens to. r2r queues a few messages per subscription and then drops the newest, so `drain` is to be
/// called after every spin.
pub struct Inputs {
    /// In the order of the parameter `cameras`.
    cameras: Vec<Camera>,
    instructions: Messages<InstructionMsg>,
    plain_instructions: Messages<StringMsg>,
    clock: RosTime,
}

impl Inputs {
    pub fn subscribe(
        node: &mut r2r::Node,
        topics: &Topics,
        config: &RosConfig,
    ) -> Result<Self, NodeError> {
        let mut cameras = Vec::new();
        for (index, image) in topics.images.iter().enumerate() {
            cameras.push(match config.transport(index)? {
                ImageTransport::Compressed => Camera::Compressed(subscribe(node, image)?),
                ImageTransport::Raw => Camera::Raw(subscribe(node, image)?),
            });
        }
        Ok(Self {
            cameras,
            instructions: subscribe(node, &topics.instruction)?,
            plain_instructions: subscribe(node, &topics.instruction_text)?,
            clock: RosTime::of(node),
        })
    }

    /// Hands everything that has arrived to the engine, without waiting.
    pub fn drain(&mut self, engine: &Engine) {
        for (index, camera) in self.cameras.iter_mut().enumerate() {
            while let Some(image) = camera.next_image(&self.clock) {
                // A refusal is the engine's to count and to log.
                let _ = engine.offer_frame(CameraImage {
                    camera: index,
                    ..image
                });
            }
        }
        while let Some(message) = ready(&mut self.instructions) {
            hand_over(engine, messages::instruction(&message, self.clock.now_ns()));
        }
        while let Some(message) = ready(&mut self.plain_instructions) {
            hand_over(
                engine,
                messages::plain_instruction(&message, self.clock.now_ns()),
            );
        }
    }
}

fn subscribe<T: r2r::WrappedTypesupport + 'static>(
    node: &mut r2r::Node,
    subscription: &Subscription,
) -> Result<Messages<T>, NodeError> {
    let topic = &subscription.topic;
    let messages = node.subscribe_native(topic, subscription.qos());
    Ok(Box::new(ros(format!("subscription to {topic}"), messages)?))
}

fn hand_over(engine: &Engine, (instruction, problem): (Instruction, Option<String>)) {
    match problem {
        None => engine.instruct(instruction),
        Some(problem) => engine.refuse(instruction, problem),
    }
}

impl Camera {
    fn next_image(&mut self, clock: &RosTime) -> Option<CameraImage> {
        match self {
            Self::Raw(messages) => {
                ready(messages).map(|message| messages::raw_image(&message, clock.now_ns()))
            }
            Self::Compressed(messages) => {
                ready(messages).map(|message| messages::compressed_image(&message, clock.now_ns()))
            }
        }
    }
}

/// The next message that has already arrived.
fn ready<T: r2r::WrappedTypesupport>(messages: &mut Messages<T>) -> Option<NativeMsg<T>> {
    messages.next().now_or_never().flatten()
}
