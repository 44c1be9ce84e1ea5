//! Recall by policy and distance, with intervals, and the paired difference from streaming_llm.

use inf_mllm::eval::recall::{at_distance, kept, outcomes, Answer};
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
            let cell = format!(
                "{:.1} [{:.1}, {:.1}]",
                100.0 * share.share,
                100.0 * share.low,
                100.0 * share.high
            );
            print!(" {cell:>17}");
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
    let baseline = |row: &Row| {
        rows.iter()
            .find(|other| other.policy == BASELINE && other.budget == row.budget)
    };
    println!(
        "\nDifference from {BASELINE} on the same questions, percentage points [95 % interval]"
    );
    for row in rows {
        let Some(baseline) = baseline(row).filter(|other| other.policy != row.policy) else {
            continue;
        };
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
