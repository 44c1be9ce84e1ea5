//! Other nodes of this node's name: their topics, services and parameters are the same, and nobody can tell them apart.

use std::time::{Duration, Instant};

use super::logging::ROSOUT;
use super::{ros, NodeError};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts them every [`PERIOD`], and says when there are some and when they are gone.
pub struct Namesakes {
    name: String,
    namespace: String,
    /// Where every node publishes, unless it was told not to, and where every node of this kind does.
    topics: [String; 2],
    /// Those of the last look, and how many have been told of.
    found: usize,
    told: usize,
    last: Option<Instant>,
}

impl Namesakes {
    /// Of a node that publishes on the topic `own`, a full name.
    pub fn new(name: &str, namespace: &str, own: &str) -> Self {
        Self {
            name: name.to_string(),
            namespace: namespace.to_string(),
            topics: [ROSOUT.to_string(), own.to_string()],
            found: 0,
            told: 0,
            last: None,
        }
    }

    /// Looks, if it is time for it; returns how many there are if so.
    pub fn look(&mut self, node: &r2r::Node) -> Option<usize> {
        if self.last.is_some_and(|last| last.elapsed() < PERIOD) {
            return None;
        }
        self.last = Some(Instant::now());
        let now = match self.count(node) {
            Ok(now) => now,
            Err(error) => {
                tracing::error!("{error}");
                return None;
            }
        };
        // One look may come between a node's leaving and another's coming.
        if now == self.found && now != self.told {
            self.say(now);
            self.told = now;
        }
        self.found = now;
        Some(self.told)
    }

    fn count(&self, node: &r2r::Node) -> Result<usize, NodeError> {
        let mut most = 0;
        for topic in &self.topics {
            let publishers = ros(
                format!("publishers of {topic}"),
                node.get_publishers_info_by_topic(topic, false),
            )?;
            let own = publishers.iter().filter(|publisher| {
                publisher.node_name == self.name && publisher.node_namespace == self.namespace
            });
            most = most.max(own.count());
        }
        // This node is one of them.
        Ok(most.saturating_sub(1))
    }

    fn say(&self, now: usize) {
        let full = format!("{}/{}", self.namespace.trim_end_matches('/'), self.name);
        match now {
            0 => tracing::info!("no other node is called {full} any longer"),
            others => tracing::warn!(
                "{}: their topics, services and parameters are mixed up; give each node its own name (-r __node:=NAME) or namespace (-r __ns:=/NAME)",
                warning(others, &full)
            ),
        }
    }
}

/// Says that there are `others` beside the node of this full name.
pub fn warning(others: usize, full: &str) -> String {
    match others {
        1 => format!(
            "another node is called {full}, or one that was killed less than a minute ago was"
        ),
        others => format!("{others} other nodes are called {full}"),
    }
}
