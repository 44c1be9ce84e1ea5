//! The action `~/ask`: an instruction as a goal.
//!
//! r2r's own server of actions (0.9.7, `action_servers.rs`) never lets go of a goal: the loop that expires them does not run, and the map
//! of goals has no removal. So the action is put together here of what it is on the wire: three services and two topics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use r2r::action_msgs::msg::{GoalInfo, GoalStatus, GoalStatusArray};
use r2r::action_msgs::srv::CancelGoal;
use r2r::inf_mllm::action::Ask as Action;
use r2r::inf_mllm::msg::{Instruction as InstructionMsg, Reasoning, ReasoningDelta};
use r2r::unique_identifier_msgs::msg::UUID;
use r2r::{NativeMsg, Publisher, QosProfile, ServiceRequest};
use tokio::runtime::Handle;

use super::messages::{self, time};
use super::outputs::{advertise, report, RosTime};
use super::services::Services;
use super::NodeError;
use crate::parameters::RosConfig;
use crate::stream::engine::Which;
use crate::stream::goals::{Asked, GoalId, Goals, Keep, NotCanceled, Status};
use crate::stream::{Engine, FinishReason, State};

/// Time between two looks at what has been kept for long enough.
const EXPIRY: Duration = Duration::from_secs(1);

type ResultRequest = ServiceRequest<Action::GetResult::Service>;

/// The action's server.
#[derive(Clone)]
pub struct Ask(Arc<Mutex<Server>>);

struct Server {
    goals: Goals<ResultRequest, Reasoning>,
    feedback: Publisher<Action::FeedbackMessage>,
    status: Publisher<GoalStatusArray>,
    /// How the goals stand has changed since it was published last.
    unsaid: bool,
    clock: RosTime,
}

impl Ask {
    pub fn advertise(node: &mut r2r::Node, config: &RosConfig) -> Result<Self, NodeError> {
        let keep = Keep {
            time: Duration::from_secs_f64(config.goal_result_timeout),
            count: config.goal_results_limit,
        };
        // No piece of a long answer may be lost to a slow reader; who comes late learns how the goals stand.
        let feedback = QosProfile::default().keep_last(1000);
        let status = QosProfile::default().keep_last(1).transient_local();
        Ok(Self(Arc::new(Mutex::new(Server {
            goals: Goals::new(keep),
            feedback: advertise(node, "~/ask/_action/feedback", feedback)?,
            status: advertise(node, "~/ask/_action/status", status)?,
            unsaid: false,
            clock: RosTime::of(node),
        }))))
    }

    /// Takes goals for the engine from now on.
    pub fn serve(
        &self,
        node: &mut r2r::Node,
        services: &mut Services,
        runtime: &Handle,
        engine: &Arc<Engine>,
    ) -> Result<(), NodeError> {
        let (ask, asked) = (self.clone(), engine.clone());
        let name = "~/ask/_action/send_goal";
        services.take::<Action::SendGoal::Service>(node, name, move |mut request| {
            let message = std::mem::take(&mut request.message);
            let response = |accepted, stamp_ns| Action::SendGoal::Response {
                accepted,
                stamp: time(stamp_ns),
            };
            let id = goal_id(&message.goal_id);
            let (ticket, now_ns) = ask.lock().accept(id, asked.state() != State::Finalized);
            respond(request, response(ticket.is_some(), now_ns));
            if let Some(ticket) = ticket {
                instruct(&asked, id, ticket, message.goal, now_ns);
            }
        })?;
        let (ask, asked) = (self.clone(), engine.clone());
        let name = "~/ask/_action/cancel_goal";
        services.take::<CancelGoal::Service>(node, name, move |request| {
            let GoalInfo { goal_id: id, stamp } = &request.message.goal_info;
            let until_ns = messages::nanoseconds(stamp.sec, stamp.nanosec);
            let (response, tickets) = ask.lock().cancel(goal_id(id), until_ns);
            respond(request, response);
            for ticket in tickets {
                asked.cancel(Which::Ticket(ticket));
            }
        })?;
        let ask = self.clone();
        let name = "~/ask/_action/get_result";
        services.take::<Action::GetResult::Service>(node, name, move |request| {
            let id = goal_id(&request.message.goal_id);
            let asked = ask.lock().goals.ask(&id, request);
            match asked {
                Asked::Waits => {}
                Asked::Ended(request, status, reasoning) => {
                    respond(request, result(code(status), reasoning));
                }
                Asked::Unknown(request) => {
                    let unknown = GoalStatus::STATUS_UNKNOWN as i8;
                    respond(request, result(unknown, Reasoning::default()));
                }
            }
        })?;
        let ask = self.clone();
        runtime.spawn(async move {
            let mut looks = tokio::time::interval(EXPIRY);
            loop {
                looks.tick().await;
                ask.lock().goals.expire(Instant::now());
            }
        });
        Ok(())
    }

    /// Tells the goal of this ticket of a piece of its answer, if there is one.
    pub fn delta(&self, ticket: u64, delta: &ReasoningDelta) {
        let mut server = self.lock();
        let Some(id) = server.goals.of_ticket(ticket) else {
            return;
        };
        server.unsaid |= server.goals.begins(&id);
        let message = Action::FeedbackMessage {
            goal_id: uuid(id),
            feedback: Action::Feedback {
                delta: delta.clone(),
            },
        };
        report("~/ask feedback", server.feedback.publish(&message));
    }

    /// Ends the goal of this ticket, if there is one, with its answer.
    pub fn answer(&self, ticket: u64, finish: FinishReason, reasoning: &Reasoning) {
        let status = match finish {
            FinishReason::Stop | FinishReason::Length | FinishReason::TimeLimit => {
                Status::Succeeded
            }
            FinishReason::Cancelled => Status::Canceled,
            FinishReason::Preempted | FinishReason::Error => Status::Aborted,
        };
        let mut server = self.lock();
        let Some(id) = server.goals.of_ticket(ticket) else {
            return;
        };
        let waiting = server
            .goals
            .end(&id, status, reasoning.clone(), Instant::now());
        server.unsaid = true;
        drop(server);
        for request in waiting {
            respond(request, result(code(status), reasoning.clone()));
        }
    }

    /// Publishes how the goals stand, if that has changed with what was answered: all of them in one message, so once for many answers.
    pub fn settle(&self) {
        let mut server = self.lock();
        if server.unsaid {
            server.publish_status();
        }
    }

    /// A thread that panicked while it published left nothing half-done behind.
    fn lock(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// The ticket of a new goal, if it is accepted, and the time.
    fn accept(&mut self, id: GoalId, running: bool) -> (Option<u64>, i64) {
        let now_ns = self.clock.now_ns();
        if !running {
            tracing::warn!("goal {} is refused: the node is finalized", text(id));
            return (None, now_ns);
        }
        let ticket = self.goals.accept(id, now_ns);
        match ticket {
            Some(_) => self.publish_status(),
            None => tracing::warn!("goal {} is refused: there is one of this id", text(id)),
        }
        (ticket, now_ns)
    }

    /// What is answered to a request to cancel, and the tickets of what is to be cancelled.
    fn cancel(&mut self, id: GoalId, until_ns: i64) -> (CancelGoal::Response, Vec<u64>) {
        let canceling = self.goals.cancel(id, until_ns);
        let return_code = match &canceling {
            Ok(goals) if goals.is_empty() => CancelGoal::Response::ERROR_REJECTED as i8,
            Ok(_) => CancelGoal::Response::ERROR_NONE as i8,
            Err(NotCanceled::Unknown) => CancelGoal::Response::ERROR_UNKNOWN_GOAL_ID as i8,
            Err(NotCanceled::Ended) => CancelGoal::Response::ERROR_GOAL_TERMINATED as i8,
        };
        let goals = canceling.unwrap_or_default();
        if !goals.is_empty() {
            self.publish_status();
        }
        let response = CancelGoal::Response {
            return_code,
            goals_canceling: goals
                .iter()
                .map(|goal| info(goal.id, goal.accepted_ns))
                .collect(),
        };
        (response, goals.iter().map(|goal| goal.ticket).collect())
    }

    fn publish_status(&mut self) {
        self.unsaid = false;
        let statuses = self.goals.statuses();
        let message = GoalStatusArray {
            status_list: statuses
                .map(|(id, accepted_ns, status)| GoalStatus {
                    goal_info: info(id, accepted_ns),
                    status: code(status),
                })
                .collect(),
        };
        report("~/ask status", self.status.publish(&message));
    }
}

/// Puts the instruction of an accepted goal to the engine. What is wrong with it is in its answer, as with any instruction.
fn instruct(engine: &Engine, id: GoalId, ticket: u64, goal: Action::Goal, now_ns: i64) {
    let message = NativeMsg::<InstructionMsg>::from(&goal.instruction);
    let (mut instruction, problem) = messages::instruction(&message, now_ns);
    instruction.ticket = ticket;
    if instruction.id.is_empty() {
        instruction.id = text(id);
    }
    let watch = instruction.watch.take();
    let problem = problem.or_else(|| {
        watch.map(|_| {
            "instruction mode is 1 (watch) in a goal, expected 0 (ask): watches are given on the topic instruction"
                .to_string()
        })
    });
    match problem {
        None => engine.instruct(instruction),
        Some(problem) => engine.refuse(instruction, problem),
    }
}

/// As messages say how a goal stands.
fn code(status: Status) -> i8 {
    match status {
        Status::Accepted => GoalStatus::STATUS_ACCEPTED as i8,
        Status::Executing => GoalStatus::STATUS_EXECUTING as i8,
        Status::Canceling => GoalStatus::STATUS_CANCELING as i8,
        Status::Succeeded => GoalStatus::STATUS_SUCCEEDED as i8,
        Status::Canceled => GoalStatus::STATUS_CANCELED as i8,
        Status::Aborted => GoalStatus::STATUS_ABORTED as i8,
    }
}

fn result(status: i8, reasoning: Reasoning) -> Action::GetResult::Response {
    Action::GetResult::Response {
        status,
        result: Action::Result { reasoning },
    }
}

fn respond<T>(request: ServiceRequest<T>, response: T::Response)
where
    T: r2r::WrappedServiceTypeSupport + 'static,
{
    if let Err(error) = request.respond(response) {
        tracing::error!("~/ask could not be answered: {error}");
    }
}

fn goal_id(message: &UUID) -> GoalId {
    message.uuid.as_slice().try_into().unwrap_or_default()
}

fn uuid(id: GoalId) -> UUID {
    UUID { uuid: id.to_vec() }
}

fn info(id: GoalId, accepted_ns: i64) -> GoalInfo {
    GoalInfo {
        goal_id: uuid(id),
        stamp: time(accepted_ns),
    }
}

/// As in 01234567-89ab-cdef-0123-456789abcdef.
fn text(id: GoalId) -> String {
    let digits = id.map(|byte| format!("{byte:02x}")).concat();
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| &digits[group]).join("-")
}
