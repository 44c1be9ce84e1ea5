//! A text's archive beside its cache: what is read enters it, and what a question asks for is found in it.

use std::ops::Range;

use candle_core::Tensor;

use super::model::EvalModel;
use super::recall::Recalled;
use super::{parameter, EvalError};
use crate::cache::{BoundedCache, Probe};
use crate::stream::archive::{Archive, ArchiveConfig, Content, Found, TextUnits, Wanted};

/// The archive of one stream of text.
pub struct TextMemory<'m> {
    model: &'m EvalModel,
    archive: Archive,
    units: TextUnits,
    layers: Vec<usize>,
    /// What stands between two pieces that do not end with a line.
    new_line: Vec<u32>,
}

impl<'m> TextMemory<'m> {
    pub fn new(model: &'m EvalModel, config: &ArchiveConfig) -> Result<Self, EvalError> {
        let layers = config
            .layers(model.shape.layers, config.recall_by.of_text())
            .ok_or_else(|| {
                let expected = format!("numbers below {}, as in 4/8", model.shape.layers);
                parameter("recall_layers", &config.recall_layers, expected)
            })?;
        Ok(Self {
            model,
            units: TextUnits::new(config.unit_tokens),
            archive: Archive::new(config.clone()),
            layers,
            new_line: model.encode("\n")?,
        })
    }

    /// [`EvalModel::append`] to one stream, of which the sentences enter the archive as they end.
    pub fn append(
        &mut self,
        before: Option<u32>,
        ids: &[u32],
        caches: &mut [BoundedCache; 1],
    ) -> Result<Tensor, EvalError> {
        caches[0].listen(&self.layers);
        let hidden = self.model.append(before, ids, caches)?;
        let heard = caches[0].heard()?;
        let ends = |id| self.model.ends_sentence(id);
        for (unit, extent) in self.units.push(ids, &heard, ends)? {
            self.archive.enter(unit, extent);
        }
        Ok(hidden)
    }

    /// What a question asks for, as much of it as a turn has room for. The cache, which has a mark, is put back to it.
    pub fn find(
        &self,
        question: &[u32],
        caches: &mut [BoundedCache; 1],
    ) -> Result<Vec<Found>, EvalError> {
        let config = self.archive.config();
        let room = caches[0].longest_turn().saturating_sub(question.len());
        // A line's end for each unit.
        let room = room.saturating_sub(config.recall_units * self.new_line.len());
        let retained = caches[0].retained();
        caches[0].listen(&self.layers);
        self.model.append(None, question, caches)?;
        let probe = Probe::of(&caches[0].heard()?, config.recall_by.of_text())?;
        caches[0].put_back()?;
        let wanted = Wanted::text(config, config.recall_units, room);
        Ok(self.archive.find(&probe, &wanted, &retained))
    }

    /// The text that is fed again for what was found: as it stood, each piece on lines of its own.
    pub fn text(&self, found: &[Found]) -> Vec<u32> {
        let mut ids = Vec::new();
        for found in found {
            let Content::Text(text) = &found.unit.content else {
                continue;
            };
            ids.extend_from_slice(text);
            if !text.ends_with(&self.new_line) {
                ids.extend_from_slice(&self.new_line);
            }
        }
        ids
    }

    /// What was fed again, where the fact stood at `told` in the stream.
    pub fn recalled(&self, found: &[Found], told: Range<u64>) -> Recalled {
        let within = |range: &Range<u64>| {
            let common = range
                .end
                .min(told.end)
                .saturating_sub(range.start.max(told.start));
            2 * common > told.end - told.start
        };
        Recalled {
            hit: found.iter().any(|found| within(&found.extent)),
            units: found.len(),
            tokens: self.text(found).len(),
            archived: self.archive.entries().len(),
            bytes: self.archive.bytes(),
        }
    }
}
