//! The topics that a bag has, and the one whose images are taken.

use std::collections::BTreeMap;

use super::message::{Kind, COMPRESSED, RAW};
use super::{CameraImage, Entry, Recorded};

/// Messages of a topic that are looked at to see whether its images can be used: the first may be damaged.
const LOOKED_AT: usize = 5;

/// A topic of one file.
#[derive(Debug)]
pub struct Topic {
    pub name: String,
    /// As in `sensor_msgs/msg/Image`.
    pub message_type: String,
    /// How messages are serialised: `cdr`.
    pub serialization: String,
    /// Its messages, if they are images.
    pub messages: Vec<Recorded>,
}

/// A topic of the whole bag.
struct Known {
    message_type: String,
    serialization: String,
    /// File by file.
    entries: Vec<Vec<Entry>>,
}

/// All topics by their names.
#[derive(Default)]
pub struct TopicIndex(BTreeMap<String, Known>);

/// The topic that was taken.
pub struct Chosen {
    pub name: String,
    pub kind: Kind,
    /// File by file.
    pub entries: Vec<Vec<Entry>>,
}

impl Known {
    fn count(&self) -> usize {
        self.entries.iter().map(Vec::len).sum()
    }

    fn kind(&self) -> Result<Kind, String> {
        let kind = Kind::of(&self.message_type).ok_or_else(|| {
            format!(
                "type is {}, expected {RAW} or {COMPRESSED}",
                self.message_type
            )
        })?;
        match self.serialization.as_str() {
            "cdr" | "" => Ok(kind),
            other => Err(format!("messages are serialised as {other}, expected cdr")),
        }
    }

    fn first(&self) -> Option<i64> {
        let entries = self.entries.iter().flatten();
        entries.map(|entry| entry.recorded_ns).min()
    }
}

impl TopicIndex {
    /// Adds the topics of a file.
    pub fn add(&mut self, file: u32, topics: Vec<Topic>) {
        for topic in topics {
            let known = self.0.entry(topic.name).or_insert_with(|| Known {
                message_type: topic.message_type.clone(),
                serialization: topic.serialization,
                entries: Vec::new(),
            });
            if known.message_type != topic.message_type {
                tracing::warn!(
                    "bag file {file} has messages of type {} where others have {}: left out",
                    topic.message_type,
                    known.message_type
                );
                continue;
            }
            let entry = |(recorded_ns, place)| Entry {
                recorded_ns,
                place,
                file,
                camera: 0,
            };
            known
                .entries
                .push(topic.messages.into_iter().map(entry).collect());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All topics, in words.
    fn list(&self) -> String {
        let topics = self.0.iter().map(|(name, known)| match known.kind() {
            Ok(_) => format!(
                "{name} ({}, {} messages)",
                known.message_type,
                known.count()
            ),
            Err(_) => format!("{name} ({})", known.message_type),
        });
        match topics.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "none".to_string(),
            list => list,
        }
    }
}

/// The topic of that name, which is taken out of the list; without a name the first that has images that can be used, one with colours before one without.
///
/// `image` reads an image of a topic.
pub fn choose(
    topics: &mut TopicIndex,
    name: Option<&str>,
    image: impl Fn(Kind, &Entry) -> Result<CameraImage, String>,
) -> Result<Chosen, String> {
    let name = match name {
        Some(name) => name.to_string(),
        None => best(topics, image)?,
    };
    let all = topics.list();
    let known = topics.0.remove(&name);
    let known = known.ok_or_else(|| format!("no topic {name}, expected one of: {all}"))?;
    let kind = known
        .kind()
        .map_err(|problem| format!("topic {name}: {problem}; the bag's topics: {all}"))?;
    if known.count() == 0 {
        return Err(format!(
            "topic {name} has no message; the bag's topics: {all}"
        ));
    }
    Ok(Chosen {
        name,
        kind,
        entries: known.entries,
    })
}

/// Whether a topic is called as that on which a node shows the frames that an answer rests on.
fn made_by_a_node(topic: &str) -> bool {
    let picture = topic.strip_suffix("/compressed").unwrap_or(topic);
    picture.rsplit('/').next() == Some("evidence_image")
}

fn best(
    topics: &TopicIndex,
    image: impl Fn(Kind, &Entry) -> Result<CameraImage, String>,
) -> Result<String, String> {
    let (mut usable, mut refused) = (Vec::new(), Vec::new());
    for (name, known) in &topics.0 {
        if Kind::of(&known.message_type).is_none() {
            continue;
        }
        let found = known.kind().and_then(|kind| {
            let first = known.entries.iter().flatten().take(LOOKED_AT);
            let mut outcome = Err("no message".to_string());
            for entry in first {
                outcome = image(kind, entry)
                    .and_then(|image| image.is_grey().map_err(|error| error.to_string()));
                if outcome.is_ok() {
                    break;
                }
            }
            outcome
        });
        match found {
            // What a node has made of a camera's images is recorded beside them.
            Ok(is_grey) => usable.push((made_by_a_node(name), is_grey, known.first(), name)),
            Err(reason) => refused.push(format!("{name} ({}): {reason}", known.message_type)),
        }
    }
    usable.sort();
    match usable.as_slice() {
        [] if refused.is_empty() => Err(format!(
            "no topic of type {RAW} or {COMPRESSED}; its topics: {}",
            topics.list()
        )),
        [] => Err(format!(
            "no topic has images that can be used: {}",
            refused.join("; ")
        )),
        [(_, _, _, only)] if refused.is_empty() => Ok(only.to_string()),
        [(_, _, _, first), ..] => {
            tracing::info!("{first} is taken; the bag's topics: {}", topics.list());
            Ok(first.to_string())
        }
    }
}
