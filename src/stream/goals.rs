//! Instructions that are followed as goals: how they stand, who waits for a result, and the results of those that have ended, for as long
//! as they are kept. Who carries requests and results, and in what messages, is not known here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A name that whoever sets the goal gives it; all zero names none.
pub type GoalId = [u8; 16];

/// Goals that have ended of which the list of states still tells.
const TOLD: usize = 16;

/// How a goal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Accepted,
    Executing,
    Canceling,
    Succeeded,
    Canceled,
    Aborted,
}

/// How long results are kept, and how many of them.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub time: Duration,
    pub count: usize,
}

/// A goal that somebody wants cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canceling {
    pub id: GoalId,
    pub accepted_ns: i64,
    pub ticket: u64,
}

/// Why no goal is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCanceled {
    Unknown,
    Ended,
}

/// What becomes of a request for a result.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked<R, T> {
    /// It is there.
    Ended(R, Status, T),
    /// It will be answered when the goal ends.
    Waits,
    /// There is no such goal, or its result is no longer kept.
    Unknown(R),
}

struct Goal<R, T> {
    accepted_ns: i64,
    status: Status,
    /// Requests for the result.
    waiting: Vec<R>,
    result: Option<T>,
}

/// All goals; `R` is a request for a result, `T` a result.
pub struct Goals<R, T> {
    keep: Keep,
    goals: HashMap<GoalId, Goal<R, T>>,
    /// Those that have not ended, in the order in which they were accepted.
    open: Vec<(u64, GoalId)>,
    /// Those that have, and when.
    ended: VecDeque<(Instant, GoalId)>,
    tickets: u64,
}

impl<R, T: Clone> Goals<R, T> {
    pub fn new(keep: Keep) -> Self {
        Self {
            keep,
            goals: HashMap::new(),
            open: Vec::new(),
            ended: VecDeque::new(),
            tickets: 0,
        }
    }

    /// A new goal, and the ticket that its instruction carries; none if there is one of this id.
    pub fn accept(&mut self, id: GoalId, accepted_ns: i64) -> Option<u64> {
        if self.goals.contains_key(&id) {
            return None;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.open.push((ticket, id));
        let goal = Goal {
            accepted_ns,
            status: Status::Accepted,
            waiting: Vec::new(),
            result: None,
        };
        self.goals.insert(id, goal);
        Some(ticket)
    }

    /// The goal of a ticket that has not ended.
    pub fn of_ticket(&self, ticket: u64) -> Option<GoalId> {
        let found = self.open.iter().find(|(other, _)| *other == ticket);
        found.map(|(_, id)| *id)
    }

    /// The instruction of a goal is being answered; whether that is news.
    pub fn begins(&mut self, id: &GoalId) -> bool {
        let goal = self.goals.get_mut(id);
        let goal = goal.filter(|goal| goal.status == Status::Accepted);
        goal.map(|goal| goal.status = Status::Executing).is_some()
    }

    /// A goal has ended. Returns those who wait for the result.
    pub fn end(&mut self, id: &GoalId, status: Status, result: T, now: Instant) -> Vec<R> {
        let Some(goal) = self.goals.get_mut(id) else {
            return Vec::new();
        };
        goal.status = status;
        goal.result = Some(result);
        let waiting = std::mem::take(&mut goal.waiting);
        self.open.retain(|(_, open)| open != id);
        self.ended.push_back((now, *id));
        self.expire(now);
        waiting
    }

    /// Somebody asks for the result of a goal.
    pub fn ask(&mut self, id: &GoalId, request: R) -> Asked<R, T> {
        match self.goals.get_mut(id) {
            None => Asked::Unknown(request),
            Some(goal) => match &goal.result {
                Some(result) => Asked::Ended(request, goal.status, result.clone()),
                None => {
                    goal.waiting.push(request);
                    Asked::Waits
                }
            },
        }
    }

    /// Marks goals as being cancelled: that of the id, and those accepted until the stamp; without either,
    /// all.
    pub fn cancel(&mut self, id: GoalId, until_ns: i64) -> Result<Vec<Canceling>, NotCanceled> {
        let named = id != GoalId::default();
        if named && until_ns == 0 {
            let goal = self.goals.get(&id).ok_or(NotCanceled::Unknown)?;
            if goal.result.is_some() {
                return Err(NotCanceled::Ended);
            }
        }
        let mut canceling = Vec::new();
        for (ticket, open) in &self.open {
            let Some(goal) = self.goals.get_mut(open) else {
                continue;
            };
            let in_time = until_ns != 0 && goal.accepted_ns <= until_ns;
            if in_time || *open == id || (!named && until_ns == 0) {
                goal.status = Status::Canceling;
                canceling.push(Canceling {
                    id: *open,
                    accepted_ns: goal.accepted_ns,
                    ticket: *ticket,
                });
            }
        }
        Ok(canceling)
    }

    /// Lets go of the results that have been kept for long enough, and of the oldest where there are too many.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, id)) = self.ended.front() {
            let old = now.saturating_duration_since(*at) >= self.keep.time;
            if !old && self.ended.len() <= self.keep.count {
                break;
            }
            self.goals.remove(id);
            self.ended.pop_front();
        }
    }

    /// How the goals stand that have not ended, and those that have ended last.
    pub fn statuses(&self) -> impl Iterator<Item = (GoalId, i64, Status)> + '_ {
        let told = self.ended.len().saturating_sub(TOLD);
        let ended = self.ended.iter().skip(told).map(|(_, id)| id);
        let ids = ended.chain(self.open.iter().map(|(_, id)| id));
        ids.filter_map(|id| {
            let goal = self.goals.get(id)?;
            Some((*id, goal.accepted_ns, goal.status))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep {
        time: Duration::from_secs(10),
        count: 3,
    };

    fn id(n: u8) -> GoalId {
        [n; 16]
    }

    fn goals() -> Goals<&'static str, u32> {
        Goals::new(KEEP)
    }

    #[test]
    fn a_result_reaches_those_who_waited_for_it_and_those_who_ask_later() {
        let (mut goals, now) = (goals(), Instant::now());
        let ticket = goals.accept(id(1), 5).unwrap();
        assert_eq!(goals.accept(id(1), 6), None, "it is there already");
        assert_eq!(goals.of_ticket(ticket), Some(id(1)));
        assert_eq!(goals.ask(&id(1), "early"), Asked::Waits);
        assert!(goals.begins(&id(1)) && !goals.begins(&id(1)));
        assert_eq!(goals.end(&id(1), Status::Succeeded, 42, now), ["early"]);
        assert_eq!(goals.of_ticket(ticket), None);
        let late = Asked::Ended("late", Status::Succeeded, 42);
        assert_eq!(goals.ask(&id(1), "late"), late);
        assert_eq!(goals.ask(&id(2), "lost"), Asked::Unknown("lost"));
    }

    #[test]
    fn results_are_let_go_by_time_and_by_number_and_goals_that_run_never_are() {
        let (mut goals, start) = (goals(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for n in 0..6 {
            goals.accept(id(n), 0).unwrap();
        }
        for n in 1..6 {
            goals.end(&id(n), Status::Aborted, n.into(), at(n.into()));
        }
        // Of five results the last three are kept.
        assert_eq!(goals.ask(&id(2), "r"), Asked::Unknown("r"));
        assert!(matches!(goals.ask(&id(3), "r"), Asked::Ended(..)));
        goals.expire(at(14));
        assert_eq!(goals.ask(&id(4), "r"), Asked::Unknown("r"));
        assert!(matches!(goals.ask(&id(5), "r"), Asked::Ended(..)));
        goals.expire(at(1000));
        assert_eq!(goals.ask(&id(0), "r"), Asked::Waits);
        assert_eq!(goals.goals.len(), 1);
    }

    #[test]
    fn goals_are_cancelled_by_id_by_time_and_all_together() {
        let mut goals = goals();
        let tickets = [10, 20, 30, 40].map(|ns| goals.accept(id(ns as u8), ns).unwrap());
        let end = |goals: &mut Goals<_, _>, n| {
            goals.end(&id(n), Status::Canceled, 0, Instant::now());
        };
        let tickets_of = |found: Result<Vec<Canceling>, _>| {
            let found = found.unwrap();
            found.iter().map(|goal| goal.ticket).collect::<Vec<_>>()
        };
        assert_eq!(tickets_of(goals.cancel(id(20), 0)), [tickets[1]]);
        assert_eq!(goals.cancel(id(99), 0), Err(NotCanceled::Unknown));
        end(&mut goals, 20);
        assert_eq!(goals.cancel(id(20), 0), Err(NotCanceled::Ended));
        assert_eq!(tickets_of(goals.cancel(id(0), 10)), [tickets[0]]);
        let both = goals.cancel(id(40), 10);
        assert_eq!(tickets_of(both), [tickets[0], tickets[3]]);
        assert_eq!(tickets_of(goals.cancel(id(0), 0)).len(), 3);
        let canceling = |(_, _, status)| status == Status::Canceling;
        assert_eq!(goals.statuses().filter(|&goal| canceling(goal)).count(), 3);
        for n in [10, 30, 40] {
            end(&mut goals, n);
        }
        assert_eq!(goals.cancel(id(0), 0), Ok(Vec::new()));
    }

    #[test]
    fn the_list_of_states_does_not_grow_with_the_results() {
        let mut goals = Goals::<(), u32>::new(Keep {
            count: 1000,
            ..KEEP
        });
        let now = Instant::now();
        for n in 0..200 {
            goals.accept(id(n), i64::from(n)).unwrap();
            goals.end(&id(n), Status::Aborted, 0, now);
        }
        goals.accept(id(200), 200).unwrap();
        let told = goals.statuses().map(|(_, ns, _)| ns).collect::<Vec<_>>();
        assert_eq!(told, (200 - TOLD as i64..=200).collect::<Vec<_>>());
    }
}
