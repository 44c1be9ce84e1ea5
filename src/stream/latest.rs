//! The latest state of each of several things in the last messages of one channel, which keeps so many and no more, whoever they are of.

use std::collections::VecDeque;

/// What those messages hold: no state is pushed out before it has been said again.
pub struct Latest<T> {
    depth: usize,
    held: VecDeque<Held<T>>,
}

struct Held<T> {
    name: String,
    state: T,
    /// Messages since.
    age: usize,
}

impl<T: Clone> Latest<T> {
    /// For a channel that keeps `depth` messages: twice as many as there are things, or more.
    pub fn new(depth: usize) -> Self {
        Self {
            depth,
            held: VecDeque::new(),
        }
    }

    /// What is to be said: the new state of the thing of this name, behind those that it would push out. One that has ended is said once.
    pub fn publish(&mut self, name: &str, state: T, ended: bool) -> Vec<T> {
        self.held.retain(|held| held.name != name);
        let mut said = Vec::new();
        // Each is said again once at most: those that were have the youngest messages.
        for _ in 0..self.held.len() {
            let oldest = self.held.front();
            if oldest.is_none_or(|oldest| oldest.age + 2 < self.depth) {
                break;
            }
            if let Some(oldest) = self.held.pop_front() {
                said.push(oldest.state.clone());
                self.say(oldest.name, oldest.state);
            }
        }
        said.push(state.clone());
        self.say(name.to_string(), state);
        if ended {
            self.held.pop_back();
        }
        said
    }

    fn say(&mut self, name: String, state: T) {
        for held in &mut self.held {
            held.age += 1;
        }
        self.held.push_back(Held {
            name,
            state,
            age: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_late_finds_the_last_state_of_each_in_the_last_messages() {
        const THINGS: usize = 5;
        let mut latest = Latest::new(2 * THINGS);
        let mut channel = Vec::new();
        let mut states = [0; THINGS];
        for step in 0..2000usize {
            // Some change all the time, one every hundred steps.
            let thing = match step {
                step if step < THINGS => step,
                step if step % 100 == 0 => 4,
                step => step * step % 4,
            };
            states[thing] = step;
            let said = latest.publish(&thing.to_string(), (thing, step), false);
            assert!(said.len() <= THINGS);
            channel.extend(said);
            if step < THINGS {
                continue;
            }
            let kept = &channel[channel.len().saturating_sub(2 * THINGS)..];
            for (thing, state) in states.iter().enumerate() {
                let last = kept.iter().rev().find(|(other, _)| *other == thing);
                assert_eq!(last, Some(&(thing, *state)), "step {step}");
            }
        }
        assert!(channel.len() < 2 * 2000, "{} messages", channel.len());
    }

    #[test]
    fn what_has_ended_is_not_said_again() {
        let mut latest = Latest::new(4);
        assert_eq!(latest.publish("a", 1, false), [1]);
        assert_eq!(latest.publish("a", 2, true), [2]);
        for n in 10..30 {
            assert_eq!(latest.publish("b", n, false), [n]);
        }
    }
}
