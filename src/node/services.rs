//! The services, whose requests are taken over on the thread that spins the node and answered in the runtime's threads.
//!
//! r2r (0.9.7, `Node::create_service`) queues eleven requests of a service and then drops the newest, unanswered. One comes with a
//! spin, so a queue that is emptied after every spin never fills; those that wait longer do so in a queue without a bound.

use std::future::Future;

use futures::channel::mpsc;
use futures::{FutureExt, Stream, StreamExt};
use r2r::{QosProfile, ServiceRequest, WrappedServiceTypeSupport};
use tokio::runtime::Handle;

use super::{ros, NodeError};

/// Requests that the middleware holds until they are read, and responses until they are sent. It drops the oldest of more than this,
/// unanswered, so it is more than come in the time that one spin takes.
const HELD_REQUESTS: usize = 1000;

/// The node's services. [`Self::drain`] is to be called after every spin.
pub struct Services {
    runtime: Handle,
    queues: Vec<Box<dyn Queue>>,
}

impl Services {
    /// None yet; they will be answered in `runtime`.
    pub fn new(runtime: &Handle) -> Self {
        Self {
            runtime: runtime.clone(),
            queues: Vec::new(),
        }
    }

    /// Answers the requests of the service `name`, in their order, until the runtime ends.
    pub fn answer<T: WrappedServiceTypeSupport + 'static, F>(
        &mut self,
        node: &mut r2r::Node,
        name: &'static str,
        mut respond: impl FnMut(&T::Request) -> F + Send + 'static,
    ) -> Result<(), NodeError>
    where
        T::Request: Send,
        T::Response: Send,
        F: Future<Output = T::Response> + Send,
    {
        let mut receiver = self.receive::<T>(node, name)?;
        self.runtime.spawn(async move {
            while let Some(request) = receiver.next().await {
                let response = respond(&request.message);
                if let Err(error) = request.respond(response.await) {
                    tracing::error!("{name} could not be answered: {error}");
                }
            }
        });
        Ok(())
    }

    /// Hands over the requests of the service `name`, in their order, to one who answers each when there is something to answer.
    pub fn take<T: WrappedServiceTypeSupport + 'static>(
        &mut self,
        node: &mut r2r::Node,
        name: &'static str,
        mut handle: impl FnMut(ServiceRequest<T>) + Send + 'static,
    ) -> Result<(), NodeError> {
        let mut receiver = self.receive::<T>(node, name)?;
        self.runtime.spawn(async move {
            while let Some(request) = receiver.next().await {
                handle(request);
            }
        });
        Ok(())
    }

    /// The requests of a service.
    fn receive<T: WrappedServiceTypeSupport + 'static>(
        &mut self,
        node: &mut r2r::Node,
        name: &str,
    ) -> Result<mpsc::UnboundedReceiver<ServiceRequest<T>>, NodeError> {
        let qos = QosProfile::services_default().keep_last(HELD_REQUESTS);
        let service = node.create_service::<T>(name, qos);
        let requests = ros(format!("service {name}"), service)?;
        let (taken, receiver) = mpsc::unbounded::<ServiceRequest<T>>();
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
