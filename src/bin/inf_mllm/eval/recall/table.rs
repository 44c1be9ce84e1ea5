//! Recall by policy and distance, with intervals, and the paired difference from streaming_llm.

use inf_mllm::eval::recall::{at_distance, hits, kept, outcomes, Answer};
use inf_mllm::eval::stats::Paired;

const BASELINE: &str = "streaming_llm";

pub struct Row {
    pub policy: String,
    pub budget: usize,
    pub answers: Vec<Answer>,
}

pub fn print(rows: &[Row], distances: &[usize]) {
    let columns = || {
        std::iter::once(None)
            .chain(distances.iter().copied().map(Some))
            .map(|distance| {
                (
                    distance,
                    distance.map_or("before".to_string(), |d| d.to_string()),
                )
            })
    };
    print!("{:<40} {:>6}", "% right [95 % interval]", "budget");
    columns().for_each(|(_, name)| print!(" {name:>17}"));
    println!();
    for row in rows {
        print!("{:<40} {:>6}", row.policy, row.budget);
        for (distance, _) in columns() {
            let (share, _) = at_distance(&row.answers, distance);
            print!(" {:>17}", share);
        }
        println!();
    }
    println!("\n% of the facts' tokens that are kept when the question comes, mean");
    for row in rows {
        print!("{:<40} {:>6} {:>17}", row.policy, row.budget, "");
        for &distance in distances {
            let kept = kept(&row.answers, distance);
            print!(" {:>17}", format!("{:.1}", 100.0 * kept));
        }
        println!();
    }
    hit_rates(rows, distances);
    let baseline = |row: &Row| {
        rows.iter()
            .find(|other| other.policy == BASELINE && other.budget == row.budget)
    };
    let compared = rows.iter().filter_map(|row| {
        let baseline = baseline(row).filter(|other| other.policy != row.policy)?;
        Some((row, baseline))
    });
    let compared = compared.collect::<Vec<_>>();
    if compared.is_empty() {
        return;
    }
    println!(
        "\nDifference from {BASELINE} on the same questions, percentage points [95 % interval]"
    );
    for (row, baseline) in compared {
        print!("{:<40} {:>6}", row.policy, row.budget);
        for (distance, _) in columns() {
            let paired = Paired::new(
                &outcomes(&row.answers, distance),
                &outcomes(&baseline.answers, distance),
            );
            let cell = format!(
                "{:+.1} [{:+.1}, {:+.1}]",
                100.0 * paired.difference,
                100.0 * paired.low,
                100.0 * paired.high
            );
            print!(" {cell:>17}");
        }
        println!();
    }
}

/// Of the policies with an archive: how often the fact was in front of the model, and how often it was read right then.
fn hit_rates(rows: &[Row], distances: &[usize]) {
    let recalling = |row: &&Row| row.answers.iter().any(|answer| answer.recalled.is_some());
    let rows = rows.iter().filter(recalling).collect::<Vec<_>>();
    for (i, what) in ["% recalled or still kept", "% right of those"]
        .into_iter()
        .enumerate()
    {
        if rows.is_empty() {
            continue;
        }
        println!("\n{what} [95 % interval]");
        for row in &rows {
            print!("{:<40} {:>6} {:>17}", row.policy, row.budget, "");
            for &distance in distances {
                let share = hits(&row.answers, distance)[i];
                print!(" {:>17}", share);
            }
            println!();
        }
    }
}
