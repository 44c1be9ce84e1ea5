//! Who publishes on the topics that the node listens to, and a word about those that it cannot hear.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use r2r::qos::ReliabilityPolicy;

use super::topics::{Subscription, Topics};
use super::NodeError;
use crate::parameters::Reliability;

/// Time between two looks. A publisher counts as unheard from the second one, as its node's name is found out after its topic.
const PERIOD: Duration = Duration::from_secs(1);

/// What rmw calls a node of which it does not know the name yet.
const UNKNOWN: &str = "_NODE_NAME_UNKNOWN_";

/// The publishers of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publishers {
    pub count: usize,
    /// Of those that can be heard the full names of their nodes, in order, as far as they are known.
    pub heard: Vec<String>,
    /// Why some of them cannot be heard, a sentence each that names both sides.
    pub unheard: BTreeSet<String>,
}

impl Publishers {
    /// A subscription may ask for no more than is offered; as the node's are volatile, only the reliability can be too much.
    fn of(node: &r2r::Node, subscription: &Subscription) -> Result<Self, NodeError> {
        let what = format!("publishers of {}", subscription.topic);
        let found = super::ros(
            what,
            node.get_publishers_info_by_topic(&subscription.topic, false),
        )?;
        let mut publishers = Self {
            count: found.len(),
            heard: Vec::new(),
            unheard: BTreeSet::new(),
        };
        for other in found {
            let name = format!(
                "{}/{}",
                other.node_namespace.trim_end_matches('/'),
                other.node_name
            );
            let Subscription {
                topic,
                message_type,
                ..
            } = subscription;
            if other.topic_type != *message_type {
                publishers.unheard.insert(format!(
                    "{name} publishes {} on {topic}, expected {message_type}",
                    other.topic_type
                ));
            } else if subscription.reliable
                && matches!(other.qos_profile.reliability, ReliabilityPolicy::BestEffort)
            {
                let parameter = subscription.parameter;
                let [best_effort, reliable] = Reliability::ALL.map(Reliability::name);
                publishers.unheard.insert(format!(
                    "{name} publishes on {topic} with {best_effort}, but {parameter} is {reliable}: set it to {best_effort}, or the publisher to {reliable}"
                ));
            } else if other.node_name != UNKNOWN {
                publishers.heard.push(name);
            }
        }
        publishers.heard.sort();
        Ok(publishers)
    }
}

/// Looks at the publishers every [`PERIOD`] and says once of each why it cannot be heard.
pub struct Watch {
    /// The cameras' first.
    subscriptions: Vec<Subscription>,
    found: Vec<Publishers>,
    cameras: usize,
    told: BTreeSet<String>,
    last: Option<Instant>,
}

impl Watch {
    pub fn new(topics: &Topics) -> Self {
        let instructions = [&topics.instruction, &topics.instruction_text];
        let subscriptions = topics.images.iter().chain(instructions).cloned();
        let subscriptions = subscriptions.collect::<Vec<_>>();
        Self {
            found: vec![Publishers::default(); subscriptions.len()],
            cameras: topics.images.len(),
            subscriptions,
            told: BTreeSet::new(),
            last: None,
        }
    }

    /// Looks, if it is time for it; returns the publishers of each camera's images if so.
    pub fn look(&mut self, node: &r2r::Node) -> Option<&[Publishers]> {
        if self.last.is_some_and(|last| last.elapsed() < PERIOD) {
            return None;
        }
        self.last = Some(Instant::now());
        for (subscription, found) in self.subscriptions.iter().zip(&mut self.found) {
            match Publishers::of(node, subscription) {
                Ok(now) => {
                    for problem in now.unheard.intersection(&found.unheard) {
                        if self.told.insert(problem.clone()) {
                            tracing::warn!("{problem}");
                        }
                    }
                    *found = now;
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
        // One that comes back is worth a word again.
        let found = &self.found;
        self.told
            .retain(|problem| found.iter().any(|now| now.unheard.contains(problem)));
        self.found.get(..self.cameras)
    }
}
