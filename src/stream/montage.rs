//! The frames that an answer rests on, side by side in one picture, with their ages and weights, and their cameras where there are several.

use std::convert::Infallible;

use embedded_graphics::mono_font::ascii::FONT_7X13;
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{
    DrawTarget, Drawable, OriginDimensions, Pixel, Point, RgbColor, Size,
};
use embedded_graphics::text::{Alignment, Baseline, Text};
use image::{imageops, Rgb, RgbImage};

use super::evidence::Evidence;
use super::thumbnail::jpeg;

/// Pixels between thumbnails and around them.
const GAP: u32 = 6;
/// Height of a line of text.
const LINE: u32 = 15;
/// A thumbnail is at least as wide as its longest text, as *12 min 34 s ago*.
const NARROWEST: u32 = 112;
/// Thumbnails in a row.
const COLUMNS: usize = 8;
const QUALITY: u8 = 85;
const BACKGROUND: Rgb<u8> = Rgb([32, 32, 32]);

/// The frames of which there are thumbnails, the most attended first, jpeg; none if there is none of any. Ages are counted from `now_ns`,
/// the stamp of the newest frame.
pub fn montage(evidence: &[Evidence], now_ns: i64) -> Option<Vec<u8>> {
    let cells = evidence.iter().filter_map(|frame| {
        let pixels = frame.thumbnail.as_ref()?.pixels()?;
        let mut lines = vec![age(now_ns, frame.stamp_ns), weight(frame.weight)];
        if !frame.camera.is_empty() {
            lines.push(frame.camera.clone());
        }
        Some((pixels, lines))
    });
    let cells = cells.collect::<Vec<_>>();
    let widest = cells.iter().map(|(pixels, _)| pixels.width()).max()?;
    let tallest = cells.iter().map(|(pixels, _)| pixels.height()).max()?;
    let lines = cells.iter().map(|(_, lines)| lines.len()).max()? as u32;
    let (width, height) = (widest.max(NARROWEST) + GAP, tallest + lines * LINE + GAP);
    let columns = cells.len().min(COLUMNS);
    let rows = cells.len().div_ceil(columns);
    let size = (columns as u32 * width + GAP, rows as u32 * height + GAP);
    let mut canvas = Canvas(RgbImage::from_pixel(size.0, size.1, BACKGROUND));
    for (i, (pixels, lines)) in cells.iter().enumerate() {
        let left = GAP + (i % columns) as u32 * width;
        let top = GAP + (i / columns) as u32 * height;
        // Texts stand under the middle of the thumbnail, and thumbnails of one height on one line.
        let (x, y) = (
            left + (width - GAP - pixels.width()) / 2,
            top + tallest - pixels.height(),
        );
        imageops::replace(&mut canvas.0, pixels, i64::from(x), i64::from(y));
        for (line, text) in lines.iter().enumerate() {
            let middle = left + (width - GAP) / 2;
            let below = top + tallest + 1 + line as u32 * LINE;
            canvas.write(text, (middle, below));
        }
    }
    jpeg(canvas.0.as_raw(), size, QUALITY)
}

/// How long before `now_ns` something was, in words.
fn age(now_ns: i64, stamp_ns: i64) -> String {
    let ns = i128::from(now_ns) - i128::from(stamp_ns);
    let side = if ns < 0 { "later" } else { "ago" };
    let tenths = (ns.unsigned_abs() + 50_000_000) / 100_000_000;
    let seconds = tenths / 10;
    match seconds {
        0 if tenths == 0 => "now".to_string(),
        0..100 => format!("{seconds}.{} s {side}", tenths % 10),
        100..6000 => format!("{} min {:02} s {side}", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min {side}", seconds / 3600, seconds % 3600 / 60),
    }
}

fn weight(share: f32) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// A picture that can be written on.
struct Canvas(RgbImage);

impl Canvas {
    /// Writes a line whose middle is at `x` and whose top at `y`.
    fn write(&mut self, text: &str, (x, y): (u32, u32)) {
        let style = MonoTextStyle::new(&FONT_7X13, Rgb888::WHITE);
        let at = Point::new(x as i32, y as i32);
        let mut text = Text::with_alignment(text, at, style, Alignment::Center);
        text.text_style.baseline = Baseline::Top;
        // Drawing into memory does not fail.
        let Ok(_) = text.draw(self);
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        for Pixel(at, colour) in pixels {
            let at = u32::try_from(at.x).ok().zip(u32::try_from(at.y).ok());
            if let Some(pixel) = at.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                *pixel = Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_as_one_would_say_it() {
        const S: i64 = 1_000_000_000;
        for (ns, expected) in [
            (0, "now"),
            (40_000_000, "now"),
            (50_000_000, "0.1 s ago"),
            (12 * S + 340_000_000, "12.3 s ago"),
            (99 * S + 950_000_000, "1 min 40 s ago"),
            (3600 * S + 5 * S, "60 min 05 s ago"),
            (7500 * S, "2 h 05 min ago"),
            (-3 * S, "3.0 s later"),
        ] {
            assert_eq!(age(100 * S, 100 * S - ns), expected);
        }
        // Whatever a stamp is, it is no reason to end.
        assert!(age(i64::MAX, i64::MIN).ends_with("ago"));
        assert!(age(i64::MIN, i64::MAX).ends_with("later"));
    }
}
