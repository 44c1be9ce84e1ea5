//! The life cycle of a node: what it may be, and what leads from one to another.
//!
//! States, transitions, numbers and labels are those of ROS 2's managed nodes (lifecycle_msgs; <https://design.ros2.org/articles/node_lifecycle.html>).
//! Of a transition that is asked for, the way leads over a state in which it is carried out, and from there by how that went.

use std::fmt;

/// How a node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// No model is loaded, and no memory held.
    #[default]
    Unconfigured,
    /// Model and memory are there; nothing is taken in.
    Inactive,
    Active,
    /// Model and memory are gone for good.
    Finalized,
    Configuring,
    CleaningUp,
    ShuttingDown,
    Activating,
    Deactivating,
    ErrorProcessing,
}

impl State {
    /// In the order in which tools list them.
    pub const ALL: [Self; 10] = [
        Self::Unconfigured,
        Self::Inactive,
        Self::Active,
        Self::Finalized,
        Self::Configuring,
        Self::CleaningUp,
        Self::ShuttingDown,
        Self::Activating,
        Self::Deactivating,
        Self::ErrorProcessing,
    ];

    /// Its number in lifecycle_msgs.
    pub fn id(self) -> u8 {
        match self {
            Self::Unconfigured => 1,
            Self::Inactive => 2,
            Self::Active => 3,
            Self::Finalized => 4,
            Self::Configuring => 10,
            Self::CleaningUp => 11,
            Self::ShuttingDown => 12,
            Self::Activating => 13,
            Self::Deactivating => 14,
            Self::ErrorProcessing => 15,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Unconfigured => "unconfigured",
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Finalized => "finalized",
            Self::Configuring => "configuring",
            Self::CleaningUp => "cleaningup",
            Self::ShuttingDown => "shuttingdown",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::ErrorProcessing => "errorprocessing",
        }
    }

    /// The transitions that lead away from it.
    pub fn transitions(self) -> impl Iterator<Item = &'static Transition> {
        TRANSITIONS.iter().filter(move |one| one.from == self)
    }

    /// Why nothing is taken in, and what would change that; none in the state in which it is.
    pub fn objection(self) -> Option<&'static str> {
        match self {
            Self::Active => None,
            Self::Inactive => Some(
                "the node is paused (inactive), expected active: ~/change_state with activate, or ~/pause with false, lets it go on",
            ),
            Self::Unconfigured => Some(
                "the node is unconfigured: no model is loaded, expected active: ~/change_state with configure, then activate",
            ),
            Self::Configuring => Some(
                "the node is configuring: the model is being loaded, expected active",
            ),
            Self::Activating => Some("the node is activating, expected active"),
            Self::Deactivating => Some("the node is deactivating, expected active"),
            Self::CleaningUp => Some(
                "the node is cleaningup: model and memory are being let go, expected active",
            ),
            Self::ShuttingDown | Self::ErrorProcessing | Self::Finalized => {
                Some("the node is finalized: it takes nothing any more, expected active; only a new start helps")
            }
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A way from one state to another.
#[derive(Debug, PartialEq, Eq)]
pub struct Transition {
    /// Its number in lifecycle_msgs.
    pub id: u8,
    pub label: &'static str,
    pub from: State,
    pub to: State,
}

impl Transition {
    /// Whether it is to be asked for; the others follow from how one of these went.
    fn can_be_asked_for(&self) -> bool {
        self.id < FIRST_OUTCOME
    }
}

/// Numbers from here on are those of outcomes.
const FIRST_OUTCOME: u8 = 10;

/// How a transition that was asked for went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// All is as before.
    Failure,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Success => SUCCESS,
            Self::Failure => FAILURE,
        }
    }
}

const SUCCESS: &str = "transition_success";
const FAILURE: &str = "transition_failure";
const ERROR: &str = "transition_error";

const fn way(id: u8, label: &'static str, from: State, to: State) -> Transition {
    Transition {
        id,
        label,
        from,
        to,
    }
}

/// All of them, in the order in which tools list them.
pub const TRANSITIONS: [Transition; 25] = {
    use State::*;
    [
        way(1, "configure", Unconfigured, Configuring),
        way(10, SUCCESS, Configuring, Inactive),
        way(11, FAILURE, Configuring, Unconfigured),
        way(12, ERROR, Configuring, ErrorProcessing),
        way(2, "cleanup", Inactive, CleaningUp),
        way(20, SUCCESS, CleaningUp, Unconfigured),
        way(21, FAILURE, CleaningUp, Inactive),
        way(22, ERROR, CleaningUp, ErrorProcessing),
        way(3, "activate", Inactive, Activating),
        way(30, SUCCESS, Activating, Active),
        way(31, FAILURE, Activating, Inactive),
        way(32, ERROR, Activating, ErrorProcessing),
        way(4, "deactivate", Active, Deactivating),
        way(40, SUCCESS, Deactivating, Inactive),
        way(41, FAILURE, Deactivating, Active),
        way(42, ERROR, Deactivating, ErrorProcessing),
        way(5, "shutdown", Unconfigured, ShuttingDown),
        way(6, "shutdown", Inactive, ShuttingDown),
        way(7, "shutdown", Active, ShuttingDown),
        way(50, SUCCESS, ShuttingDown, Finalized),
        way(51, FAILURE, ShuttingDown, Finalized),
        way(52, ERROR, ShuttingDown, ErrorProcessing),
        way(60, SUCCESS, ErrorProcessing, Unconfigured),
        way(61, FAILURE, ErrorProcessing, Finalized),
        way(62, ERROR, ErrorProcessing, Finalized),
    ]
};

/// A transition as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    Id(u8),
    Label(&'a str),
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "transition {id}"),
            Self::Label(label) => write!(f, "transition {label:?}"),
        }
    }
}

/// A transition that the state has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{asked} is none of {state}, which has {known}")]
pub struct NoSuchTransition {
    asked: String,
    state: State,
    /// Those that it has.
    known: String,
}

/// Where in its life a node is.
#[derive(Debug, Default)]
pub struct Lifecycle {
    state: State,
}

impl Lifecycle {
    pub fn state(&self) -> State {
        self.state
    }

    /// Begins a transition that the state has; any other is refused, and so is every one while one is under way.
    pub fn begin(&mut self, asked: Asked<'_>) -> Result<&'static Transition, NoSuchTransition> {
        let of_state = || {
            let all = self.state.transitions();
            all.filter(|one| one.can_be_asked_for())
        };
        let is_meant = |one: &&Transition| match asked {
            Asked::Id(id) => one.id == id,
            Asked::Label(label) => one.label == label,
        };
        let begun = of_state().find(is_meant).ok_or_else(|| {
            let known = of_state().map(|one| format!("{} ({})", one.label, one.id));
            let known = known.collect::<Vec<_>>().join(", ");
            NoSuchTransition {
                asked: asked.to_string(),
                state: self.state,
                known: if known.is_empty() {
                    "none".to_string()
                } else {
                    known
                },
            }
        })?;
        self.state = begun.to;
        Ok(begun)
    }

    /// Ends the transition that is under way; none if none is any more, since [`Self::end_work`] came in between.
    pub fn end(&mut self, outcome: Outcome) -> Option<&'static Transition> {
        let mut of_state = self.state.transitions();
        let ended = of_state.find(|one| one.label == outcome.label())?;
        self.state = ended.to;
        Some(ended)
    }

    /// From whatever state to the last one, as when nothing can be done any more.
    pub fn end_work(&mut self) {
        self.state = State::Finalized;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that has been asked for these, each of which went well.
    fn after(asked: &[&str]) -> Lifecycle {
        let mut lifecycle = Lifecycle::default();
        for label in asked {
            lifecycle.begin(Asked::Label(label)).unwrap();
            lifecycle.end(Outcome::Success).unwrap();
        }
        lifecycle
    }

    #[test]
    fn a_node_goes_round_and_ends() {
        let all = ["configure", "activate", "deactivate", "cleanup"];
        let states = [
            State::Unconfigured,
            State::Inactive,
            State::Active,
            State::Inactive,
            State::Unconfigured,
        ];
        for (count, state) in states.into_iter().enumerate() {
            assert_eq!(after(&all[..count]).state(), state);
            let mut ended = after(&all[..count]);
            let begun = ended.begin(Asked::Label("shutdown")).unwrap();
            assert_eq!((begun.from, begun.to), (state, State::ShuttingDown));
            assert_eq!(ended.end(Outcome::Success).unwrap().to, State::Finalized);
            assert!(State::Finalized.transitions().next().is_none());
        }
    }

    #[test]
    fn what_failed_leaves_the_state_of_before() {
        let cases = [
            (&[][..], "configure"),
            (&["configure"][..], "activate"),
            (&["configure"][..], "cleanup"),
            (&["configure", "activate"][..], "deactivate"),
        ];
        for (before, label) in cases {
            let mut lifecycle = after(before);
            let from = lifecycle.state();
            let begun = lifecycle.begin(Asked::Label(label)).unwrap();
            assert_eq!(lifecycle.end(Outcome::Failure).unwrap().to, from);
            assert_eq!((begun.from, lifecycle.state()), (from, from));
            // And it can be tried again.
            lifecycle.begin(Asked::Id(begun.id)).unwrap();
        }
    }

    #[test]
    fn only_what_the_state_has_is_begun_and_nothing_while_one_is_under_way() {
        for state in State::ALL {
            let may_be_asked = [State::Unconfigured, State::Inactive, State::Active];
            for id in 0..=u8::MAX {
                let mut lifecycle = Lifecycle { state };
                let known = state.transitions().find(|one| one.id == id);
                let may = may_be_asked.contains(&state) && known.is_some();
                let begun = lifecycle.begin(Asked::Id(id));
                assert_eq!(begun.is_ok(), may, "{id} in {state}");
                assert_eq!(lifecycle.state() == state, !may);
            }
            for label in ["", "transition_success", "Configure", "destroy"] {
                let refused = Lifecycle { state }.begin(Asked::Label(label));
                let told = refused.unwrap_err().to_string();
                assert!(
                    told.contains(&format!("{label:?} is none of {state}")),
                    "{told}"
                );
            }
        }
    }

    #[test]
    fn a_transition_that_was_overtaken_by_the_end_does_not_end() {
        let mut lifecycle = Lifecycle::default();
        lifecycle.begin(Asked::Label("configure")).unwrap();
        lifecycle.end_work();
        assert_eq!(lifecycle.end(Outcome::Success), None);
        assert_eq!(lifecycle.state(), State::Finalized);
    }

    #[test]
    fn numbers_are_unique_and_every_state_is_reached() {
        for (i, one) in TRANSITIONS.iter().enumerate() {
            assert!(TRANSITIONS[..i].iter().all(|other| other.id != one.id));
        }
        for state in State::ALL {
            assert!(TRANSITIONS.iter().any(|one| one.to == state), "{state}");
        }
    }
}
