//! Between ROS messages and the stream's types.

use std::time::Duration;

use r2r::builtin_interfaces::msg as builtin;
use r2r::inf_mllm::msg::{
    CacheStats, Instruction as InstructionMsg, Reasoning, ReasoningDelta, Watch as WatchMsg,
};
use r2r::sensor_msgs::msg::{CompressedImage, Image};
use r2r::std_msgs::msg::{Header, String as StringMsg};
use r2r::{NativeMsg, WrappedTypesupport};
use r2r_rcl::rosidl_runtime_c__String as NativeString;
use r2r_rcl::rosidl_runtime_c__String__Sequence as NativeStrings;

use crate::stream::archive::Kind;
use crate::stream::engine::Watch;
use crate::stream::session::MOST_PICTURES;
use crate::stream::{
    Answer, AnswerDelta, CameraImage, Chosen, ChosenBy, Every, FinishReason, GrammarKind,
    ImageData, Instruction, Recall, RecallMode, StreamStats, TextGrammar, Watching,
};

const NANOSECONDS: i64 = 1_000_000_000;

/// A raw image, copied once out of the middleware's message. `arrival_ns` is now, ROS clock.
pub fn raw_image(message: &NativeMsg<Image>, arrival_ns: i64) -> CameraImage {
    CameraImage {
        camera: 0,
        stamp_ns: nanoseconds(message.header.stamp.sec, message.header.stamp.nanosec),
        arrival_ns,
        frame_id: text(&message.header.frame_id),
        data: ImageData::Raw {
            encoding: text(&message.encoding),
            width: message.width,
            height: message.height,
            step: message.step,
            is_bigendian: message.is_bigendian != 0,
            data: message.data.to_vec(),
        },
    }
}

/// A compressed image, copied once out of the middleware's message.
pub fn compressed_image(
    message: &<CompressedImage as WrappedTypesupport>::CStruct,
    arrival_ns: i64,
) -> CameraImage {
    CameraImage {
        camera: 0,
        stamp_ns: nanoseconds(message.header.stamp.sec, message.header.stamp.nanosec),
        arrival_ns,
        frame_id: text(&message.header.frame_id),
        data: ImageData::Compressed {
            format: text(&message.format),
            data: message.data.to_vec(),
        },
    }
}

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
    let watch = watching(message);
    instruction.watch = watch.clone().ok().flatten();
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
        .or(watch.err());
    (instruction, problem)
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

/// How an instruction is asked again and again, if it is a watch, or what is wrong with that.
fn watching(message: &NativeMsg<InstructionMsg>) -> Result<Option<Watching>, String> {
    const ASK: u8 = InstructionMsg::MODE_ASK as u8;
    const WATCH: u8 = InstructionMsg::MODE_WATCH as u8;
    match message.mode {
        ASK => return Ok(None),
        WATCH => {}
        other => {
            return Err(format!(
                "instruction mode is {other}, expected {ASK} (ask) or {WATCH} (watch)"
            ))
        }
    }
    let (period, least) = (&message.watch_period, &message.watch_min_interval);
    let period = span_of_time("watch_period", period.sec, period.nanosec)?;
    let min_interval = span_of_time("watch_min_interval", least.sec, least.nanosec)?;
    let every = match message.watch_frames {
        0 => Every::Period(period),
        frames if period.is_zero() => Every::Frames(frames.into()),
        frames => {
            return Err(format!(
                "instruction watch_period is {period:?} and watch_frames is {frames}, expected one of them to be 0"
            ))
        }
    };
    Ok(Some(Watching {
        every,
        on_change: message.watch_on_change,
        hysteresis: message.watch_hysteresis,
        min_interval,
        survives_reset: message.watch_survives_reset,
    }))
}

/// The message of an instruction, as it was given, but for its pictures.
fn given(instruction: &Instruction) -> InstructionMsg {
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

/// The message of a watch. `now_ns` is the time of publication, ROS clock.
pub fn watch(watch: &Watch, now_ns: i64) -> WatchMsg {
    WatchMsg {
        instruction: given(&watch.instruction),
        asked: watch.asked,
        published: watch.published,
        failed: watch.failed,
        last: watch
            .last
            .as_ref()
            .map_or_else(Reasoning::default, |last| reasoning(last, now_ns)),
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

/// The message of a finished answer. `now_ns` is the time of publication, ROS clock.
pub fn reasoning(answer: &Answer, now_ns: i64) -> Reasoning {
    let newest = answer.newest_frame.as_ref();
    let recalled = || answer.recalled.iter();
    let chosen = answer.chosen.as_ref();
    let probabilities =
        |of: fn(&Chosen) -> &Vec<f32>| chosen.map_or_else(Vec::new, |chosen| of(chosen).clone());
    let evidence = || answer.evidence.iter();
    Reasoning {
        header: Header {
            stamp: time(newest.map_or(0, |frame| frame.stamp_ns)),
            frame_id: newest.map_or_else(String::new, |frame| publishable(&frame.frame_id)),
        },
        instruction_id: publishable(&answer.id),
        instruction_stamp: time(answer.instruction_ns),
        text: publishable(&answer.text),
        finish_reason: match answer.finish {
            FinishReason::Stop => Reasoning::FINISH_STOP as u8,
            FinishReason::Length => Reasoning::FINISH_LENGTH as u8,
            FinishReason::Cancelled => Reasoning::FINISH_CANCELLED as u8,
            FinishReason::Error => Reasoning::FINISH_ERROR as u8,
            FinishReason::Preempted => Reasoning::FINISH_PREEMPTED as u8,
            FinishReason::TimeLimit => Reasoning::FINISH_TIME_LIMIT as u8,
        },
        error: publishable(answer.error.as_deref().unwrap_or_default()),
        camera: publishable(&answer.camera),
        prompt_tokens: count(answer.prompt_tokens),
        vision_tokens: count(answer.vision_tokens),
        output_tokens: count(answer.output_tokens),
        time_to_first_token: duration(answer.time_to_first_token.unwrap_or_default()),
        latency: duration(answer.latency),
        newest_frame_age: signed_duration(
            newest.map_or(0, |frame| now_ns.saturating_sub(frame.stamp_ns).max(0)),
        ),
        oldest_frame_stamp: time(answer.oldest_frame_ns.unwrap_or(0)),
        frames_seen: answer.frames_seen,
        recalled_stamps: recalled().map(|unit| time(unit.stamp_ns)).collect(),
        recalled_seen_stamps: recalled().map(|unit| time(unit.seen_ns)).collect(),
        recalled_kinds: recalled().map(|unit| recalled_kind(unit.kind)).collect(),
        recalled_scores: recalled().map(|unit| unit.score).collect(),
        recalled_tokens: count(answer.recalled_tokens),
        recall_time: duration(answer.recall_time),
        evidence_stamps: evidence().map(|frame| time(frame.stamp_ns)).collect(),
        evidence_weights: evidence().map(|frame| frame.weight).collect(),
        evidence_cameras: evidence().map(|frame| publishable(&frame.camera)).collect(),
        mean_logprob: answer.mean_logprob,
        watch: answer.watch.is_some(),
        watch_asked: answer.watch.map_or(0, |count| count.asked),
        watch_ended: answer.watch.is_some_and(|count| count.ended),
        choice: chosen.map_or(-1, |chosen| i32::try_from(chosen.index).unwrap_or(i32::MAX)),
        chosen_by: match chosen.map(|chosen| chosen.by) {
            Some(ChosenBy::Mean) => Reasoning::CHOSEN_BY_MEAN as u8,
            Some(ChosenBy::Sum) | None => Reasoning::CHOSEN_BY_SUM as u8,
        },
        choice_probabilities: probabilities(|chosen| &chosen.probabilities),
        choice_probabilities_mean: probabilities(|chosen| &chosen.mean_probabilities),
    }
}

fn recalled_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Frame => Reasoning::RECALLED_FRAME as u8,
        Kind::Text => Reasoning::RECALLED_TURN as u8,
    }
}

pub fn reasoning_delta(delta: &AnswerDelta) -> ReasoningDelta {
    ReasoningDelta {
        instruction_id: publishable(&delta.id),
        index: delta.index,
        text: publishable(&delta.text),
        done: delta.done,
    }
}

/// The answer for people: its text, and why there is none or not more of it.
pub fn reasoning_text(answer: &Answer) -> StringMsg {
    let data = match (&answer.error, answer.finish) {
        (Some(reason), _) if answer.text.is_empty() => format!("not answered: {reason}"),
        (Some(reason), _) => format!("cut off: {} ({reason})", answer.text),
        (None, FinishReason::Cancelled | FinishReason::TimeLimit) => {
            format!("cut off: {}", answer.text)
        }
        (None, _) => answer.text.clone(),
    };
    StringMsg {
        data: publishable(&data),
    }
}

/// The message of a snapshot of the stream. `now_ns` is the time of publication, ROS clock.
pub fn cache_stats(stats: &StreamStats, now_ns: i64) -> CacheStats {
    CacheStats {
        header: Header {
            stamp: time(now_ns),
            frame_id: publishable(&stats.frame_id),
        },
        policy: stats.policy.to_string(),
        budget: count(stats.cache.budget),
        used: count(stats.cache.used),
        prefix: count(stats.cache.prefix),
        relevant: count(stats.cache.relevant),
        recent: count(stats.cache.recent),
        bytes: stats.cache.bytes as u64,
        tokens_seen: stats.cache.tokens_seen,
        tokens_evicted: stats.cache.tokens_evicted,
        compactions: stats.cache.compactions,
        frames_received: stats.frames_received,
        frames_used: stats.frames_used,
        frames_superseded: stats.frames_superseded,
        frames_rejected: stats.frames_rejected,
        reject_reasons: stats
            .rejected_by_reason
            .keys()
            .map(|reason| reason.to_string())
            .collect(),
        reject_counts: stats.rejected_by_reason.values().copied().collect(),
        frames_skipped_rate: stats.frames_skipped.rate,
        frames_skipped_unchanged: stats.frames_skipped.unchanged,
        frames_skipped_paused: stats.frames_skipped.paused,
        time_jumps: stats.time_jumps,
        paused: stats.is_paused(),
        frames_per_second: stats.frames_per_second,
        oldest_frame_stamp: time(stats.oldest_frame_ns.unwrap_or(0)),
        retained_age_min: stats.ages.min,
        retained_age_median: stats.ages.median,
        retained_age_max: stats.ages.max,
        archive_units: stats.archive.units as u64,
        archive_turns: stats.archive.turns as u64,
        archive_bytes: stats.archive.bytes as u64,
        archive_oldest_stamp: time(stats.archive.oldest_ns.unwrap_or(0)),
        archive_nothing_new: stats.archive.nothing_new,
        archive_left: stats.archive.left,
        instructions_received: stats.instructions_received,
        instructions_answered: stats.instructions_answered,
        instructions_failed: stats.instructions_failed,
        transport_time: signed_duration(stats.transport_ns),
        frame_wait_time: duration(stats.frame_wait),
        conversion_time: duration(stats.times.conversion),
        vision_time: duration(stats.times.vision),
        prefill_time: duration(stats.times.prefill),
        decode_time: duration(stats.times.decode),
    }
}

pub(super) fn nanoseconds(sec: i32, nanosec: u32) -> i64 {
    i64::from(sec) * NANOSECONDS + i64::from(nanosec)
}

/// Stamps outside of the message's range stop at its ends.
fn split(nanoseconds: i64) -> (i32, u32) {
    let seconds = nanoseconds.div_euclid(NANOSECONDS);
    match i32::try_from(seconds) {
        Ok(sec) => (sec, nanoseconds.rem_euclid(NANOSECONDS) as u32),
        Err(_) if seconds < 0 => (i32::MIN, 0),
        Err(_) => (i32::MAX, NANOSECONDS as u32 - 1),
    }
}

pub(super) fn time(nanoseconds: i64) -> builtin::Time {
    let (sec, nanosec) = split(nanoseconds);
    builtin::Time { sec, nanosec }
}

fn signed_duration(nanoseconds: i64) -> builtin::Duration {
    let (sec, nanosec) = split(nanoseconds);
    builtin::Duration { sec, nanosec }
}

fn duration(duration: Duration) -> builtin::Duration {
    signed_duration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The text of a received string; what is not UTF-8 becomes U+FFFD.
fn text(native: &NativeString) -> String {
    String::from_utf8_lossy(bytes(native)).into_owned()
}

fn bytes(native: &NativeString) -> &[u8] {
    if native.data.is_null() {
        return &[];
    }
    // SAFETY: the middleware gives `size` bytes at `data`, which live as long as the message.
    unsafe { std::slice::from_raw_parts(native.data.cast::<u8>(), native.size) }
}

/// The strings of a received list.
fn strings(native: &NativeStrings) -> &[NativeString] {
    if native.data.is_null() {
        return &[];
    }
    // SAFETY: the middleware gives `size` strings at `data`, which live as long as the message.
    unsafe { std::slice::from_raw_parts(native.data, native.size) }
}

/// ROS strings end at a NUL, so none may stand inside.
pub(super) fn publishable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}
