//! Pictures read row by row, so that a large one is never copied whole on its way to the model's input.

use image::RgbImage;
use pulp::{Arch, NullaryFnOnce};

/// The longest side of a picture, pixels. A resampler's weights take memory by the length of the sides, which a number of pixels does
/// not bound.
pub const MAX_SIDE: usize = 1 << 14;

/// How many times as long as the other a side may be: what the published processor of the Qwen families accepts (`smart_resize`).
pub const MAX_ASPECT: usize = 200;

/// Anything that can give rows of RGB pixels.
pub trait Picture {
    /// Width and height, pixels; both at least 1.
    fn size(&self) -> (usize, usize);

    /// Writes row `y`, counted from the top, into `row`, which has the picture's width.
    fn read_row(&self, y: usize, row: &mut PlanarRow);
}

/// Values behind the end of a row that may be read with a weight of zero: the resampler works in steps of this many.
pub const LANES: usize = 16;

/// One row of a picture, a plane for each colour, with [`LANES`] zeros behind its end. Values are 0 to 255, in the width that the
/// resampler computes with.
#[derive(Debug, Clone)]
pub struct PlanarRow {
    pub red: Vec<i32>,
    pub green: Vec<i32>,
    pub blue: Vec<i32>,
}

impl PlanarRow {
    pub fn new(width: usize) -> Self {
        let plane = || vec![0; width + LANES];
        Self {
            red: plane(),
            green: plane(),
            blue: plane(),
        }
    }

    /// The first `width` pixels as RGB bytes.
    pub fn packed(&self, width: usize) -> impl Iterator<Item = u8> + '_ {
        let planes = self.red.iter().zip(&self.green).zip(&self.blue);
        planes
            .take(width)
            .flat_map(|((&r, &g), &b)| [r as u8, g as u8, b as u8])
    }

    /// Takes the row from pixels of `N` bytes of which `order` are red, green and blue.
    pub fn unpack<const N: usize>(&mut self, pixels: &[u8], order: [usize; 3]) {
        let row = self;
        Arch::new().dispatch(Unpack::<N> { pixels, order, row });
    }
}

/// [`PlanarRow::unpack`], with the widest instructions that this machine has.
struct Unpack<'a, const N: usize> {
    pixels: &'a [u8],
    order: [usize; 3],
    row: &'a mut PlanarRow,
}

impl<const N: usize> NullaryFnOnce for Unpack<'_, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let PlanarRow { red, green, blue } = self.row;
        let planes = red.iter_mut().zip(green).zip(blue);
        let [r, g, b] = self.order;
        for (((red, green), blue), pixel) in planes.zip(self.pixels.as_chunks::<N>().0) {
            *red = i32::from(pixel[r]);
            *green = i32::from(pixel[g]);
            *blue = i32::from(pixel[b]);
        }
    }
}

/// Packed RGB bytes without padding.
#[derive(Debug, Clone, Copy)]
pub struct PackedRgb<'a> {
    pub width: usize,
    pub height: usize,
    pub bytes: &'a [u8],
}

impl Picture for PackedRgb<'_> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        let bytes = 3 * self.width;
        row.unpack::<3>(&self.bytes[y * bytes..][..bytes], [0, 1, 2]);
    }
}

impl Picture for RgbImage {
    fn size(&self) -> (usize, usize) {
        (self.width() as usize, self.height() as usize)
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        let (width, height) = Picture::size(self);
        PackedRgb {
            width,
            height,
            bytes: self.as_raw(),
        }
        .read_row(y, row);
    }
}

/// A picture of any size, within [`MAX_SIDE`].
///
/// One that is longer, which no camera's is, keeps pixels at even distances; all others are read as they are. What comes after this
/// has a bound in memory and time, whatever the picture.
#[derive(Clone, Copy)]
pub struct Bounded<'a> {
    picture: &'a dyn Picture,
    size: (usize, usize),
}

impl<'a> Bounded<'a> {
    pub fn new(picture: &'a dyn Picture) -> Self {
        Self {
            picture,
            size: Self::size_of(picture.size()),
        }
    }

    /// The size (width, height) of such a picture.
    pub fn size_of((width, height): (usize, usize)) -> (usize, usize) {
        let longest = width.max(height);
        let side = |side: usize| match longest > MAX_SIDE {
            true => (side * MAX_SIDE / longest).max(1),
            false => side,
        };
        (side(width), side(height))
    }
}

impl Picture for Bounded<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        let (width, height) = self.picture.size();
        let y = y * height / self.size.1;
        if width == self.size.0 {
            return self.picture.read_row(y, row);
        }
        let mut whole = PlanarRow::new(width);
        self.picture.read_row(y, &mut whole);
        let planes = [
            (&mut row.red, &whole.red),
            (&mut row.green, &whole.green),
            (&mut row.blue, &whole.blue),
        ];
        for (to, from) in planes {
            for (x, to) in to[..self.size.0].iter_mut().enumerate() {
                *to = from[x * width / self.size.0];
            }
        }
    }
}

/// The whole picture as an RGB image: for tests and tools, not for the way to the model.
pub fn to_rgb_image(picture: &dyn Picture) -> RgbImage {
    let (width, height) = picture.size();
    let mut row = PlanarRow::new(width);
    let mut bytes = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        picture.read_row(y, &mut row);
        bytes.extend(row.packed(width));
    }
    let mut image = RgbImage::new(width as u32, height as u32);
    image.copy_from_slice(&bytes);
    image
}
