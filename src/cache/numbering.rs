//! Where kept tokens stand on three axes (M-RoPE, arXiv 2409.12191).
//!
//! Tokens are numbered anew as evictions thin them out, in the order of time: text moves on by one on every axis; what is left of an
//! image keeps its offsets from the image's first token, and behind it everything stands by the image's whole extent farther on,
//! however little is left of it. An image of which nothing is left takes no room. So a stream that fits into the budget has the
//! positions that the published models give it.
//!
//! A video of several parts is one image whose parts come one after the other: they share its rows and columns, each stands on the axis of
//! time by its step behind the part before that is left, and what follows is behind the last of them on every axis. A part of which
//! nothing is left takes no time.
//!
//! Positions stay below the number of kept tokens as long as images are whole and no part has fewer tokens than its step. Where they
//! are thinned, what bounds them is the budget times the largest extent or step of an image (and the plan's gap), which may be beyond the
//! model's longest input.

use std::num::NonZeroU16;

use super::slots::{FrameId, Place, Token};

/// Numbers tokens one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Walk {
    /// Position of the next token, if it belongs to no image that has begun.
    next: usize,
    /// The image that the last token belongs to.
    image: Option<Begun>,
}

/// An image that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    frame: Option<FrameId>,
    /// Number of the video that it is a part of.
    video: Option<NonZeroU16>,
    /// Position of the first token, of the video's first part if it is one of several.
    base: usize,
    /// How far behind that the part stands on the axis of time.
    later: usize,
}

impl Walk {
    /// Time, height and width of the next token.
    fn step(&mut self, token: &Token) -> [usize; 3] {
        let Place {
            offset,
            extent,
            video,
        } = token.mark.place;
        if extent == 0 {
            let position = self.next;
            *self = Self {
                next: position + 1,
                image: None,
            };
            return [position; 3];
        }
        let frame = token.mark.frame;
        let image = match (self.image, video) {
            (Some(image), _) if image.frame == frame => image,
            (Some(image), Some(video)) if image.video == Some(video.number) => Begun {
                frame,
                later: image.later + usize::from(video.step),
                ..image
            },
            _ => Begun {
                frame,
                video: video.map(|video| video.number),
                base: self.next,
                later: 0,
            },
        };
        let reach = usize::from(extent).max(image.later + 1);
        *self = Self {
            next: self.next.max(image.base + reach),
            image: Some(image),
        };
        let [time, height, width] = offset.map(|offset| image.base + usize::from(offset));
        [time + image.later, height, width]
    }
}

/// Time, height and width of `tokens`, which are all that is kept, in the order of time.
pub fn positions(tokens: &[Token]) -> impl Iterator<Item = [usize; 3]> + '_ {
    let mut walk = Walk::default();
    tokens.iter().map(move |token| walk.step(token))
}

/// Ranks of one kept set that follow one another, and where their tokens stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub first: usize,
    /// Time, height and width of each.
    pub at: Vec<[usize; 3]>,
    /// Rank from which on positions are the gap farther on.
    pub border: Option<usize>,
}

/// How far the tokens of one kept set have been numbered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbering {
    walk: Walk,
    /// Ranks that have a place.
    len: usize,
    border: Option<usize>,
}

impl Numbering {
    /// Before any token, of which those of rank `border` and above will stand the gap farther on.
    pub fn from_the_start(border: Option<usize>) -> Self {
        Self {
            border,
            ..Self::default()
        }
    }

    /// Before the first of its tokens, and with the same border.
    pub fn restarted(&self) -> Self {
        Self::from_the_start(self.border)
    }

    /// Numbers the next tokens, in the order of time.
    pub fn append(&mut self, tokens: &[Token]) -> Places {
        let first = self.len;
        self.len += tokens.len();
        Places {
            first,
            at: tokens.iter().map(|token| self.walk.step(token)).collect(),
            border: self.border,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::{Mark, Video};
    use super::*;

    const TEXT: Mark = Mark {
        frame: None,
        camera: None,
        starts_unit: false,
        boundary: false,
        instruction: false,
        place: Place {
            offset: [0; 3],
            extent: 0,
            video: None,
        },
    };

    /// An image of one row of two tokens, a part of this video.
    fn part(frame: FrameId, video: u16, step: u16) -> [Mark; 2] {
        [0, 1].map(|width| Mark {
            place: Place {
                offset: [0, 0, width],
                extent: 2,
                video: NonZeroU16::new(video).map(|number| Video { number, step }),
            },
            ..Mark::image(frame)
        })
    }

    fn numbered(marks: &[Mark]) -> Vec<[usize; 3]> {
        let token = |(index, mark): (usize, &Mark)| Token {
            index: index as u64,
            unit: index as u64,
            mark: *mark,
        };
        let tokens = marks.iter().enumerate().map(token).collect::<Vec<_>>();
        positions(&tokens).collect()
    }

    #[test]
    fn the_parts_of_a_video_share_its_rows_and_columns_and_what_follows_is_behind_the_last() {
        let [a, b, c] = [part(0, 1, 0), part(1, 1, 3), part(2, 1, 2)];
        let marks = [&[TEXT][..], &a, &b, &c, &[TEXT]].concat();
        let expected = [
            [0, 0, 0],
            [1, 1, 1],
            [1, 1, 2],
            [4, 1, 1],
            [4, 1, 2],
            [6, 1, 1],
            [6, 1, 2],
            [7, 7, 7],
        ];
        assert_eq!(numbered(&marks), expected);
    }

    #[test]
    fn parts_that_are_lost_take_no_time() {
        let [b, c] = [part(1, 1, 3), part(2, 1, 2)];
        // Of the first nothing is left, of the second a half.
        let marks = [&[TEXT][..], &b[1..], &c, &[TEXT]].concat();
        let expected = [[0, 0, 0], [1, 1, 2], [3, 1, 1], [3, 1, 2], [4, 4, 4]];
        assert_eq!(numbered(&marks), expected);
    }

    #[test]
    fn another_video_and_an_image_of_none_stand_behind() {
        let [a, b, c] = [part(0, 1, 0), part(1, 2, 5), part(2, 0, 0)];
        let marks = [a, b, c].concat();
        let expected = [
            [0, 0, 0],
            [0, 0, 1],
            [2, 2, 2],
            [2, 2, 3],
            [4, 4, 4],
            [4, 4, 5],
        ];
        assert_eq!(numbered(&marks), expected);
    }
}
