//! The topic `~/watch`, where the last state of every watch waits for those who listen later, and the service `~/watches`.

use std::future::ready;
use std::sync::Arc;

use r2r::inf_mllm::msg::Watch as WatchMsg;
use r2r::inf_mllm::srv::ListWatches;
use r2r::{Publisher, QosProfile};

use super::outputs::{advertise, report, RosTime};
use super::services::Services;
use super::{messages, NodeError};
use crate::stream::engine::Watch;
use crate::stream::latest::Latest;
use crate::stream::Engine;

/// Publisher of the states of watches.
///
/// The middleware keeps the last messages of the topic, of whichever watch they are. So that those of a watch that seldom speaks are not
/// pushed out by one that often does, its state is published again before that happens.
pub struct Watches {
    publisher: Publisher<WatchMsg>,
    clock: RosTime,
    latest: Latest<Watch>,
}

impl Watches {
    /// For so many watches at most.
    pub fn advertise(node: &mut r2r::Node, limit: usize) -> Result<Self, NodeError> {
        // Twice as many as there can be: then one state more is published at most for each that changes.
        let depth = 2 * limit.max(1);
        let latched = QosProfile::default().keep_last(depth).transient_local();
        Ok(Self {
            publisher: advertise(node, "~/watch", latched)?,
            clock: RosTime::of(node),
            latest: Latest::new(depth),
        })
    }

    pub fn publish(&mut self, watch: Watch) {
        let ended = watch.last.as_ref().and_then(|last| last.watch);
        let ended = ended.is_some_and(|count| count.ended);
        let now_ns = self.clock.now_ns();
        let id = watch.instruction.id.clone();
        for watch in self.latest.publish(&id, watch, ended) {
            let message = messages::watch(&watch, now_ns);
            report("~/watch", self.publisher.publish(&message));
        }
    }
}

/// `~/watches` lists the watches that stand.
pub fn serve(
    node: &mut r2r::Node,
    services: &mut Services,
    engine: Arc<Engine>,
) -> Result<(), NodeError> {
    let clock = RosTime::of(node);
    services.answer::<ListWatches::Service, _>(node, "~/watches", move |_| {
        let now_ns = clock.now_ns();
        let watches = engine.watches();
        ready(ListWatches::Response {
            watches: watches
                .iter()
                .map(|watch| messages::watch(watch, now_ns))
                .collect(),
        })
    })
}
