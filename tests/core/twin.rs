//! A session that is asked a thousand things which leave no trace, beside a twin that is not.

use std::cell::Cell;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use inf_mllm::cache::{BoundedCache, PolicyKind};
use inf_mllm::stream::engine::{Cancelled, Which};
use inf_mllm::stream::goals::{Goals, Keep, Status};
use inf_mllm::stream::{
    Answer, AnswerDelta, Engine, EngineEvents, Every, FinishReason, GrammarKind, Instruction,
    Session, TextGrammar, Watching,
};

use crate::cache_stream::flat;
use crate::failures::{seen, show};
use crate::recall::{archived, config};
use crate::support::{instruction, picture, PATIENCE};

const ASKED: usize = 1000;
/// Between two frames.
const ROUND: usize = 25;

/// Keys, values, ranks, histories of attention and the queries' ring of every layer, to the bit.
fn contents(cache: &BoundedCache) -> Vec<(Vec<u32>, Vec<Vec<u32>>, usize)> {
    let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
    let layers = cache.step_layers().map(|layer| {
        let stored =
            [layer.keys, layer.values].map(|buffer| flat(&buffer.first(layer.len).unwrap()));
        let mut numbers = stored.concat();
        let budget = cache.plan().budget;
        let history = layer.history.chunks(budget);
        numbers.extend(history.flat_map(|history| &history[..layer.len]));
        let ranks = layer.ranks.iter().map(|ranks| ranks[..layer.len].to_vec());
        (bits(&numbers), ranks.collect(), layer.cursor)
    });
    layers.collect()
}

/// What is asked in turn: a question, choices, answers of a grammar, what is refused, and every so often one that is cut off.
fn ask(session: &mut Session, i: usize) -> FinishReason {
    let text = [
        "What is in view?",
        "Where is it?",
        "Is the way free, or is something in front of it?",
    ][i % 3];
    let mut asked = Instruction {
        ephemeral: true,
        max_new_tokens: 1 + i % 7,
        ..instruction("t", text)
    };
    match i % 5 {
        0 => {}
        1 => asked.choices = ["yes", "yes it is", "no"].map(String::from).to_vec(),
        2 => {
            asked.grammar = Some(TextGrammar {
                kind: GrammarKind::Regex,
                text: "(left|right) [0-9]{1,2}".to_string(),
            });
        }
        3 => asked.choices = (0..1 + i % 9).map(|n| format!("{n} boxes")).collect(),
        _ => {
            asked.ephemeral = false;
            asked.choices = vec!["same".to_string(); 2];
        }
    }
    let left = Cell::new(match i % 4 {
        0 => i % 6,
        _ => usize::MAX,
    });
    let cancelled = || {
        let now = left.get();
        left.set(now.saturating_sub(1));
        now == 0
    };
    session.ask(&asked, &cancelled, &mut |_| ()).finish
}

/// Fails unless a session is what its twin is, to the bit, and goes on as it does.
fn assert_twins(asked: &mut Session, twin: &mut Session, what: &str) {
    let [changed, kept] = [&*asked, &*twin].map(|session| contents(&session.state().cache));
    assert!(changed == kept, "{what}");
    assert_eq!(archived(asked), archived(twin));
    assert_eq!(format!("{:?}", seen(asked)), format!("{:?}", seen(twin)));
    // One that stays, so that the draws behind it are others.
    let staying = instruction("s", "And now?");
    let [said, twins] =
        [asked, twin].map(|session| session.ask(&staying, &|| false, &mut |_| ()).token_ids);
    assert_eq!(said, twins, "{what}");
}

#[test]
fn a_thousand_things_asked_without_a_trace_leave_a_session_its_twin_s() {
    for policy in [
        PolicyKind::InfMllm,
        PolicyKind::InfMllmPlus,
        PolicyKind::H2o,
    ] {
        let mut config = config(policy);
        config.temperature = 2.0;
        let [mut asked, mut twin] = [0; 2].map(|_| Session::new(config.clone()).unwrap());
        let mut finished = Vec::new();
        for i in 0..ASKED / 3 {
            if i % ROUND == 0 {
                for session in [&mut asked, &mut twin] {
                    show(session, (i / ROUND) as i64 * 4, 4);
                }
            }
            finished.push(ask(&mut asked, i));
            if i % ROUND == ROUND - 1 {
                assert_twins(&mut asked, &mut twin, &format!("{policy}, {i}"));
            }
        }
        for finish in [
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Cancelled,
            FinishReason::Error,
        ] {
            let count = finished.iter().filter(|&&other| other == finish).count();
            assert!(count > 10, "{policy}: {count} ended by {}", finish.name());
        }
    }
}

struct Told {
    pieces: Sender<AnswerDelta>,
    answers: Sender<Answer>,
}

impl EngineEvents for Told {
    fn delta(&mut self, delta: AnswerDelta) {
        // The test may have ended; so below.
        let _ = self.pieces.send(delta);
    }

    fn answer(&mut self, answer: Answer) {
        let _ = self.answers.send(answer);
    }
}

/// A session in an engine, for a while.
struct Running {
    engine: Engine,
    pieces: Receiver<AnswerDelta>,
    answers: Receiver<Answer>,
    goals: Goals<(), Answer>,
}

impl Running {
    fn new(session: Session) -> Self {
        let ((piece, pieces), (answer, answers)) = (channel(), channel());
        let told = Told {
            pieces: piece,
            answers: answer,
        };
        let keep = Keep {
            time: PATIENCE,
            count: 100,
        };
        Self {
            engine: Engine::with_session(session, Box::new(told)).unwrap(),
            pieces,
            answers,
            goals: Goals::new(keep),
        }
    }

    fn until(&self, condition: impl Fn(&Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.engine) {
            assert!(Instant::now() < deadline, "{:?}", self.engine.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn show(&self, frame: i64) {
        let used = self.engine.stats().frames_used;
        let colour = [(frame * 40 % 256) as u8, 90, 200];
        self.engine
            .offer_frame(picture((frame + 1) * 100, colour))
            .unwrap();
        self.until(|engine| engine.stats().frames_used > used);
    }

    /// The last answer to the instruction of this id.
    fn answer(&self, id: &str) -> Answer {
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).unwrap();
            if answer.id == id && answer.watch.is_none_or(|count| count.ended) {
                return answer;
            }
        }
    }

    /// A goal that is cancelled while it waits or while it is being answered.
    fn cancelled_goal(&mut self, n: usize, waits: bool) {
        let name = [n as u8 + 1; 16];
        let ticket = self.goals.accept(name, 1).unwrap();
        let goal = Instruction {
            ephemeral: true,
            max_new_tokens: 200,
            ticket,
            ..instruction(&format!("goal {n}"), "Tell me everything.")
        };
        if waits {
            // It waits behind this one.
            self.engine.instruct(Instruction {
                priority: 1,
                max_new_tokens: 20,
                ephemeral: true,
                ..instruction(&format!("before {n}"), "What is in view?")
            });
        }
        self.engine.instruct(goal);
        while !waits && self.pieces.recv_timeout(PATIENCE).unwrap().ticket != ticket {}
        let canceling = self.goals.cancel(name, 0).unwrap();
        assert_eq!(canceling.len(), 1);
        let cancelled = self.engine.cancel(Which::Ticket(canceling[0].ticket));
        let answer = self.answer(&format!("goal {n}"));
        if cancelled != Cancelled::default() {
            assert_eq!(answer.finish, FinishReason::Cancelled);
        }
        self.goals
            .end(&name, Status::Canceled, answer, Instant::now());
    }
}

fn watch(id: &str, every: Every) -> Instruction {
    Instruction {
        max_new_tokens: 5,
        watch: Some(Watching {
            every,
            on_change: false,
            hysteresis: 0.0,
            min_interval: Duration::ZERO,
            survives_reset: false,
        }),
        ..instruction(id, "Is the way free?")
    }
}

#[test]
fn watches_and_cancelled_goals_of_a_running_engine_leave_its_session_its_twin_s() {
    const ROUNDS: usize = 12;
    let mut config = config(PolicyKind::InfMllm);
    config.temperature = 2.0;
    let [mut asked, mut twin] = [0; 2].map(|_| Session::new(config.clone()).unwrap());
    let mut askings = 0;
    for round in 0..ROUNDS {
        let (mut running, plain) = (Running::new(asked), Running::new(twin));
        let often = Every::Period(Duration::from_micros(1));
        let among = Instruction {
            choices: ["yes", "no", "perhaps"].map(String::from).to_vec(),
            ..watch("choices", often)
        };
        let formed = Instruction {
            grammar: Some(TextGrammar {
                kind: GrammarKind::Regex,
                text: "(left|right) [0-9]{1,2}".to_string(),
            }),
            ..watch("grammar", often)
        };
        for watch in [watch("frames", Every::Frames(1)), among, formed] {
            running.engine.instruct(watch);
        }
        for frame in 0..4 {
            for engine in [&running, &plain] {
                engine.show((round * 4 + frame) as i64);
            }
            running.cancelled_goal(frame, frame % 2 == 0);
        }
        running.until(|engine| engine.watches().iter().all(|watch| watch.asked >= 1));
        running.until(|engine| {
            let asked = engine.watches().into_iter().map(|watch| watch.asked);
            asked.sum::<u64>() >= 84
        });
        let standing = running.engine.watches();
        askings += standing.iter().map(|watch| watch.asked).sum::<u64>();
        // Cut off wherever it is.
        running.engine.cancel(Which::Id("choices"));
        assert!(running.answer("choices").watch.unwrap().asked >= 1);
        asked = running.engine.into_session(PATIENCE).unwrap();
        twin = plain.engine.into_session(PATIENCE).unwrap();
        assert_twins(&mut asked, &mut twin, &format!("round {round}"));
    }
    assert!(askings >= 1000, "{askings}");
}
