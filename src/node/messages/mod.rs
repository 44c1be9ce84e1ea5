//! Between ROS messages and the stream's types: images as they come (`images`), instructions (`instruction`), answers and statistics
//! (`published`), and here what all of them are made of: times, numbers and texts.

mod images;
mod instruction;
mod published;

use std::time::Duration;

use r2r::builtin_interfaces::msg as builtin;
use r2r_rcl::rosidl_runtime_c__String as NativeString;
use r2r_rcl::rosidl_runtime_c__String__Sequence as NativeStrings;

pub use images::{compressed_image, raw_image};
pub use instruction::{instruction, plain_instruction};
pub use published::{cache_stats, reasoning, reasoning_delta, reasoning_text, watch};

const NANOSECONDS: i64 = 1_000_000_000;

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
