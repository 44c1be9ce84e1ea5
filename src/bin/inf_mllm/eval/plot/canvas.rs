//! A figure onto SVG and PNG. The letters come with the program: a bare machine has no fonts.

use std::fmt::Display;
use std::path::Path;

use anyhow::{anyhow, Context, Result};
use image::RgbImage;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font as register;

pub const FONT: &str = "sans-serif";

/// Something that can be drawn onto any backend.
pub trait Figure {
    /// Width and height, pixels.
    fn size(&self) -> (u32, u32);

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()>
    where
        DB::ErrorType: 'static;
}

/// Makes the built-in font known; to be called once before anything is drawn.
pub fn register_font() -> Result<()> {
    register(FONT, FontStyle::Normal, dejavu::sans::regular())
        .and_then(|()| register(FONT, FontStyle::Bold, dejavu::sans::bold()))
        .map_err(|_| anyhow!("the built-in font cannot be read"))
}

/// Writes `folder/name.svg` and `folder/name.png`.
pub fn save(figure: &impl Figure, folder: &Path, name: &str) -> Result<()> {
    let (width, height) = figure.size();
    let svg = folder.join(format!("{name}.svg"));
    {
        let area = SVGBackend::new(&svg, (width, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        figure.draw(&area)?;
        area.present()
            .map_err(|e| anyhow!("writing {}: {e}", svg.display()))?;
    }
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        figure.draw(&area)?;
        area.present().map_err(drawing)?;
    }
    let png = folder.join(format!("{name}.png"));
    RgbImage::from_raw(width, height, pixels)
        .context("picture size")?
        .save(&png)
        .with_context(|| format!("writing {}", png.display()))?;
    println!("{}, {}", svg.display(), png.display());
    Ok(())
}

pub fn drawing(error: impl Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

/// Okabe and Ito's colours, which colour-blind readers can tell apart, then darker ones.
pub fn colour(i: usize) -> RGBColor {
    const COLOURS: [RGBColor; 12] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
        RGBColor(0, 0, 0),
        RGBColor(150, 150, 150),
        RGBColor(120, 60, 20),
        RGBColor(90, 0, 140),
        RGBColor(0, 90, 60),
        RGBColor(190, 190, 0),
    ];
    COLOURS[i % COLOURS.len()]
}

/// Numbers on an axis: 20k, 4M, 21.5, 0.25.
pub fn short(value: f64) -> String {
    let of = |unit: f64, digits: usize, name: &str| {
        let text = format!("{:.digits$}", value / unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        big if big >= 1e9 => of(1e9, 1, "G"),
        big if big >= 1e6 => of(1e6, 1, "M"),
        big if big >= 1e3 => of(1e3, 1, "k"),
        number if number >= 100.0 => of(1.0, 1, ""),
        number if number >= 10.0 => of(1.0, 2, ""),
        _ => of(1.0, 3, ""),
    }
}
