//! The services, whose requests are taken over on the thread that spins the node.
//!
//! r2r (0.9.7, `Node::create_service`) queues eleven requests of a service and then drops the newest, unanswered. One comes with a
//! spin, so a queue that is emptied after every spin never fills; those that wait longer do so in a queue without a bound.

use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::{FutureExt, Stream, StreamExt};
use r2r::{QosProfile, ServiceRequest, WrappedServiceTypeSupport};

use super::{ros, NodeError};

/// Requests that the middleware holds until they are read, and responses until they are sent. It drops the oldest of more than this,
/// unanswered, so it is more than come in the time that one spin takes.
const HELD_REQUESTS: usize = 1000;

/// The node's services. [`Self::drain`] is to be called after every spin.
#[derive(Default)]
pub struct Services {
    queues: Vec<Box<dyn Queue>>,
}

impl Services {
    /// Serves `name`; the requests come in their order, until the node ends.
    pub fn serve<T: WrappedServiceTypeSupport + 'static>(
        &mut self,
        node: &mut r2r::Node,
        name: &str,
    ) -> Result<UnboundedReceiver<ServiceRequest<T>>, NodeError> {
        let qos = QosProfile::services_default().keep_last(HELD_REQUESTS);
        let requests = ros(format!("service {name}"), node.create_service(name, qos))?;
        let (taken, receiver) = mpsc::unbounded();
        self.queues.push(Box::new(Requests { requests, taken }));
        Ok(receiver)
    }

    /// Takes over everything that has come, without waiting.
    pub fn drain(&mut self) {
        for queue in &mut self.queues {
            queue.drain();
        }
    }
}

trait Queue {
    fn drain(&mut self);
}

/// From r2r's queue into one without a bound.
struct Requests<S, T: WrappedServiceTypeSupport> {
    requests: S,
    taken: mpsc::UnboundedSender<ServiceRequest<T>>,
}

impl<S, T> Queue for Requests<S, T>
where
    S: Stream<Item = ServiceRequest<T>> + Unpin,
    T: WrappedServiceTypeSupport,
{
    fn drain(&mut self) {
        while let Some(request) = self.requests.next().now_or_never().flatten() {
            // Nobody is there to answer it only when the node ends.
            let _ = self.taken.unbounded_send(request);
        }
    }
}
