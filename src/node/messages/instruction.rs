//! Instructions as they come, and as they were given.

use std::time::Duration;

use r2r::inf_mllm::msg::Instruction as InstructionMsg;
use r2r::std_msgs::msg::{Header, String as StringMsg};
use r2r::NativeMsg;
use r2r_rcl::rosidl_runtime_c__String as NativeString;

use super::{
    bytes, compressed_image, count, duration, nanoseconds, publishable, strings, text, time,
};
use crate::stream::session::MOST_PICTURES;
use crate::stream::{
    CameraImage, Every, GrammarKind, Instruction, Recall, RecallMode, TextGrammar, Watching,
};

/// An instruction, and what cannot be read in it, if anything. `arrival_ns` is now, ROS clock.
pub fn instruction(
    message: &NativeMsg<InstructionMsg>,
    arrival_ns: i64,
) -> (Instruction, Option<String>) {
    let recall = recall_mode(message.recall);
    let images = sent_images(message, arrival_ns);
    let grammar = text_grammar(message.grammar_kind, text(&message.grammar));
    let mut instruction = Instruction {
        id: text(&message.id),
        max_new_tokens: usize::try_from(message.max_new_tokens).unwrap_or(usize::MAX),
        max_thought_tokens: usize::try_from(message.max_thought_tokens).unwrap_or(usize::MAX),
        ephemeral: message.ephemeral,
        stamp_ns: nanoseconds(message.header.stamp.sec, message.header.stamp.nanosec),
        arrival_ns: Some(arrival_ns),
        recall: Recall {
            mode: recall.clone().unwrap_or_default(),
            span_ns: span(
                nanoseconds(message.recall_from.sec, message.recall_from.nanosec),
                nanoseconds(message.recall_to.sec, message.recall_to.nanosec),
            ),
            stamps_ns: Vec::new(),
        },
        choices: strings(&message.choices).iter().map(text).collect(),
        grammar: grammar.clone().unwrap_or_default(),
        priority: message.priority,
        images: images.clone().unwrap_or_default(),
        ..Instruction::new(text(&message.text))
    };
    let limit = span_of_time(
        "time_limit",
        message.time_limit.sec,
        message.time_limit.nanosec,
    );
    let (watch, watch_problem) = watching(message);
    instruction.watch = watch;
    instruction.time_limit = limit.clone().ok().filter(|limit| !limit.is_zero());
    let choices = strings(&message.choices).iter();
    let problem = not_utf8("text", &message.text)
        .or_else(|| not_utf8("id", &message.id))
        .or_else(|| not_utf8("grammar", &message.grammar))
        .or_else(|| {
            choices
                .zip(0..)
                .find_map(|(choice, i)| not_utf8(&format!("choice {i}"), choice))
        })
        .or(recall.err())
        .or(limit.err())
        .or(grammar.err())
        .or(images.err())
        .or(watch_problem);
    (instruction, problem)
}

/// An instruction that came as plain text (the engine gives it an id; its stamp is the time of its arrival), and what cannot be
/// read in it, if anything.
pub fn plain_instruction(
    message: &NativeMsg<StringMsg>,
    arrival_ns: i64,
) -> (Instruction, Option<String>) {
    let instruction = Instruction {
        stamp_ns: arrival_ns,
        arrival_ns: Some(arrival_ns),
        ..Instruction::new(text(&message.data))
    };
    (instruction, not_utf8("text", &message.data))
}

fn not_utf8(field: &str, native: &NativeString) -> Option<String> {
    let error = std::str::from_utf8(bytes(native)).err()?;
    let at = error.valid_up_to();
    Some(format!(
        "instruction {field} has the byte {:#04x} at {at}, expected UTF-8",
        bytes(native).get(at).copied().unwrap_or_default()
    ))
}

/// The pictures of an instruction, copied once out of the middleware's message; more than any parameter allows are left there.
fn sent_images(
    message: &NativeMsg<InstructionMsg>,
    arrival_ns: i64,
) -> Result<Vec<CameraImage>, String> {
    let (first, count) = (message.images.data, message.images.size);
    if count > MOST_PICTURES {
        return Err(format!(
            "instruction has {count} pictures, expected at most {MOST_PICTURES}"
        ));
    }
    if first.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: the middleware gives `size` images at `data`, which live as long as the message.
    let images = unsafe { std::slice::from_raw_parts(first, count) };
    let images = images.iter();
    Ok(images
        .map(|image| compressed_image(image, arrival_ns))
        .collect())
}

/// When something is recalled; none: as the parameter says.
fn recall_mode(recall: u8) -> Result<Option<RecallMode>, String> {
    const DEFAULT: u8 = InstructionMsg::RECALL_DEFAULT as u8;
    const AUTO: u8 = InstructionMsg::RECALL_AUTO as u8;
    const ALWAYS: u8 = InstructionMsg::RECALL_ALWAYS as u8;
    const NEVER: u8 = InstructionMsg::RECALL_NEVER as u8;
    match recall {
        DEFAULT => Ok(None),
        AUTO => Ok(Some(RecallMode::Auto)),
        ALWAYS => Ok(Some(RecallMode::Always)),
        NEVER => Ok(Some(RecallMode::Never)),
        other => Err(format!(
            "instruction recall is {other}, expected {DEFAULT} (default), {AUTO} (auto), {ALWAYS} (always) or {NEVER} (never)"
        )),
    }
}

/// How an instruction is asked again and again, if it is a watch, and what cannot be read of that. A watch of which something cannot be
/// read is one all the same: its refusal ends it.
fn watching(message: &NativeMsg<InstructionMsg>) -> (Option<Watching>, Option<String>) {
    const ASK: u8 = InstructionMsg::MODE_ASK as u8;
    const WATCH: u8 = InstructionMsg::MODE_WATCH as u8;
    match message.mode {
        ASK => return (None, None),
        WATCH => {}
        other => {
            let problem =
                format!("instruction mode is {other}, expected {ASK} (ask) or {WATCH} (watch)");
            return (None, Some(problem));
        }
    }
    let every = every(message);
    let least = &message.watch_min_interval;
    let min_interval = span_of_time("watch_min_interval", least.sec, least.nanosec);
    let watching = Watching {
        every: every.clone().unwrap_or(Every::Period(Duration::ZERO)),
        on_change: message.watch_on_change,
        hysteresis: message.watch_hysteresis,
        min_interval: min_interval.clone().unwrap_or_default(),
        survives_reset: message.watch_survives_reset,
    };
    (Some(watching), every.err().or(min_interval.err()))
}

/// The distance of one asking of a watch to the next.
fn every(message: &NativeMsg<InstructionMsg>) -> Result<Every, String> {
    let period = &message.watch_period;
    let period = span_of_time("watch_period", period.sec, period.nanosec)?;
    match message.watch_frames {
        0 => Ok(Every::Period(period)),
        frames if period.is_zero() => Ok(Every::Frames(frames.into())),
        frames => Err(format!(
            "instruction watch_period is {period:?} and watch_frames is {frames}, expected one of them to be 0"
        )),
    }
}

/// The grammar of the answer, if it has one.
fn text_grammar(kind: u8, text: String) -> Result<Option<TextGrammar>, String> {
    const NONE: u8 = InstructionMsg::GRAMMAR_NONE as u8;
    const JSON_SCHEMA: u8 = InstructionMsg::GRAMMAR_JSON_SCHEMA as u8;
    const REGEX: u8 = InstructionMsg::GRAMMAR_REGEX as u8;
    const LARK: u8 = InstructionMsg::GRAMMAR_LARK as u8;
    let kind = match kind {
        NONE if text.is_empty() => return Ok(None),
        NONE => {
            return Err(format!(
                "instruction grammar is {} bytes long and grammar_kind is {NONE} (none), expected {JSON_SCHEMA} (json_schema), {REGEX} (regex) or {LARK} (lark)",
                text.len()
            ))
        }
        JSON_SCHEMA => GrammarKind::JsonSchema,
        REGEX => GrammarKind::Regex,
        LARK => GrammarKind::Lark,
        other => {
            return Err(format!(
                "instruction grammar_kind is {other}, expected {NONE} (none), {JSON_SCHEMA} (json_schema), {REGEX} (regex) or {LARK} (lark)"
            ))
        }
    };
    Ok(Some(TextGrammar { kind, text }))
}

/// A span of time, or what is wrong with it.
fn span_of_time(field: &str, sec: i32, nanosec: u32) -> Result<Duration, String> {
    let span_ns = nanoseconds(sec, nanosec);
    u64::try_from(span_ns)
        .map(Duration::from_nanos)
        .map_err(|_| {
            let seconds = span_ns as f64 * 1e-9;
            format!("instruction {field} is {seconds} s, expected 0 or more")
        })
}

/// A range of stamps, nanoseconds, whose ends are open where they are zero; none if both are.
fn span(from_ns: i64, to_ns: i64) -> Option<(i64, i64)> {
    let open = |at, end| if at == 0 { end } else { at };
    let span = (open(from_ns, i64::MIN), open(to_ns, i64::MAX));
    (span != (i64::MIN, i64::MAX)).then_some(span)
}

/// The message of an instruction, as it was given, but for its pictures.
pub(super) fn given(instruction: &Instruction) -> InstructionMsg {
    let (from_ns, to_ns) = instruction.recall.span_ns.unwrap_or((i64::MIN, i64::MAX));
    let open = |at, end| if at == end { 0 } else { at };
    let recall = match instruction.recall.mode {
        None => InstructionMsg::RECALL_DEFAULT as u8,
        Some(RecallMode::Auto) => InstructionMsg::RECALL_AUTO as u8,
        Some(RecallMode::Always) => InstructionMsg::RECALL_ALWAYS as u8,
        Some(RecallMode::Never) => InstructionMsg::RECALL_NEVER as u8,
    };
    let grammar = instruction.grammar.as_ref();
    let mut message = InstructionMsg {
        header: Header {
            stamp: time(instruction.stamp_ns),
            frame_id: String::new(),
        },
        id: publishable(&instruction.id),
        text: publishable(&instruction.text),
        max_new_tokens: count(instruction.max_new_tokens),
        max_thought_tokens: count(instruction.max_thought_tokens),
        ephemeral: instruction.ephemeral,
        priority: instruction.priority,
        time_limit: duration(instruction.time_limit.unwrap_or_default()),
        choices: instruction
            .choices
            .iter()
            .map(|choice| publishable(choice))
            .collect(),
        grammar_kind: match grammar.map(|grammar| grammar.kind) {
            None => InstructionMsg::GRAMMAR_NONE as u8,
            Some(GrammarKind::JsonSchema) => InstructionMsg::GRAMMAR_JSON_SCHEMA as u8,
            Some(GrammarKind::Regex) => InstructionMsg::GRAMMAR_REGEX as u8,
            Some(GrammarKind::Lark) => InstructionMsg::GRAMMAR_LARK as u8,
        },
        grammar: grammar.map_or_else(String::new, |grammar| publishable(&grammar.text)),
        recall,
        recall_from: time(open(from_ns, i64::MIN)),
        recall_to: time(open(to_ns, i64::MAX)),
        ..InstructionMsg::default()
    };
    if let Some(watching) = &instruction.watch {
        message.mode = InstructionMsg::MODE_WATCH as u8;
        match watching.every {
            Every::Period(period) => message.watch_period = duration(period),
            Every::Frames(frames) => {
                message.watch_frames = u32::try_from(frames).unwrap_or(u32::MAX);
            }
        }
        message.watch_on_change = watching.on_change;
        message.watch_hysteresis = watching.hysteresis;
        message.watch_min_interval = duration(watching.min_interval);
        message.watch_survives_reset = watching.survives_reset;
    }
    message
}
