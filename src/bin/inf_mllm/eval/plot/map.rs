//! The retention map: which ages the kept tokens had, along the stream.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::canvas::{drawing, short, Figure, FONT};

const SIZE: (u32, u32) = (1000, 460);
const TITLE_HEIGHT: u32 = 44;
const SCALE_WIDTH: u32 = 110;

/// Columns of a map: kept tokens by age at a place in the stream.
#[derive(Debug, Clone)]
pub struct RetentionMap {
    pub title: String,
    /// Tokens of the stream at the end of each column, and kept tokens per kept set in each bin of age: bin `i` holds the ages
    /// `2^(i-1) .. 2^i`.
    pub columns: Vec<(f64, Vec<f64>)>,
}

impl Figure for RetentionMap {
    fn size(&self) -> (u32, u32) {
        SIZE
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()>
    where
        DB::ErrorType: 'static,
    {
        let end = self.columns.last().map_or(1.0, |(at, _)| *at);
        let bins = self.columns.iter().map(|(_, kept)| kept.len()).max();
        let bins = bins.unwrap_or(1);
        let most = self.columns.iter().flat_map(|(_, kept)| kept);
        let most = most.copied().fold(1.0, f64::max);
        let (head, body) = area.split_vertically(TITLE_HEIGHT);
        let style = (FONT, 20).into_font().color(&BLACK);
        head.draw_text(&self.title, &style, (16, 14))
            .map_err(drawing)?;
        let (body, scale) = body.split_horizontally(SIZE.0 - SCALE_WIDTH);
        let mut chart = ChartBuilder::on(&body)
            .margin_top(8)
            .margin_left(14)
            .margin_right(16)
            .x_label_area_size(52)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..end, 0.0..bins as f64)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("tokens of the stream")
            .y_desc("age of kept tokens, tokens")
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|bin| short(2f64.powf(bin - 1.0).floor()))
            .y_labels(bins.min(12))
            .label_style((FONT, 13))
            .axis_desc_style((FONT, 14))
            .draw()
            .map_err(drawing)?;
        let mut from = 0.0;
        for (at, kept) in &self.columns {
            let cells = kept.iter().enumerate().filter(|(_, &kept)| kept > 0.0);
            chart
                .draw_series(cells.map(|(bin, &kept)| {
                    let corners = [(from, bin as f64), (*at, bin as f64 + 1.0)];
                    Rectangle::new(corners, shade(kept, most).filled())
                }))
                .map_err(drawing)?;
            from = *at;
        }
        draw_scale(most, &scale)
    }
}

/// Logarithmic, so that the last few old tokens are seen beside hundreds of young ones.
fn shade(kept: f64, most: f64) -> RGBColor {
    const LEAST: f64 = 0.01;
    let share = ((kept / LEAST).max(1.0).ln() / (most / LEAST).ln()).clamp(0.0, 1.0);
    let between = |from: f64, to: f64| (from + (to - from) * share) as u8;
    RGBColor(
        between(235.0, 10.0),
        between(243.0, 40.0),
        between(250.0, 110.0),
    )
}

fn draw_scale<DB: DrawingBackend>(most: f64, area: &DrawingArea<DB, Shift>) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let style = (FONT, 13).into_font().color(&BLACK);
    area.draw_text("tokens kept", &style, (4, 10))
        .map_err(drawing)?;
    let steps = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0];
    let shown = steps.into_iter().filter(|&kept| kept <= most);
    for (i, kept) in shown.enumerate() {
        let y = 34 + 24 * i as i32;
        let swatch = Rectangle::new([(4, y), (24, y + 16)], shade(kept, most).filled());
        area.draw(&swatch).map_err(drawing)?;
        area.draw_text(&format!("{kept}"), &style, (32, y + 2))
            .map_err(drawing)?;
    }
    Ok(())
}
