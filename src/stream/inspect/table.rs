//! A report as a table for people.

use std::fmt::{self, Display, Formatter};

use super::{Amount, Report};

/// Names of tensors that are listed before the rest is only counted.
const LISTED: usize = 5;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<22}{value}");
        row("checkpoint", self.path.clone())?;
        if !self.family.is_empty() {
            row(
                "family",
                format!("{}, decoder {}", self.family, self.decoder),
            )?;
        }
        if !self.dtype.is_empty() {
            row("arithmetic", format!("{} on {}", self.dtype, self.device))?;
        }
        if self.parameters.total > 0 {
            let parameters = &self.parameters;
            row(
                "parameters",
                format!(
                    "{} (decoder {}, vision {})",
                    count(parameters.total),
                    count(parameters.decoder),
                    count(parameters.vision)
                ),
            )?;
        }
        if let Some(quantised) = &self.quantised {
            row("quantised", quantised.clone())?;
        }
        for (kind, amount) in &self.stored {
            row("stored", of_kind(kind, amount))?;
        }
        for (kind, amount) in &self.kept {
            row("in memory", of_kind(kind, amount))?;
        }
        for fallback in &self.fallbacks {
            row("", fallback.clone())?;
        }
        if self.context > 0 {
            row("context", format!("{} tokens", self.context))?;
            row(
                "keys and values",
                format!("{} per token", size(self.kv_bytes_per_token)),
            )?;
        }
        for frame in &self.frames {
            let bytes = frame.tokens as u64 * self.kv_bytes_per_token;
            row(
                &format!("frame {} x {}", frame.width, frame.height),
                format!(
                    "{} tokens{} ({} of the image; {} where it begins a turn), {}",
                    frame.tokens,
                    match frame.frames {
                        1 => "",
                        _ => " for two of them",
                    },
                    frame.image_tokens,
                    frame.opening_tokens,
                    size(bytes)
                ),
            )?;
        }
        if self.weight_bytes > 0 {
            let repacked = match self.repacked_bytes {
                0 => String::new(),
                bytes => format!(" + blocks laid out again for this CPU {}", size(bytes)),
            };
            let states = match self.state_bytes {
                0 => String::new(),
                bytes => format!(" + states of layers without keys {}", size(bytes)),
            };
            let working = match self.working_bytes {
                0 => String::new(),
                bytes => format!(
                    " + work on a chunk of {} tokens {}",
                    self.chunk_tokens,
                    size(bytes)
                ),
            };
            row(
                "expected memory",
                format!(
                    "{} = weights {}{repacked} + tokenizer {} + cache {} (budget {}) and {} beside keys and values{states}{working}",
                    size(self.memory_bytes),
                    size(self.weight_bytes),
                    size(self.tokenizer_bytes),
                    size(self.cache_bytes),
                    self.budget,
                    size(self.beside_bytes)
                ),
            )?;
        }
        if let Some(budget) = self.fitting_budget {
            row("largest budget", format!("{budget} tokens in that memory"))?;
        }
        for (part, amount) in &self.left_alone {
            row("left alone", of_kind(part, amount))?;
        }
        if !self.unused.is_empty() {
            let listed = self.unused.iter().take(LISTED);
            let listed = listed.map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = match self.unused.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            row("not used", format!("{listed}{more}"))?;
        }
        for note in &self.notes {
            row("note", note.clone())?;
        }
        match self.complete() {
            true => row("complete", "yes".to_string()),
            false => self
                .problems
                .iter()
                .try_for_each(|problem| row("PROBLEM", problem.clone())),
        }
    }
}

fn of_kind(kind: &str, amount: &Amount) -> String {
    format!("{kind}: {} tensors, {}", amount.tensors, size(amount.bytes))
}

/// A number of things, as in 135 M.
fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{:.0} k", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} M", number as f64 / 1e6),
        _ => format!("{:.2} G", number as f64 / 1e9),
    }
}

/// Bytes in binary units.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}
