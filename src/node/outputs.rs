//! The publishers, fed by the engine through a channel so that it never waits for the middleware.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use r2r::inf_mllm::msg::{CacheStats, Reasoning, ReasoningDelta};
use r2r::std_msgs::msg::String as StringMsg;
use r2r::{Clock, Publisher, QosProfile};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::ask::Ask;
#[cfg(feature = "vision_msgs")]
use super::detections::DetectionArrays;
use super::evidence_image::EvidenceImage;
use super::lifecycle::Changes;
use super::watches::Watches;
use super::{messages, ros, NodeError};
use crate::stream::complaints::Complaints;
use crate::stream::engine::{Change, Watch};
use crate::stream::{Answer, AnswerDelta, EngineEvents, StreamStats};

/// So many messages in a row are followed by a pause in which their readers can take them: whoever is late takes no more than 512 of all
/// that come to a process in shared memory (`port_queue_capacity` of Fast DDS). What is dropped comes again after up to three seconds, and
/// from a node that ends never.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(10);

/// What the engine says.
pub enum Event {
    Delta(AnswerDelta),
    Answer(Box<Answer>),
    Watch(Box<Watch>),
    Change(Change),
    /// Nothing comes after this.
    End,
}

/// The engine's end of the channel.
pub struct Sender(pub UnboundedSender<Event>);

impl Sender {
    /// The same for changes of the state.
    pub fn of_changes(self) -> Box<dyn Fn(Change) + Send + Sync> {
        Box::new(move |change| {
            let _ = self.0.send(Event::Change(change));
        })
    }
}

impl EngineEvents for Sender {
    fn delta(&mut self, delta: AnswerDelta) {
        // The receiver is gone only when the process is ending.
        let _ = self.0.send(Event::Delta(delta));
    }

    fn answer(&mut self, answer: Answer) {
        let _ = self.0.send(Event::Answer(Box::new(answer)));
    }

    fn watch(&mut self, watch: Watch) {
        let _ = self.0.send(Event::Watch(Box::new(watch)));
    }
}

/// The node's clock: ROS time, which is the simulation's under `use_sim_time`.
#[derive(Clone)]
pub struct RosTime(Arc<Mutex<Clock>>);

impl RosTime {
    pub fn of(node: &r2r::Node) -> Self {
        Self(node.get_ros_clock())
    }

    /// Nanoseconds; 0 if the clock cannot be read.
    pub fn now_ns(&self) -> i64 {
        let now = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_now();
        now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// Publishers of answers.
pub struct Answers {
    reasoning: Publisher<Reasoning>,
    delta: Publisher<ReasoningDelta>,
    text: Publisher<StringMsg>,
    /// Those who asked by an action hear of it there as well.
    ask: Ask,
    changes: Changes,
    watches: Watches,
    evidence: EvidenceImage,
    #[cfg(feature = "vision_msgs")]
    detections: DetectionArrays,
    clock: RosTime,
    complaints: Complaints,
}

impl Answers {
    pub fn advertise(
        node: &mut r2r::Node,
        ask: Ask,
        changes: Changes,
        watches_limit: usize,
    ) -> Result<Self, NodeError> {
        let clock = RosTime::of(node);
        // A long answer has many pieces, a burst of instructions as many answers: none may be lost to a slow reader.
        let qos = QosProfile::default().keep_last(1000);
        // Who looks at the text only asks first and listens then, so the last one waits for them.
        let latched = QosProfile::default().keep_last(1).transient_local();
        Ok(Self {
            reasoning: advertise(node, "~/reasoning", qos.clone())?,
            delta: advertise(node, "~/reasoning_delta", qos)?,
            text: advertise(node, "~/reasoning_text", latched)?,
            ask,
            changes,
            watches: Watches::advertise(node, watches_limit)?,
            evidence: EvidenceImage::advertise(node)?,
            #[cfg(feature = "vision_msgs")]
            detections: DetectionArrays::advertise(node)?,
            clock,
            complaints: Complaints::default(),
        })
    }

    /// Publishes what the engine says until it says no more.
    pub async fn publish_all(mut self, mut events: UnboundedReceiver<Event>) {
        let mut burst = 0;
        while let Some(event) = events.recv().await {
            match event {
                Event::Delta(delta) => {
                    let message = messages::reasoning_delta(&delta);
                    report("~/reasoning_delta", self.delta.publish(&message));
                    self.ask.delta(delta.ticket, &message);
                }
                Event::Answer(answer) => self.publish_answer(&answer),
                Event::Change(change) => self.changes.publish(&change),
                Event::Watch(watch) => self.watches.publish(*watch),
                Event::End => break,
            }
            burst += 1;
            if events.is_empty() {
                self.ask.settle();
                burst = 0;
            } else if burst == BURST {
                tokio::time::sleep(PAUSE).await;
                burst = 0;
            }
        }
        self.ask.settle();
    }

    fn publish_answer(&mut self, answer: &Answer) {
        match &answer.error {
            None => tracing::debug!(id = %answer.id, "answer: {}", answer.text),
            Some(error) => {
                if let Some(more) = self.complaints.due(answer.finish.name(), Instant::now()) {
                    let what = match answer.text.is_empty() {
                        true => "not answered",
                        false => "cut off",
                    };
                    tracing::warn!(id = %answer.id, "{what}: {error}{more}");
                }
            }
        }
        let message = messages::reasoning(answer, self.clock.now_ns());
        report("~/reasoning", self.reasoning.publish(&message));
        report(
            "~/reasoning_text",
            self.text.publish(&messages::reasoning_text(answer)),
        );
        self.ask.answer(answer.ticket, answer.finish, &message);
        self.evidence.publish(answer);
        #[cfg(feature = "vision_msgs")]
        self.detections.publish(answer);
    }
}

/// Publisher of statistics.
pub struct Statistics {
    publisher: Publisher<CacheStats>,
    clock: RosTime,
}

impl Statistics {
    pub fn advertise(node: &mut r2r::Node) -> Result<Self, NodeError> {
        Ok(Self {
            publisher: advertise(node, "~/cache_stats", QosProfile::default())?,
            clock: RosTime::of(node),
        })
    }

    pub fn publish(&self, stats: &StreamStats) {
        let message = messages::cache_stats(stats, self.clock.now_ns());
        report("~/cache_stats", self.publisher.publish(&message));
    }
}

pub(super) fn advertise<T: r2r::WrappedTypesupport + 'static>(
    node: &mut r2r::Node,
    topic: &str,
    qos: QosProfile,
) -> Result<Publisher<T>, NodeError> {
    ros(
        format!("publisher of {topic}"),
        node.create_publisher(topic, qos),
    )
}

pub(super) fn report(topic: &str, result: r2r::Result<()>) {
    if let Err(error) = result {
        tracing::error!("{topic} could not be published: {error}");
    }
}
