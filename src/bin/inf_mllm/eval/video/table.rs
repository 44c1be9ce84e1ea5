//! The report as Markdown tables, a row for each lane.

use std::fmt::Write;

use inf_mllm::eval::stats::Share;
use inf_mllm::eval::video::report::{Figure, Report, Row};

/// What a lane's figures are shown as; none: nothing is known.
type Show = dyn Fn(&Figure) -> Option<String>;

pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    let cells = |row: &Row| row.cells.clone();
    let types = |row: &Row| row.types.clone();
    let names = report.cells.iter().map(|cell| cell.name().to_string());
    let names = names.collect::<Vec<_>>();
    for (by, names, figures) in [
        (
            "how long ago the answer was in view",
            &names,
            &cells as &dyn Fn(&Row) -> Vec<Figure>,
        ),
        ("type of question", &report.types, &types),
    ] {
        let mut table = |title: &str, show: &Show| {
            add(
                &mut text,
                &format!("{title}, by {by}"),
                report,
                names,
                figures,
                show,
            );
        };
        table("% right [95 % interval]", &|figure| percent(&figure.right));
        table("% of the way from floor to oracle [95 % interval]", &way);
        table(
            "% with the answer in front of the model, kept or recalled [95 % interval]",
            &|figure| percent(&figure.in_front?[0]),
        );
        table("% right of those [95 % interval]", &|figure| {
            percent(&figure.in_front?[1])
        });
        table(
            "With recall against without, percentage points [95 % interval]",
            &gained,
        );
    }
    text
}

/// A table, if any lane has anything to show in it.
fn add(
    text: &mut String,
    title: &str,
    report: &Report,
    names: &[String],
    figures: &dyn Fn(&Row) -> Vec<Figure>,
    show: &Show,
) {
    let mut rows = Vec::new();
    for row in &report.rows {
        let shown = figures(row).iter().map(show).collect::<Vec<_>>();
        if shown.iter().any(Option::is_some) {
            let shown = shown
                .into_iter()
                .map(|cell| cell.unwrap_or_else(|| "-".to_string()));
            rows.push((row.lane.clone(), shown.collect::<Vec<_>>()));
        }
    }
    if rows.is_empty() {
        return;
    }
    let counts = report.rows.iter().map(|row| {
        let counts = figures(row).into_iter().map(|figure| figure.right.of);
        counts.collect::<Vec<_>>()
    });
    let most = counts.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| *a.max(b)).collect());
    let heads = names.iter().zip(most.unwrap_or_default());
    let heads = heads.map(|(name, count)| format!("{name} ({count})"));
    let line = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    // Writing to a text cannot fail.
    let _ = writeln!(text, "\n{title}\n");
    text.push_str(&line("questions", heads.collect()));
    text.push_str(&line("---", vec!["---:".to_string(); names.len()]));
    for (lane, cells) in rows {
        text.push_str(&line(&lane, cells));
    }
}

fn percent(share: &Share) -> Option<String> {
    let [own, low, high] = [share.share, share.low, share.high].map(|share| 100.0 * share);
    (share.of > 0).then(|| format!("{own:.1} [{low:.0}, {high:.0}]"))
}

fn way(figure: &Figure) -> Option<String> {
    let way = figure.way.as_ref()?;
    let end = |end: Option<f64>| end.map_or("?".to_string(), |end| format!("{:.0}", 100.0 * end));
    let share = way.share?;
    Some(format!(
        "{:.0} [{}, {}]",
        100.0 * share,
        end(way.low),
        end(way.high)
    ))
}

fn gained(figure: &Figure) -> Option<String> {
    let gained = figure.gained.as_ref()?;
    let [difference, low, high] =
        [gained.difference, gained.low, gained.high].map(|share| format!("{:+.1}", 100.0 * share));
    Some(format!("{difference} [{low}, {high}]"))
}
