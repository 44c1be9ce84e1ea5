//! Which token of the stream stands in which slot, and at which position.

use std::collections::BTreeMap;

use std::num::NonZeroU16;

/// Number of a frame in the stream, counted from 0 since the last reset.
pub type FrameId = u32;

/// What is known of a token when it is fed. The default is plain text in the middle of a sentence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The frame that this token is an image token of.
    pub frame: Option<FrameId>,
    /// The camera with whose frame it came, where there are several.
    pub camera: Option<u8>,
    /// Begins a unit that should be kept or evicted as a whole: a frame, a turn, a sentence.
    pub starts_unit: bool,
    /// Marks the border of a turn.
    pub boundary: bool,
    /// Belongs to an instruction.
    pub instruction: bool,
    /// Where an image token stands in its image, for decoders whose positions have three axes.
    pub place: Place,
}

/// A token's place in its image, in tokens after merging. The default is that of text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Time, height, width: offsets from the image's first token.
    pub offset: [u16; 3],
    /// The largest extent of the whole image on any axis, which is the room that it takes in the stream; 0: no image token.
    pub extent: u16,
    /// The video that the image is a part of, where one has several that share their rows and columns.
    pub video: Option<Video>,
}

/// Which video an image is a part of, and how much later it is than the part before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Video {
    /// The video's number: its parts follow one another.
    pub number: NonZeroU16,
    /// Positions on the axis of time since the part before; of a first part it does not matter.
    pub step: u16,
}

impl Mark {
    /// An image token of `frame`.
    pub fn image(frame: FrameId) -> Self {
        Self {
            frame: Some(frame),
            ..Self::default()
        }
    }

    /// Whether it is no image token.
    pub fn is_text(&self) -> bool {
        self.frame.is_none()
    }
}

/// A cached token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Index in the stream, counted from 0 since the last reset.
    pub index: u64,
    /// Index of the first token of its unit.
    pub unit: u64,
    pub mark: Mark,
}

/// A row that an eviction moves: from one slot to another.
pub type Move = (u32, u32);

/// The tokens of one kept set. Slots are in no order; a position is a token's rank in time, from which its place in the rotary embedding
/// follows.
#[derive(Debug, Default)]
pub struct SlotMap {
    /// By slot.
    tokens: Vec<Token>,
    /// By slot, a permutation of `0..len`.
    positions: Vec<u32>,
    /// Tokens after the prefix that the last compaction kept by value.
    relevant: usize,
}

impl Clone for SlotMap {
    fn clone(&self) -> Self {
        self.first(self.len())
    }

    /// In the memory that is there.
    fn clone_from(&mut self, other: &Self) {
        self.tokens.clone_from(&other.tokens);
        self.positions.clone_from(&other.positions);
        self.relevant = other.relevant;
    }
}

impl SlotMap {
    pub fn with_capacity(budget: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(budget),
            positions: Vec::with_capacity(budget),
            relevant: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// By slot.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// By slot.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub fn relevant(&self) -> usize {
        self.relevant
    }

    /// The slots in the order of time, into `order`.
    pub fn order(&self, order: &mut Vec<u32>) {
        order.resize(self.len(), 0);
        for (slot, &position) in self.positions.iter().enumerate() {
            order[position as usize] = slot as u32;
        }
    }

    /// By slot, which unit its token belongs to, counted from 0 in the order of time.
    pub fn units(&self) -> Vec<usize> {
        let mut order = Vec::new();
        self.order(&mut order);
        let mut units = vec![0; self.len()];
        let mut count = 0;
        for pair in order.windows(2) {
            let [before, slot] = [pair[0] as usize, pair[1] as usize];
            if self.tokens[slot].unit != self.tokens[before].unit {
                count += 1;
            }
            units[slot] = count;
        }
        units
    }

    /// The tokens in the order of time.
    pub fn by_time(&self) -> Vec<Token> {
        let mut order = Vec::new();
        self.order(&mut order);
        order
            .into_iter()
            .map(|slot| self.tokens[slot as usize])
            .collect()
    }

    /// The first `len` slots, which hold the `len` oldest tokens.
    pub fn first(&self, len: usize) -> Self {
        Self {
            tokens: self.tokens[..len].to_vec(),
            positions: self.positions[..len].to_vec(),
            relevant: self.relevant,
        }
    }

    /// Gives up the slots from `len` on, which hold the newest tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.positions.truncate(len);
    }

    /// Takes the next slots for the newest tokens.
    pub fn append(&mut self, tokens: &[Token]) {
        let first = self.len() as u32;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(first..first + tokens.len() as u32);
    }

    /// Drops the slots that are not `kept` (by slot), of which `relevant` were kept by value.
    ///
    /// The rows that stood behind the new end move into the gaps: no more rows move than were dropped. What moved is in `moves`.
    /// `order` is what [`Self::order`] gives.
    pub fn evict(&mut self, kept: &[bool], order: &[u32], relevant: usize, moves: &mut Vec<Move>) {
        let mut position = 0;
        for &slot in order {
            if kept[slot as usize] {
                self.positions[slot as usize] = position;
                position += 1;
            }
        }
        let len = position as usize;
        moves.clear();
        let gaps = (0..len).filter(|&slot| !kept[slot]);
        let movers = (len..kept.len()).filter(|&slot| kept[slot]);
        moves.extend(movers.zip(gaps).map(|(from, to)| (from as u32, to as u32)));
        for &(from, to) in moves.iter() {
            self.tokens[to as usize] = self.tokens[from as usize];
            self.positions[to as usize] = self.positions[from as usize];
        }
        self.tokens.truncate(len);
        self.positions.truncate(len);
        self.relevant = relevant;
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.relevant = 0;
    }

    /// Slots that hold image tokens.
    pub fn image_tokens(&self) -> usize {
        let images = self.tokens.iter().filter(|token| !token.mark.is_text());
        images.count()
    }

    /// Adds the number of slots that each frame has here to `counts`.
    pub fn count_frames(&self, counts: &mut BTreeMap<FrameId, usize>) {
        for frame in self.tokens.iter().filter_map(|token| token.mark.frame) {
            *counts.entry(frame).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(index: u64) -> Token {
        Token {
            index,
            unit: index,
            mark: Mark::default(),
        }
    }

    #[test]
    fn an_eviction_moves_no_more_rows_than_it_drops_and_keeps_the_order_of_time() {
        let mut set = SlotMap::with_capacity(8);
        set.append(&(0..8).map(token).collect::<Vec<_>>());
        let (mut order, mut moves) = (Vec::new(), Vec::new());
        set.order(&mut order);
        let kept = [true, false, true, true, false, true, true, true];
        set.evict(&kept, &order, 0, &mut moves);
        assert_eq!(moves, [(6, 1), (7, 4)]);
        let indices = |set: &SlotMap| set.by_time().iter().map(|t| t.index).collect::<Vec<_>>();
        assert_eq!(indices(&set), [0, 2, 3, 5, 6, 7]);
        set.append(&[token(8), token(9)]);
        set.order(&mut order);
        let kept = [true, true, false, true, false, true, true, true];
        set.evict(&kept, &order, 0, &mut moves);
        assert_eq!(indices(&set), [0, 3, 5, 6, 8, 9]);
    }

    #[test]
    fn image_tokens_are_counted_where_they_stand() {
        let mut set = SlotMap::with_capacity(8);
        let mut tokens = (0..6).map(token).collect::<Vec<_>>();
        for image in [1, 2, 4] {
            tokens[image].mark = Mark::image(0);
        }
        set.append(&tokens);
        assert_eq!(set.image_tokens(), 3);
        let mut order = Vec::new();
        set.order(&mut order);
        let kept = [true, true, false, true, true, true];
        set.evict(&kept, &order, 0, &mut Vec::new());
        assert_eq!(set.image_tokens(), 2);
    }
}
