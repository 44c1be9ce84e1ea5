//! The subscriptions, drained on the thread that spins the node.

use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use r2r::inf_mllm::msg::Instruction as InstructionMsg;
use r2r::sensor_msgs::msg::{CompressedImage, Image};
use r2r::std_msgs::msg::String as StringMsg;
use r2r::{NativeMsg, QosProfile};

use super::{messages, ros, NodeError};
use crate::stream::{CameraImage, Engine, Instruction};

/// Instructions that the middleware holds until they are drained. It drops the oldest of more than this, unanswered, so it is
/// more than a user sends in the time that one spin takes.
const HELD_INSTRUCTIONS: usize = 1000;

/// How often refused images are mentioned in the log, at most.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(5);

type Messages<T> = Box<dyn Stream<Item = NativeMsg<T>> + Unpin>;

enum Camera {
    Raw(Messages<Image>),
    Compressed(Messages<CompressedImage>),
}

/// What the node listens to. r2r queues a few messages per subscription and then drops the newest, so `drain` is to be
/// called after every spin.
pub struct Inputs {
    camera: Camera,
    instructions: Messages<InstructionMsg>,
    plain_instructions: Messages<StringMsg>,
    last_complaint: Option<Instant>,
}

impl Inputs {
    /// Subscribes; `image_topic` is the full name, after remapping.
    pub fn subscribe(
        node: &mut r2r::Node,
        image_topic: &str,
        compressed: bool,
    ) -> Result<Self, NodeError> {
        let sensor_data = QosProfile::sensor_data();
        let instructions = QosProfile::default().keep_last(HELD_INSTRUCTIONS);
        let what = |topic: &str| format!("subscription to {topic}");
        let camera = if compressed {
            Camera::Compressed(Box::new(ros(
                what(image_topic),
                node.subscribe_native(image_topic, sensor_data),
            )?))
        } else {
            Camera::Raw(Box::new(ros(
                what(image_topic),
                node.subscribe_native(image_topic, sensor_data),
            )?))
        };
        Ok(Self {
            camera,
            instructions: Box::new(ros(
                what("instruction"),
                node.subscribe_native("instruction", instructions.clone()),
            )?),
            plain_instructions: Box::new(ros(
                what("instruction_text"),
                node.subscribe_native("instruction_text", instructions),
            )?),
            last_complaint: None,
        })
    }

    /// Hands everything that has arrived to the engine, without waiting.
    pub fn drain(&mut self, engine: &Engine) {
        while let Some(image) = self.camera.next_image() {
            if let Err(error) = engine.offer_frame(image) {
                self.complain(&error.to_string());
            }
        }
        while let Some(message) = ready(&mut self.instructions) {
            hand_over(engine, messages::instruction(&message));
        }
        while let Some(message) = ready(&mut self.plain_instructions) {
            hand_over(engine, messages::plain_instruction(&message));
        }
    }

    fn complain(&mut self, error: &str) {
        if self
            .last_complaint
            .is_none_or(|last| last.elapsed() >= COMPLAINT_PERIOD)
        {
            tracing::warn!("image refused: {error}");
            self.last_complaint = Some(Instant::now());
        }
    }
}

fn hand_over(engine: &Engine, (instruction, problem): (Instruction, Option<String>)) {
    match problem {
        None => engine.instruct(instruction),
        Some(problem) => engine.refuse(instruction, problem),
    }
}

impl Camera {
    fn next_image(&mut self) -> Option<CameraImage> {
        match self {
            Self::Raw(messages) => ready(messages).map(|message| messages::raw_image(&message)),
            Self::Compressed(messages) => {
                ready(messages).map(|message| messages::compressed_image(&message))
            }
        }
    }
}

/// The next message that has already arrived.
fn ready<T: r2r::WrappedTypesupport>(messages: &mut Messages<T>) -> Option<NativeMsg<T>> {
    messages.next().now_or_never().flatten()
}
