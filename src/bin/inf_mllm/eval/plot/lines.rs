//! Panels of lines, one above the other, with one legend beside them.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::canvas::{colour, drawing, short, Figure, FONT};

const WIDTH: u32 = 1000;
const PANEL_HEIGHT: u32 = 330;
const TITLE_HEIGHT: u32 = 44;
const LEGEND_WIDTH: u32 = 300;

/// A line with points; `low` and `high` bound an interval at each of them where there is one.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// In the legend. Lines of one name have one colour.
    pub name: String,
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub interval: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Default)]
pub struct Panel {
    pub x_label: String,
    pub y_label: String,
    pub lines: Vec<Line>,
    /// Names of x = 0, 1, 2, ...; none: x is a number.
    pub categories: Vec<String>,
    /// Smallest and largest y; none: what the lines need.
    pub y_range: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Default)]
pub struct Lines {
    pub title: String,
    pub panels: Vec<Panel>,
}

impl Figure for Lines {
    fn size(&self) -> (u32, u32) {
        (
            WIDTH,
            TITLE_HEIGHT + PANEL_HEIGHT * self.panels.len() as u32,
        )
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()>
    where
        DB::ErrorType: 'static,
    {
        let names = self.names();
        let (head, body) = area.split_vertically(TITLE_HEIGHT);
        let style = (FONT, 20).into_font().color(&BLACK);
        head.draw_text(&self.title, &style, (16, 14))
            .map_err(drawing)?;
        let (body, legend) = body.split_horizontally(WIDTH - LEGEND_WIDTH);
        for (panel, area) in self
            .panels
            .iter()
            .zip(body.split_evenly((self.panels.len(), 1)))
        {
            draw_panel(panel, &names, &area)?;
        }
        for (i, name) in names.iter().enumerate() {
            let y = 24 + 22 * i as i32;
            let line = PathElement::new(vec![(8, y), (34, y)], colour(i).stroke_width(3));
            legend.draw(&line).map_err(drawing)?;
            let style = (FONT, 13).into_font().color(&BLACK);
            legend
                .draw_text(&shortened(name, 38), &style, (42, y - 8))
                .map_err(drawing)?;
        }
        Ok(())
    }
}

impl Lines {
    /// The names in the legend, in the order in which they come.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for line in self.panels.iter().flat_map(|panel| &panel.lines) {
            if !names.contains(&line.name) {
                names.push(line.name.clone());
            }
        }
        names
    }
}

fn draw_panel<DB: DrawingBackend>(
    panel: &Panel,
    names: &[String],
    area: &DrawingArea<DB, Shift>,
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let xs = match panel.categories.len() {
        0 => range(points().map(|point| point.x), 0.02),
        count => -0.4..count as f64 - 0.6,
    };
    let ends = points().flat_map(|point| {
        let (low, high) = point.interval.unwrap_or((point.y, point.y));
        [low, high]
    });
    let ys = panel
        .y_range
        .map_or_else(|| range(ends, 0.05), |(low, high)| low..high);
    let mut chart = ChartBuilder::on(area)
        .margin_top(8)
        .margin_left(14)
        .margin_right(16)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(xs, ys)
        .map_err(drawing)?;
    let category = |x: &f64| {
        let at = x.round();
        let near = (x - at).abs() < 1e-6 && at >= 0.0;
        let name = near.then(|| panel.categories.get(at as usize)).flatten();
        name.cloned().unwrap_or_default()
    };
    let number = |x: &f64| short(*x);
    let x_name: &dyn Fn(&f64) -> String = match panel.categories.is_empty() {
        true => &number,
        false => &category,
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc(&panel.x_label)
        .y_desc(&panel.y_label)
        .x_labels(if panel.categories.is_empty() {
            9
        } else {
            panel.categories.len()
        })
        .y_labels(7)
        .x_label_formatter(x_name)
        .y_label_formatter(&|y| short(*y))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .draw()
        .map_err(drawing)?;
    let shift = 0.012 * panel.lines.len() as f64;
    for (i, line) in panel.lines.iter().enumerate() {
        let place = names.iter().position(|name| *name == line.name);
        let colour = colour(place.unwrap_or(i));
        // Lines over categories stand a little apart, so that their intervals can be told from each other.
        let apart = match panel.categories.is_empty() {
            true => 0.0,
            false => shift * (2.0 * i as f64 / panel.lines.len() as f64 - 1.0),
        };
        let at = |point: &Point| (point.x + apart, point.y);
        let path = line.points.iter().map(at);
        chart
            .draw_series(LineSeries::new(path, colour.stroke_width(2)))
            .map_err(drawing)?;
        if line.points.len() <= 40 {
            let dots = line.points.iter().map(at);
            chart
                .draw_series(dots.map(|at| Circle::new(at, 3, colour.filled())))
                .map_err(drawing)?;
        }
        let intervals = line.points.iter().filter_map(|point| {
            let x = point.x + apart;
            let (low, high) = point.interval?;
            Some(PathElement::new(vec![(x, low), (x, high)], colour))
        });
        chart.draw_series(intervals).map_err(drawing)?;
    }
    Ok(())
}

/// From the smallest to the largest value and a share more on both sides.
fn range(values: impl Iterator<Item = f64>, more: f64) -> Range<f64> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    match high - low {
        span if span > 0.0 => low - more * span..high + more * span,
        _ if low.is_finite() => low - 0.5..low + 0.5,
        _ => 0.0..1.0,
    }
}

fn shortened(name: &str, most: usize) -> String {
    match name.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_string(),
    }
}
