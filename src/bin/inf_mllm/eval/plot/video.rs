//! Drives: the share of the way from floor to oracle by how long ago an answer was in view, and floor and oracle themselves.

use anyhow::Result;
use inf_mllm::eval::video::cell::Cell;
use inf_mllm::eval::video::lane::{LaneResult, Shown};
use inf_mllm::eval::video::report::{Figure, Lane, Report, Row};

use super::lines::{Line, Lines, Panel, Point};
use super::records::{labels, Record, Records};

/// Above and below the points of the way there is so much room, %; intervals of few questions reach far beyond it.
const ROOM: f64 = 15.0;

/// What the name of a policy with recall ends with.
const RECALL: &str = "+recall";

/// A figure's value with its interval, %.
type Value = dyn Fn(&Figure) -> Option<(f64, f64, f64)>;

/// One figure for each model and budget.
pub fn drives(records: &Records) -> Result<Vec<(String, Lines)>> {
    let group = |record: &Record| {
        format!(
            "{} {}, budget {}",
            record.text("model"),
            record.text("weights").get(..6).unwrap_or_default(),
            record.cache("budget")
        )
    };
    let mut figures = Vec::new();
    for (name, cells) in records.groups("video", group) {
        let report = Report::of(&lanes(&cells)?);
        let past = report.cells.iter().enumerate();
        let past = past.filter(|(_, cell)| cell.is_past());
        let past = past.map(|(i, &cell)| (i, cell)).collect::<Vec<_>>();
        let figures_of_past = |row: &Row| {
            let cells = past.iter().map(|&(i, _)| row.cells[i].clone());
            cells.collect::<Vec<_>>()
        };
        let ways = report.rows.iter().flat_map(figures_of_past);
        let ways = ways.filter_map(|figure| Some(way(&figure)?.0));
        let range = ways.fold((0.0f64, 100.0f64), |(low, high), way| {
            (low.min(way), high.max(way))
        });
        let range = (range.0 - ROOM, range.1 + ROOM);
        let mut panels = Vec::new();
        for recall in [false, true] {
            let rows = report
                .rows
                .iter()
                .filter(|row| row.shown == Shown::Drive && row.lane.contains(RECALL) == recall);
            let what = match recall {
                true => "with recall: % of the way",
                false => "% of the way",
            };
            panels.push(panel(what, rows, &past, range, &way));
        }
        let ends = report.rows.iter().filter(|row| row.shown != Shown::Drive);
        panels.push(panel("% right", ends, &past, (0.0, 100.0), &right));
        panels.retain(|panel| panel.lines.iter().any(|line| !line.points.is_empty()));
        if !panels.is_empty() {
            let title =
                format!("From black images (floor) to the right frames fed again (oracle): {name}");
            figures.push((format!("video {name}"), Lines { title, panels }));
        }
    }
    Ok(figures)
}

/// The records of one model as lanes, each with all its bags.
fn lanes(records: &[&Record]) -> Result<Vec<Lane>> {
    let mut seen: Vec<&Record> = Vec::new();
    let of = |record: &Record| {
        let parts = ["frames", "cache", "archive"];
        parts.map(|part| record.parameter(part).clone())
    };
    for record in records {
        if seen.iter().all(|other| of(other) != of(record)) {
            seen.push(record);
        }
    }
    // Floor and oracle are no policies to be told from the others.
    let (policies, ends): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .partition(|record| shown(record).is_ok_and(|shown| shown == Shown::Drive));
    let names = ends.iter().map(|record| match shown(record) {
        Ok(Shown::Oracle) => "oracle".to_string(),
        _ => "floor".to_string(),
    });
    let names = names.chain(labels(&policies)).collect::<Vec<_>>();
    let mut lanes = Vec::new();
    for (name, first) in names.into_iter().zip(ends.iter().chain(&policies)) {
        let mut lane = Lane::new(name, shown(first)?);
        for record in records.iter().filter(|record| of(record) == of(first)) {
            let bag = format!("{} {}", record.text("bag"), record.text("content"));
            lane.add(&bag, &record.result::<LaneResult>()?.answers);
        }
        lanes.push(lane);
    }
    Ok(lanes)
}

fn shown(record: &Record) -> Result<Shown> {
    Ok(serde_json::from_value(record.parameter("frames").clone())?)
}

fn panel<'a>(
    y_label: &str,
    rows: impl Iterator<Item = &'a Row>,
    past: &[(usize, Cell)],
    (least, most): (f64, f64),
    value: &Value,
) -> Panel {
    let lines = rows.map(|row| {
        let points = past.iter().enumerate().filter_map(|(x, &(cell, _))| {
            let (y, low, high) = value(&row.cells[cell])?;
            Some(Point {
                x: x as f64,
                y,
                interval: Some((low.max(least), high.min(most))),
            })
        });
        Line {
            name: row.lane.replacen(RECALL, "", 1),
            points: points.collect(),
        }
    });
    Panel {
        x_label: "how long ago the answer was in view".to_string(),
        y_label: format!("{y_label}, 95 % intervals"),
        lines: lines.collect(),
        categories: past
            .iter()
            .map(|(_, cell)| cell.name().to_string())
            .collect(),
        y_range: Some((least, most)),
    }
}

fn way(figure: &Figure) -> Option<(f64, f64, f64)> {
    let way = figure.way.as_ref()?;
    let low = way.low.map_or(f64::NEG_INFINITY, |low| 100.0 * low);
    let high = way.high.map_or(f64::INFINITY, |high| 100.0 * high);
    Some((100.0 * way.share?, low, high))
}

fn right(figure: &Figure) -> Option<(f64, f64, f64)> {
    let share = &figure.right;
    let percents = [share.share, share.low, share.high].map(|share| 100.0 * share);
    let [own, low, high] = percents;
    (share.of > 0).then_some((own, low, high))
}
