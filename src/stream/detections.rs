//! Boxes and points in an answer's text, in the pixels of the camera's picture.
//!
//! Only what a family is published to write is read, as one table says; what is not written so is no detection. Which of these forms is a
//! checkpoint's follows from its family, not from the text.

use serde::Serialize;
use serde_json::Value;

/// How a family writes boxes and points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// `<|object_ref_start|>LABEL<|object_ref_end|><|box_start|>(x0,y0),(x1,y1)<|box_end|>`; the label may be missing.
    ControlTokens,
    /// A list of objects with `bbox_2d` or `point_2d`, and `label`; in a fence of Markdown or not.
    Json,
}

/// What its coordinates count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Thousandths of the picture's width and height.
    Thousandths,
    /// Pixels of the picture at the size that the tower takes.
    TowerPixels,
}

/// How a checkpoint writes boxes and points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub notation: Notation,
    pub scale: Scale,
}

/// By the names of families; those that are not here write none in a published form. Sources: the model cards and cookbooks of Qwen2-VL
/// (arXiv 2409.12191, 2.2), Qwen2.5-VL (arXiv 2502.13923, 2.1) and Qwen3-VL, of which Cosmos 3 has come; Qwen3.5:
/// its developers in issue 4 of QwenLM/Qwen3.8-Flash-Next.
const FORMATS: [(&str, Format); 5] = [
    (
        "Qwen2-VL",
        Format {
            notation: Notation::ControlTokens,
            scale: Scale::Thousandths,
        },
    ),
    (
        "Qwen2.5-VL",
        Format {
            notation: Notation::Json,
            scale: Scale::TowerPixels,
        },
    ),
    (
        "Qwen3-VL",
        Format {
            notation: Notation::Json,
            scale: Scale::Thousandths,
        },
    ),
    (
        "Qwen3.5",
        Format {
            notation: Notation::Json,
            scale: Scale::Thousandths,
        },
    ),
    (
        "Cosmos 3",
        Format {
            notation: Notation::Json,
            scale: Scale::Thousandths,
        },
    ),
];

/// More boxes and points than that of one answer are dropped.
const MOST: usize = 1000;

/// Something in a picture, and where.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detection {
    /// What it is; empty where the answer does not say.
    pub label: String,
    /// Left, top, right and bottom edge, pixels of the camera's picture; of a point left is right, and top is bottom.
    pub edges: [f64; 4],
}

/// What an answer's text holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detections {
    pub found: Vec<Detection>,
    /// Boxes and points that are not in the picture, or are none.
    pub dropped: usize,
    /// It is a list without entries: what was asked for is not in the picture.
    pub none: bool,
}

/// Sizes (width, height) of the picture that an answer speaks of, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// As it came from the camera.
    pub camera: (usize, usize),
    /// As the tower took it.
    pub tower: (usize, usize),
}

impl Format {
    /// That of a family; none where it writes no boxes.
    pub fn of_family(name: &str) -> Option<Self> {
        let row = FORMATS.iter().find(|(family, _)| *family == name);
        row.map(|(_, format)| *format)
    }

    /// The boxes and points of an answer. `text` is its text, with the control tokens where the notation has such.
    pub fn read(&self, text: &str, sizes: Sizes) -> Detections {
        let mut detections = Detections::default();
        let written = match self.notation {
            Notation::ControlTokens => in_control_tokens(text),
            Notation::Json => {
                let objects = in_json(text);
                detections.none = objects.as_ref().is_some_and(Vec::is_empty);
                objects.iter().flatten().filter_map(placed).collect()
            }
        };
        for (label, numbers) in written {
            let edges = numbers.and_then(|numbers| self.scale.edges(&numbers, sizes));
            match edges.filter(|_| detections.found.len() < MOST) {
                Some(edges) => detections.found.push(Detection { label, edges }),
                None => detections.dropped += 1,
            }
        }
        detections
    }
}

impl Scale {
    /// Edges in the camera's picture, of two numbers (a point) or four; none where they are outside of it or in a wrong order.
    fn edges(self, numbers: &[f64], sizes: Sizes) -> Option<[f64; 4]> {
        let whole = match self {
            Self::Thousandths => (1000, 1000),
            Self::TowerPixels => sizes.tower,
        };
        let along = |number: f64, whole: usize, camera: usize| {
            let inside = whole > 0 && (0.0..=whole as f64).contains(&number);
            inside.then(|| number / whole as f64 * camera as f64)
        };
        let across = |number| along(number, whole.0, sizes.camera.0);
        let down = |number| along(number, whole.1, sizes.camera.1);
        match *numbers {
            [x, y] => {
                let (x, y) = (across(x)?, down(y)?);
                Some([x, y, x, y])
            }
            [left, top, right, bottom] if left < right && top < bottom => {
                Some([across(left)?, down(top)?, across(right)?, down(bottom)?])
            }
            _ => None,
        }
    }
}

/// A label, and its numbers where they are numbers.
type Written = (String, Option<Vec<f64>>);

fn in_control_tokens(text: &str) -> Vec<Written> {
    let between = |text: &str, start: &str, end: &str| -> Option<(usize, usize)> {
        let from = text.find(start)? + start.len();
        let to = from + text[from..].find(end)?;
        Some((from, to))
    };
    let mut written = Vec::new();
    let (mut rest, mut label) = (text, String::new());
    while let Some((from, to)) = between(rest, "<|box_start|>", "<|box_end|>") {
        // Several boxes may follow one label.
        let before = &rest[..from];
        if let Some(at) = before.rfind("<|object_ref_start|>") {
            let named = between(&before[at..], "<|object_ref_start|>", "<|object_ref_end|>");
            label = named.map_or_else(String::new, |(from, to)| {
                before[at..][from..to].trim().to_string()
            });
        }
        written.push((label.clone(), corners(&rest[from..to])));
        rest = &rest[to..];
    }
    written
}

/// The numbers of `(x0,y0),(x1,y1)`.
fn corners(text: &str) -> Option<Vec<f64>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    let (first, second) = inner.split_once("),(").or(inner.split_once("), ("))?;
    let numbers = [first, second].into_iter().flat_map(|pair| pair.split(','));
    let numbers = numbers.map(|number| number.trim().parse().ok());
    let numbers = numbers.collect::<Option<Vec<f64>>>()?;
    (numbers.len() == 4).then_some(numbers)
}

/// The entries of a list, or what stands alone; none where the text is no JSON of that kind.
fn in_json(text: &str) -> Option<Vec<Value>> {
    let text = match text.split_once("```") {
        Some((_, fenced)) => {
            let (fenced, _) = fenced.split_once("```")?;
            fenced.strip_prefix("json").unwrap_or(fenced)
        }
        None => text,
    };
    match serde_json::from_str(text.trim()).ok()? {
        Value::Array(entries) => Some(entries),
        object @ Value::Object(_) => Some(vec![object]),
        _ => None,
    }
}

/// The label of an entry and its numbers; none where it has no box and no point.
fn placed(entry: &Value) -> Option<Written> {
    let (numbers, count) = match (entry.get("bbox_2d"), entry.get("point_2d")) {
        (Some(numbers), _) => (numbers, 4),
        (None, Some(numbers)) => (numbers, 2),
        (None, None) => return None,
    };
    let numbers = numbers.as_array().filter(|numbers| numbers.len() == count);
    let numbers = numbers.and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
    let label = entry.get("label").and_then(Value::as_str);
    Some((label.unwrap_or_default().trim().to_string(), numbers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: Sizes = Sizes {
        camera: (640, 480),
        tower: (320, 240),
    };

    fn read(family: &str, text: &str) -> Detections {
        Format::of_family(family).unwrap().read(text, SIZES)
    }

    fn found(label: &str, edges: [f64; 4]) -> Detection {
        Detection {
            label: label.to_string(),
            edges,
        }
    }

    #[test]
    fn boxes_and_points_are_read_as_each_family_writes_them() {
        let text = "<|object_ref_start|>the cup<|object_ref_end|><|box_start|>(100,200),(500,1000)<|box_end|> and \
                    <|box_start|>(0, 0), (10, 10)<|box_end|><|object_ref_start|>a hand<|object_ref_end|>\
                    <|box_start|>(900,0),(1000,500)<|box_end|><|im_end|>";
        let boxes = [
            found("the cup", [64.0, 96.0, 320.0, 480.0]),
            found("the cup", [0.0, 0.0, 6.4, 4.8]),
            found("a hand", [576.0, 0.0, 640.0, 240.0]),
        ];
        assert_eq!(read("Qwen2-VL", text).found, boxes);
        let text = "```json\n[{\"bbox_2d\": [10, 20, 160, 240], \"label\": \"cup\"},\n {\"point_2d\": [320, 0.5], \"label\": \"tip\"}]\n```";
        let pixels = [
            found("cup", [20.0, 40.0, 320.0, 480.0]),
            found("tip", [640.0, 1.0, 640.0, 1.0]),
        ];
        assert_eq!(read("Qwen2.5-VL", text).found, pixels);
        let thousandths = [
            found("cup", [6.4, 9.6, 102.4, 115.2]),
            found("tip", [204.8, 0.24, 204.8, 0.24]),
        ];
        for (read, wanted) in read("Qwen3-VL", text).found.iter().zip(thousandths) {
            assert_eq!(read.label, wanted.label);
            let pairs = read.edges.iter().zip(wanted.edges);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-9));
        }
        let one = read("Qwen3-VL", r#" {"bbox_2d": [0, 0, 1000, 1000]} "#);
        assert_eq!(one.found, [found("", [0.0, 0.0, 640.0, 480.0])]);
        for family in ["SmolVLM", "LLaVA-1.5", "LLaVA-NeXT", "LLaVA-OneVision"] {
            assert_eq!(Format::of_family(family), None);
        }
    }

    #[test]
    fn a_list_of_nothing_is_told_from_an_answer_that_is_no_list() {
        let none = |family, text| read(family, text).none;
        assert!(none("Qwen2.5-VL", "[]"));
        assert!(none("Qwen3-VL", "```json\n[ ]\n```"));
        for text in [
            "",
            "There is no cup.",
            "[1]",
            "{}",
            "[{\"bbox_2d\": [0, 0, 0, 0]}]",
            "[",
            "```json\n[]",
        ] {
            assert!(!none("Qwen3-VL", text), "{text}");
        }
        assert!(!none("Qwen2-VL", "[]"));
    }

    #[test]
    fn what_is_outside_the_picture_or_no_box_is_dropped_and_counted() {
        for (family, text, dropped) in [
            ("Qwen2.5-VL", r#"[{"bbox_2d": [0, 0, 321, 10]}]"#, 1),
            ("Qwen2.5-VL", r#"[{"bbox_2d": [10, 0, 10, 10]}]"#, 1),
            ("Qwen2.5-VL", r#"[{"bbox_2d": [10, 0, 5, 10]}]"#, 1),
            (
                "Qwen2.5-VL",
                r#"[{"bbox_2d": [1, 2, 3]}, {"bbox_2d": "no"}]"#,
                2,
            ),
            (
                "Qwen2.5-VL",
                r#"[{"point_2d": [-1, 3]}, {"point_2d": [1, null]}]"#,
                2,
            ),
            ("Qwen3-VL", r#"[{"bbox_2d": [0, 0, 1001, 10]}]"#, 1),
            ("Qwen2-VL", "<|box_start|>(1,2),(3)<|box_end|>", 1),
            ("Qwen2-VL", "<|box_start|>(1,2),(3,NaN)<|box_end|>", 1),
            ("Qwen2-VL", "<|box_start|>a cup<|box_end|>", 1),
            // What is written otherwise is none, also where it is another family's way.
            ("Qwen2-VL", "(1,2),(3,4)", 0),
            ("Qwen2-VL", "<|box_start|>(1,2),(3,4)", 0),
            ("Qwen2-VL", r#"[{"bbox_2d": [0, 0, 10, 10]}]"#, 0),
            ("Qwen2.5-VL", "<|box_start|>(1,2),(3,4)<|box_end|>", 0),
            ("Qwen2.5-VL", "The cup is at [0, 0, 10, 10].", 0),
            (
                "Qwen2.5-VL",
                r#"[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [0, "#,
                0,
            ),
            ("Qwen2.5-VL", "```json\n[{\"bbox_2d\": [0, 0, 10, 10]}]", 0),
            ("Qwen2.5-VL", "[1, 2, 3, 4]", 0),
            ("Qwen2.5-VL", "7", 0),
            ("Qwen2.5-VL", "", 0),
        ] {
            let found = read(family, text);
            assert_eq!((found.found.len(), found.dropped), (0, dropped), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_an_answer_says_every_box_is_in_the_picture(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "(", ")", ",", "[", "]", "{", "}", "```",
                "json", "\"bbox_2d\":", "\"point_2d\":", "\"label\":", "\"cup\"", "0", "12", "999.5", "-3", "1e400", "NaN", "ü", " ",
            ]), 0..60),
            noise in ".{0,40}",
        ) {
            for (family, _) in FORMATS {
                for text in [parts.concat(), noise.clone()] {
                    for Detection { edges: [left, top, right, bottom], .. } in read(family, &text).found {
                        prop_assert!(0.0 <= left && left <= right && right <= 640.0);
                        prop_assert!(0.0 <= top && top <= bottom && bottom <= 480.0);
                    }
                }
            }
        }

        #[test]
        fn a_box_comes_back_as_it_was_written(
            x in 0u32..999, y in 0u32..999, width in 1u32..1000, height in 1u32..1000, label in "[a-z]{0,8}",
        ) {
            let (right, bottom) = ((x + width).min(1000), (y + height).min(1000));
            let texts = [
                ("Qwen2-VL", format!(
                    "<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({x},{y}),({right},{bottom})<|box_end|>"
                )),
                ("Qwen3-VL", format!(r#"[{{"bbox_2d": [{x}, {y}, {right}, {bottom}], "label": "{label}"}}]"#)),
            ];
            for (family, text) in texts {
                let found = read(family, &text);
                prop_assert_eq!(found.dropped, 0);
                prop_assert_eq!(&found.found[0].label, &label);
                let [left, top, ..] = found.found[0].edges;
                prop_assert!((left - 0.64 * f64::from(x)).abs() < 1e-9);
                prop_assert!((top - 0.48 * f64::from(y)).abs() < 1e-9);
            }
        }
    }
}
