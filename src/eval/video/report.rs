//! Lanes summed up: by how long ago an answer was in view, and by type of question.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cell::Cell;
use super::lane::{Answered, Shown};
use super::way::Way;
use crate::eval::stats::{Paired, Share};

/// A question among those of several drives: the drive's name, the instruction's id.
type Key = (String, String);

/// A lane's answers on all drives.
#[derive(Debug, Clone)]
pub struct Lane {
    pub name: String,
    pub shown: Shown,
    /// The name of the lane that differs in having no recall.
    pub without_recall: Option<String>,
    answers: BTreeMap<Key, Answered>,
}

impl Lane {
    pub fn new(name: String, shown: Shown) -> Self {
        Self {
            name,
            shown,
            without_recall: None,
            answers: BTreeMap::new(),
        }
    }

    /// Adds what the lane answered on one drive.
    pub fn add(&mut self, drive: &str, answers: &[Answered]) {
        for answer in answers {
            let key = (drive.to_string(), answer.id.clone());
            self.answers.insert(key, answer.clone());
        }
    }

    /// Right or wrong in a group of questions, in a fixed order.
    fn outcomes<'a>(
        &'a self,
        group: &'a dyn Fn(&Answered) -> bool,
    ) -> impl Iterator<Item = (&'a Key, bool)> {
        let there = self.answers.iter().filter(|(_, answer)| group(answer));
        there.map(|(key, answer)| (key, answer.right))
    }

    fn right(&self, key: &Key) -> Option<bool> {
        self.answers.get(key).map(|answer| answer.right)
    }
}

/// One lane in one group of questions.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// A cell, or a type of question.
    pub group: String,
    pub right: Share,
    /// From floor to oracle, on the questions that those two answered too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// How often the answer was in front of the model, kept or recalled, and how often it was right then; not under black images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_front: Option<[Share; 2]>,
    /// With recall against without, on the questions that both answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gained: Option<Paired>,
}

/// One lane.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub lane: String,
    pub shown: Shown,
    /// As [`Report::cells`] lists them.
    pub cells: Vec<Figure>,
    /// As [`Report::types`] lists them.
    pub types: Vec<Figure>,
}

/// All lanes, the figures of each in the same order.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Those that were asked about.
    pub cells: Vec<Cell>,
    pub types: Vec<String>,
    pub rows: Vec<Row>,
}

impl Report {
    /// Rows come in the order of `lanes`. The first lane of black images is the floor, the first oracle the ceiling.
    pub fn of(lanes: &[Lane]) -> Self {
        let all = || lanes.iter().flat_map(|lane| lane.answers.values());
        let mut cells = all().map(|answer| answer.cell).collect::<Vec<_>>();
        cells.sort_unstable();
        cells.dedup();
        let mut types = all().map(|answer| answer.kind.clone()).collect::<Vec<_>>();
        types.sort_unstable();
        types.dedup();
        let rows = lanes.iter().map(|lane| Row {
            lane: lane.name.clone(),
            shown: lane.shown,
            cells: cells
                .iter()
                .map(|&cell| figure(lanes, lane, cell.name(), &|answer| answer.cell == cell))
                .collect(),
            types: types
                .iter()
                .map(|kind| figure(lanes, lane, kind, &|answer| answer.kind == *kind))
                .collect(),
        });
        Self {
            rows: rows.collect(),
            cells,
            types,
        }
    }
}

fn figure(lanes: &[Lane], lane: &Lane, name: &str, group: &dyn Fn(&Answered) -> bool) -> Figure {
    let outcomes = || lane.outcomes(group);
    let right = outcomes().filter(|(_, right)| *right).count();
    let of_kind = |shown| lanes.iter().find(|lane| lane.shown == shown);
    let ends = of_kind(Shown::Black).zip(of_kind(Shown::Oracle));
    let ends = ends.filter(|_| lane.shown == Shown::Drive);
    let way = ends.map(|(floor, oracle)| {
        let common = outcomes()
            .filter_map(|(key, right)| Some([right, floor.right(key)?, oracle.right(key)?]));
        Way::of(&common.collect::<Vec<_>>())
    });
    let without = lane.without_recall.as_ref();
    let without = without.and_then(|name| lanes.iter().find(|lane| lane.name == *name));
    let gained = without.map(|without| {
        let common = outcomes().filter_map(|(key, right)| Some((right, without.right(key)?)));
        let (with, without): (Vec<_>, Vec<_>) = common.unzip();
        Paired::new(&with, &without)
    });
    Figure {
        group: name.to_string(),
        right: Share::wilson(right, outcomes().count()),
        way,
        in_front: in_front(lane, group),
        gained,
    }
}

fn in_front(lane: &Lane, group: &dyn Fn(&Answered) -> bool) -> Option<[Share; 2]> {
    if lane.shown == Shown::Black {
        return None;
    }
    let there = lane.answers.values().filter(|answer| group(answer));
    let in_front = there.clone().filter(|answer| answer.in_front);
    let right = in_front.clone().filter(|answer| answer.right).count();
    let (in_front, of) = (in_front.count(), there.count());
    Some([Share::wilson(in_front, of), Share::wilson(right, in_front)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `right`: of questions a, b, ...
    fn lane(name: &str, shown: Shown, drive: &str, right: &str) -> Lane {
        let mut lane = Lane::new(name.to_string(), shown);
        let answers = right.chars().zip('a'..).map(|(right, id)| Answered {
            id: id.to_string(),
            cell: if id < 'e' { Cell::Seconds5 } else { Cell::Now },
            kind: if id < 'c' { "seen" } else { "side" }.to_string(),
            age: 5.0,
            text: String::new(),
            right: right == '+',
            in_front: (id as u32).is_multiple_of(2),
            recalled: None,
        });
        lane.add(drive, &answers.collect::<Vec<_>>());
        lane
    }

    #[test]
    fn lanes_are_held_against_floor_and_oracle_and_each_other_question_by_question() {
        let mut recall = lane("h2o+recall", Shown::Drive, "one", "+-+++");
        recall.without_recall = Some("h2o".to_string());
        let lanes = [
            lane("floor", Shown::Black, "one", "+---+"),
            lane("oracle", Shown::Oracle, "one", "+++++"),
            lane("h2o", Shown::Drive, "one", "+--+-"),
            recall,
        ];
        let report = Report::of(&lanes);
        assert_eq!(report.cells, [Cell::Now, Cell::Seconds5]);
        assert_eq!(report.types, ["seen", "side"]);
        let [floor, _, plain, recall] = report.rows.as_slice() else {
            panic!("{} rows", report.rows.len())
        };
        assert!(floor.cells.iter().all(|figure| figure.way.is_none()));
        // Of a to d the floor has one, the oracle four; these two and three.
        let [now, past] = plain.cells.as_slice() else {
            panic!("{:?}", plain.cells)
        };
        assert_eq!((past.right.right, past.right.of), (2, 4));
        assert_eq!(past.way.unwrap().share, Some(1.0 / 3.0));
        assert_eq!(now.way.unwrap().share, None);
        assert!(past.gained.is_none());
        assert_eq!(recall.cells[1].way.unwrap().share, Some(2.0 / 3.0));
        let gained = recall.cells[1].gained.unwrap();
        assert_eq!((gained.only_first, gained.only_second), (1, 0));
        assert_eq!(recall.types[1].right.of, 3);
        // Of a to d, b and d are in front, of which d is right.
        let [in_front, right] = recall.cells[1].in_front.unwrap();
        assert_eq!((in_front.right, in_front.of), (2, 4));
        assert_eq!((right.right, right.of), (1, 2));
        assert!(floor.cells[1].in_front.is_none());
    }

    #[test]
    fn questions_of_one_id_on_two_drives_are_two() {
        let mut both = lane("h2o", Shown::Drive, "one", "+");
        let other = lane("h2o", Shown::Drive, "two", "-");
        both.add("two", &other.answers.into_values().collect::<Vec<_>>());
        let floor = lane("floor", Shown::Black, "one", "-");
        let oracle = lane("oracle", Shown::Oracle, "one", "+");
        let report = Report::of(&[both, floor, oracle]);
        let figure = &report.rows[0].cells[0];
        assert_eq!((figure.right.right, figure.right.of), (1, 2));
        // The second drive has no floor yet.
        assert_eq!(figure.way.unwrap().of, 1);
    }
}
