//! What an instruction asks for: units of the archive, as many as the turn has room for.

use super::{no_archive, Finding, RecallError, Span};
use crate::cache::{Probe, Retained};
use crate::model::ModelError;
use crate::stream::archive::{Found, Kind, RecallMode, TooLarge, Wanted};
use crate::stream::instruction::Instruction;
use crate::stream::session::checks::AskError;
use crate::stream::session::{Chunk, Session};

/// Frames that are recalled for their score alone. A question means the newest sighting of a thing more often than the one that shows it best.
const BEST: usize = 2;

/// Of the units that are recalled, one of so many may be a turn before any frame is looked for; the others where frames leave room.
const TURNS_PART: usize = 4;

impl Session {
    /// What is to be fed again for an instruction, beside pictures of so many tokens, in the order of time.
    pub(in crate::stream::session) fn find(
        &mut self,
        instruction: &Instruction,
        pictures: usize,
    ) -> Result<Vec<Found>, AskError> {
        let recall = &instruction.recall;
        let config = &self.config.archive;
        let given = recall.span_ns.is_some() || !recall.stamps_ns.is_empty();
        let (mode, asked) = self.recall_mode(recall)?;
        if no_archive(&self.config).is_some() {
            return Ok(Vec::new());
        }
        if mode == RecallMode::Never {
            return Ok(Vec::new());
        }
        if asked {
            self.check_size()?;
        }
        self.check_span(recall.span_ns)?;
        if !recall.stamps_ns.is_empty() {
            return Ok(self.state.stream.archive.nearest(&recall.stamps_ns));
        }
        if self.memory().seen() == 0 {
            // An instruction with pictures before the first frame.
            return Ok(Vec::new());
        }
        let ids = self.question(&instruction.text)?;
        let newest = self
            .newest_again()
            .iter()
            .map(|frame| frame.tokens)
            .sum::<usize>();
        let room = self.state.cache.longest_turn();
        let entries = self.archive().entries().iter();
        let least = entries.map(|entry| entry.unit.content.tokens()).min();
        let needed = ids.len() + pictures + newest + least.unwrap_or(0);
        if needed > room {
            return match asked {
                true => Err(RecallError::NoRoom { needed, room }.into()),
                false => Ok(Vec::new()),
            };
        }
        let tokens = room - ids.len() - pictures - newest;
        let wanted = Wanted {
            kind: Kind::Frame,
            units: config.recall_units,
            tokens,
            share: if given {
                0.0
            } else {
                config.recall_share as f32
            },
            span_ns: recall.span_ns,
            best: BEST,
            beyond_cache: mode == RecallMode::Auto,
        };
        let probes = self.probes(&instruction.text, &ids)?;
        Ok(self.find_both(&probes, &wanted, &self.state.cache.retained()))
    }

    /// What an instruction's tokens look for among frames, and its words among turns, if there are any.
    fn probes(&mut self, text: &str, ids: &[u32]) -> Result<(Probe, Option<Probe>), ModelError> {
        let words = match self.archive().texts() {
            0 => None,
            _ => Some(self.words(text, ids)?),
        };
        let Finding { frames, turns } = self.finding.clone();
        let by = self.config.archive.recall_by;
        let heard = self.passing(|session| {
            let all = [frames.as_slice(), &turns].concat();
            session.hear(ids, Chunk::Instruction, &all)
        })?;
        let heard_in = |layers: &[usize]| Finding::heard_in(layers, &heard);
        let of_turns = words.map(|words| Probe::of_tokens(&heard_in(&turns), words, by.of_text()));
        Ok((
            Probe::of(&heard_in(&frames), by.of_frames())?,
            of_turns.transpose()?,
        ))
    }

    /// Units of both kinds, in the order of time. How well a turn matches and how well a frame does are not to be compared, so that each
    /// kind has its part: the best turns a small one, for they are few and short, then the frames, and what room these leave the turns again.
    fn find_both(
        &self,
        (frames, turns): &(Probe, Option<Probe>),
        wanted: &Wanted,
        retained: &Retained,
    ) -> Vec<Found> {
        let archive = self.archive();
        let find_turns = |units, tokens| {
            let wanted = Wanted {
                share: wanted.share,
                span_ns: wanted.span_ns,
                beyond_cache: wanted.beyond_cache,
                ..Wanted::text(archive.config(), units, tokens)
            };
            let probe = turns.as_ref();
            probe.map_or_else(Vec::new, |probe| archive.find(probe, &wanted, retained))
        };
        let tokens = |found: &[Found]| -> usize {
            found.iter().map(|found| found.unit.content.tokens()).sum()
        };
        let part = wanted.units.div_ceil(TURNS_PART);
        let mut turns = find_turns(part, wanted.tokens);
        let rest = Wanted {
            units: wanted.units - turns.len(),
            tokens: wanted.tokens - tokens(&turns),
            ..*wanted
        };
        let mut found = archive.find(frames, &rest, retained);
        if turns.len() == part && found.len() < rest.units {
            turns = find_turns(wanted.units - found.len(), wanted.tokens - tokens(&found));
        }
        found.append(&mut turns);
        found.sort_by_key(|found| found.seen);
        found
    }

    /// Refuses to recall from an archive that no frame fits into.
    fn check_size(&self) -> Result<(), RecallError> {
        let archive = &self.state.stream.archive;
        match archive.too_large() {
            TooLarge { frames, bytes } if frames > 0 && archive.entries().is_empty() => {
                Err(RecallError::TooSmall {
                    bytes: archive.config().archive_bytes,
                    needed: bytes,
                })
            }
            _ => Ok(()),
        }
    }

    fn check_span(&self, span_ns: Option<(i64, i64)>) -> Result<(), RecallError> {
        let Some(span) = span_ns else { return Ok(()) };
        let asked = Span(span.0, span.1);
        let entries = self.state.stream.archive.entries();
        let oldest = entries.iter().map(|entry| entry.unit.stamp_ns).min();
        let newest = entries.iter().map(|entry| entry.seen_ns).max();
        match oldest.zip(newest) {
            None => Err(RecallError::Empty),
            Some(_) if entries.iter().any(|entry| entry.within(span)) => Ok(()),
            Some((oldest, newest)) => Err(RecallError::Nothing {
                asked,
                archived: Span(oldest, newest),
            }),
        }
    }
}
