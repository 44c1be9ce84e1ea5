//! Which figures the results give.

use anyhow::Result;
use inf_mllm::eval::ages::Ages;
use inf_mllm::eval::endless::{Block, EndlessResult};
use inf_mllm::eval::feed::Blocks;
use inf_mllm::eval::ppl::PplResult;
use inf_mllm::eval::recall::{at_distance, Answer};

use super::lines::{Line, Lines, Panel, Point};
use super::map::RetentionMap;
use super::records::{labels, Record, Records};
use super::video;

/// Points that a curve by position has at most; more would be noise.
const MOST_POINTS: usize = 24;

/// Figures of lines with their file names.
pub fn lines(records: &Records) -> Result<Vec<(String, Lines)>> {
    let mut figures = perplexity(records)?;
    figures.extend(streams(records)?);
    figures.extend(recall(records)?);
    figures.extend(biases(records)?);
    let drives = video::drives(records)?.into_iter();
    figures.extend(drives.map(|(name, figure)| (file_name(&name), figure)));
    Ok(figures)
}

/// Perplexity by position, its ratio to streaming_llm's (or the first policy's) on the same tokens, and how much is stale.
fn perplexity(records: &Records) -> Result<Vec<(String, Lines)>> {
    let group = |record: &Record| {
        format!(
            "{}, {}, chunk {}",
            record.text("model"),
            record.text("text"),
            record.parameter("chunk")
        )
    };
    let mut figures = Vec::new();
    for (name, cells) in records.groups("ppl", group) {
        let mut budgets = cells
            .iter()
            .filter(|cell| cell.cache("policy") != "full")
            .map(|cell| cell.cache("budget").as_u64().unwrap_or(0))
            .collect::<Vec<_>>();
        budgets.sort_unstable();
        budgets.dedup();
        for budget in budgets {
            let at =
                |cell: &&&Record| cell.cache("policy") == "full" || *cell.cache("budget") == budget;
            let cells = cells.iter().filter(at).copied().collect::<Vec<_>>();
            let mut curves = Vec::new();
            for (label, cell) in labels(&cells).into_iter().zip(&cells) {
                curves.push((label, cell.result::<PplResult>()?));
            }
            for cell in records.all("recomputation") {
                if cell.text("text") == cells[0].text("text")
                    && cell.text("model") == cells[0].text("model")
                    && *cell.parameter("length") == budget
                {
                    curves.push(("recomputation".to_string(), cell.result()?));
                }
            }
            let base = curves
                .iter()
                .find(|(label, _)| label.starts_with("streaming_llm"))
                .or(curves.first())
                .cloned();
            let Some((base_name, base)) = base else {
                continue;
            };
            let own = |result: &PplResult| by_position(&result.blocks, None);
            let over = |result: &PplResult| by_position(&result.blocks, Some(&base.blocks));
            let stale = |result: &PplResult| {
                let ages = result.ages.iter();
                thinned(ages.map(|ages| (ages.at as f64, 100.0 * ages.stale)))
            };
            let panel = |y_label: String, points: &dyn Fn(&PplResult) -> Vec<Point>| Panel {
                x_label: "tokens of the text".to_string(),
                y_label,
                lines: curves
                    .iter()
                    .map(|(label, result)| Line {
                        name: label.clone(),
                        points: points(result),
                    })
                    .collect(),
                ..Panel::default()
            };
            let mut panels = vec![
                panel("perplexity".to_string(), &own),
                panel(format!("perplexity over {base_name}'s"), &over),
                panel("% older than 8 budgets".to_string(), &stale),
            ];
            // So far off, without sinks, that beside it the others would be one line.
            panels[1].lines.retain(|line| line.name != "window");
            // Only every so many blocks are recomputed: a line between them would pass by what is harder or easier between.
            panels[0].lines.retain(|line| line.name != "recomputation");
            panels[2].lines.retain(|line| !line.points.is_empty());
            let title = format!("Perplexity by position: {name}, budget {budget}");
            let file = file_name(&format!("ppl {name} budget {budget}"));
            figures.push((file, Lines { title, panels }));
        }
    }
    Ok(figures)
}

/// Perplexity over stretches of the text, or its ratio to `base` on the blocks that both have.
fn by_position(blocks: &Blocks, base: Option<&Blocks>) -> Vec<Point> {
    let shared = blocks.shared(base.unwrap_or(blocks));
    let stretch = shared.len().div_ceil(MOST_POINTS).max(1);
    shared
        .chunks(stretch)
        .map(|stretch| {
            let count = stretch.len() as f64;
            let mean = |value: &dyn Fn(&(usize, f64, f64)) -> f64| {
                stretch.iter().map(value).sum::<f64>() / count
            };
            let loss = match base {
                Some(_) => mean(&|(_, own, base)| own - base),
                None => mean(&|(_, own, _)| *own),
            };
            Point {
                x: (mean(&|(block, _, _)| *block as f64) + 0.5) * blocks.size as f64,
                y: loss.exp(),
                interval: None,
            }
        })
        .collect()
}

/// Cost by position and freezing by position, one figure each per model and text.
fn streams(records: &Records) -> Result<Vec<(String, Lines)>> {
    let group = |record: &Record| format!("{}, {}", record.text("model"), record.text("text"));
    let mut figures = Vec::new();
    for (name, cells) in records.groups("stream", group) {
        let mut curves = Vec::new();
        for (label, cell) in labels(&cells).into_iter().zip(&cells) {
            curves.push((label, cell.result::<EndlessResult>()?.blocks));
        }
        let panel = |y_label: &str, value: &dyn Fn(&Block) -> Option<f64>| Panel {
            x_label: "tokens of the stream".to_string(),
            y_label: y_label.to_string(),
            lines: curves
                .iter()
                .map(|(label, blocks)| Line {
                    name: label.clone(),
                    points: thinned(
                        blocks
                            .iter()
                            .filter_map(|block| Some((block.at as f64, value(block)?))),
                    ),
                })
                .collect(),
            ..Panel::default()
        };
        let ages = |value: fn(&Ages) -> f64| move |block: &Block| block.ages.as_ref().map(value);
        let cost = vec![
            panel("ms per token", &|block| Some(block.ms_per_token)),
            panel("keys seen per token", &|block| {
                Some(block.attended_per_token)
            }),
            panel("cache, MB", &|block| Some(block.bytes as f64 / 1e6)),
        ];
        let age = vec![
            panel("% older than 8 budgets", &ages(|ages| 100.0 * ages.stale)),
            panel("mean age, tokens", &ages(|ages| ages.mean)),
            panel("loss, nats per token", &|block| Some(block.loss)),
        ];
        for (kind, what, panels) in [
            ("cost", "Cost by position", cost),
            ("ages", "Age of what is kept, and loss", age),
        ] {
            let title = format!("{what}: {name}");
            figures.push((
                file_name(&format!("{kind} {name}")),
                Lines { title, panels },
            ));
        }
    }
    Ok(figures)
}

/// Means over stretches, so that a curve stays readable.
fn thinned(points: impl Iterator<Item = (f64, f64)>) -> Vec<Point> {
    let points = points.collect::<Vec<_>>();
    points
        .chunks(points.len().div_ceil(4 * MOST_POINTS).max(1))
        .map(|stretch| Point {
            x: stretch.iter().map(|point| point.0).sum::<f64>() / stretch.len() as f64,
            y: stretch.iter().map(|point| point.1).sum::<f64>() / stretch.len() as f64,
            interval: None,
        })
        .collect()
}

/// Recall by distance with its intervals.
fn recall(records: &Records) -> Result<Vec<(String, Lines)>> {
    let group = |record: &Record| {
        let standing = match record.parameter("standing").is_null() {
            true => "",
            false => ", with a standing instruction",
        };
        format!(
            "{}, {}{standing}",
            record.text("model"),
            record.text("text")
        )
    };
    let mut figures = Vec::new();
    for (name, cells) in records.groups("recall", group) {
        let asked_at = |cell: &Record| {
            let distances = cell.parameter("distances").as_array();
            let distances = distances.into_iter().flatten().filter_map(|d| d.as_u64());
            distances.collect::<Vec<_>>()
        };
        let all = cells.iter().flat_map(|cell| asked_at(cell));
        let mut distances = all.collect::<Vec<_>>();
        distances.sort_unstable();
        distances.dedup();
        let mut lines = Vec::new();
        for (label, cell) in labels(&cells).into_iter().zip(&cells) {
            let answers = cell.result::<Vec<Answer>>()?;
            let own = asked_at(cell);
            let there = distances.iter().enumerate();
            let there = there.filter(|(_, distance)| own.contains(distance));
            let points = there.map(|(i, &distance)| {
                let (share, _) = at_distance(&answers, Some(distance as usize));
                Point {
                    x: i as f64,
                    y: 100.0 * share.share,
                    interval: Some((100.0 * share.low, 100.0 * share.high)),
                }
            });
            lines.push(Line {
                name: label,
                points: points.collect(),
            });
        }
        let panel = Panel {
            x_label: "tokens between the fact and the question".to_string(),
            y_label: "% right, 95 % intervals".to_string(),
            lines,
            categories: distances.iter().map(u64::to_string).collect(),
            y_range: Some((0.0, 100.0)),
        };
        let title = format!("Recall by distance: {name}");
        let panels = vec![panel];
        figures.push((
            file_name(&format!("recall {name}")),
            Lines { title, panels },
        ));
    }
    Ok(figures)
}

/// The ablation of the bias: perplexity on both parts and the share of stale tokens at the end of part B.
fn biases(records: &Records) -> Result<Vec<(String, Lines)>> {
    let group = |record: &Record| format!("{}, {}", record.text("model"), record.text("text"));
    let mut figures = Vec::new();
    for (name, cells) in records.groups("sweep", group) {
        // Cells that differ from the first, which has bias 0, in nothing but the bias.
        let others = ["n_recent", "query_window", "scope", "budget"];
        let like_first = |cell: &&Record| others.iter().all(|p| cell.cache(p) == cells[0].cache(p));
        let cells = cells.iter().copied().filter(like_first).collect::<Vec<_>>();
        let mut categories: Vec<String> = Vec::new();
        let mut parts: Vec<Line> = Vec::new();
        let mut stale: Vec<Line> = Vec::new();
        for cell in &cells {
            let form = cell.cache("bias_form").as_str().unwrap_or("");
            let category = match cell.cache("bias").as_f64() {
                Some(bias) if bias > 0.0 => format!("{form} {bias}"),
                _ => "0".to_string(),
            };
            let known = categories.iter().position(|known| *known == category);
            let x = known.unwrap_or_else(|| {
                categories.push(category);
                categories.len() - 1
            });
            let part = cell.parameter("part").as_str().unwrap_or("");
            let part = format!("{form}, part {part}");
            let result = cell.result::<PplResult>()?;
            let add = |lines: &mut Vec<Line>, y: f64| {
                let point = Point {
                    x: x as f64,
                    y,
                    interval: None,
                };
                match lines.iter_mut().find(|line| line.name == part) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line {
                        name: part.clone(),
                        points: vec![point],
                    }),
                }
            };
            add(&mut parts, result.perplexity);
            let last = result.ages.last().map_or(0.0, |ages| ages.stale);
            add(&mut stale, 100.0 * last);
        }
        let panel = |y_label: &str, lines| Panel {
            x_label: "bias".to_string(),
            y_label: y_label.to_string(),
            lines,
            categories: categories.clone(),
            y_range: None,
        };
        let panels = vec![
            panel("perplexity", parts),
            panel("% older than 8 budgets at the end", stale),
        ];
        let title = format!("The age bias of inf_mllm: {name}");
        figures.push((file_name(&format!("bias {name}")), Lines { title, panels }));
    }
    Ok(figures)
}

/// A retention map for every stream.
pub fn maps(records: &Records) -> Result<Vec<(String, RetentionMap)>> {
    let mut maps = Vec::new();
    let group = |record: &Record| format!("{}, {}", record.text("model"), record.text("text"));
    for (name, cells) in records.groups("stream", group) {
        for (label, cell) in labels(&cells).into_iter().zip(&cells) {
            let columns = cell.result::<EndlessResult>()?.blocks.into_iter();
            let columns = columns
                .filter_map(|block| Some((block.at as f64, block.ages?.histogram)))
                .collect();
            let title = format!(
                "What is kept: {label}, budget {}, {name}",
                cell.cache("budget")
            );
            let file = file_name(&format!("kept {name} {label}"));
            maps.push((file, RetentionMap { title, columns }));
        }
    }
    Ok(maps)
}

/// Lower case, words joined by hyphens.
fn file_name(text: &str) -> String {
    text.to_lowercase()
        .split(|c: char| !(c.is_alphanumeric() || c == '.' || c == '_'))
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}
