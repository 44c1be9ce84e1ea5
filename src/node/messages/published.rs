//! Answers and statistics as they are published.

use r2r::inf_mllm::msg::{CacheStats, Reasoning, ReasoningDelta, Watch as WatchMsg};
use r2r::std_msgs::msg::{Header, String as StringMsg};

use super::instruction::given;
use super::{count, duration, publishable, signed_duration, time};
use crate::stream::archive::Kind;
use crate::stream::engine::Watch;
use crate::stream::{Answer, AnswerDelta, Chosen, ChosenBy, FinishReason, StreamStats, ThoughtEnd};

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
        thought: publishable(&answer.thought),
        thought_end: match answer.thought_end {
            ThoughtEnd::None => Reasoning::THOUGHT_NONE as u8,
            ThoughtEnd::Ended => Reasoning::THOUGHT_ENDED as u8,
            ThoughtEnd::Limit => Reasoning::THOUGHT_LIMIT as u8,
            ThoughtEnd::Cut => Reasoning::THOUGHT_CUT as u8,
            ThoughtEnd::Skipped => Reasoning::THOUGHT_SKIPPED as u8,
        },
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
        thought_tokens: count(answer.thought_tokens),
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
        thought: delta.thought,
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
