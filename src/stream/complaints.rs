//! What to say in the log of things that can go wrong a thousand times per second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two complaints about the same.
const PERIOD: Duration = Duration::from_secs(5);

/// When each kind of complaint was made last, and how many have been left out since.
#[derive(Debug, Default)]
pub struct Complaints(BTreeMap<&'static str, (Instant, u64)>);

impl Complaints {
    /// Whether to complain now; if so, with what to add to the complaint: how many of its kind were left out.
    pub fn due(&mut self, kind: &'static str, now: Instant) -> Option<String> {
        match self.0.get_mut(kind) {
            Some((last, left_out)) if now.saturating_duration_since(*last) < PERIOD => {
                *left_out += 1;
                None
            }
            entry => {
                let left_out = entry.map_or(0, |(_, left_out)| *left_out);
                self.0.insert(kind, (now, 0));
                Some(match left_out {
                    0 => String::new(),
                    more => format!(" ({more} more like this since the last such message)"),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_per_period_and_the_rest_is_counted() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let said: Vec<_> = (0..1000)
            .filter_map(|i| complaints.due("size", start + Duration::from_millis(i * 10)))
            .collect();
        assert_eq!(
            said,
            ["", " (499 more like this since the last such message)"]
        );
        assert_eq!(complaints.due("step", start), Some(String::new()));
    }
}
