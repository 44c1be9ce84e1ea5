//! Values of parameters, what they may be, and the Rust types they stand for.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Most tokens that a parameter may ask for: far from overflow in any sum.
pub const TOKENS: i64 = 1 << 24;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Flag(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

/// As YAML and messages write it: a number with its point, a text in quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Numbers(values) => write!(f, "{values:?}"),
            Self::Texts(values) => write!(f, "{values:?}"),
        }
    }
}

impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::Flag(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Number(value) => (*value).into(),
            Value::Text(value) => value.as_str().into(),
            Value::Numbers(values) => values.clone().into(),
            Value::Texts(values) => values.clone().into(),
        }
    }
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Flag,
    Text,
    /// One of these names.
    Choice(Vec<&'static str>),
    Integer(RangeInclusive<i64>),
    Number(RangeInclusive<f64>),
    /// A list of numbers, each in this range.
    Numbers(RangeInclusive<f64>),
    Texts,
}

impl Kind {
    /// The value as it is stored, if it is one of this kind; YAML writes 1.0 as 1 as well.
    pub fn checked(&self, value: Value) -> Option<Value> {
        let value = match (self, value) {
            (Self::Number(_), Value::Integer(value)) => Value::Number(value as f64),
            // The type of an empty list is not to be seen.
            (Self::Numbers(_), Value::Texts(values)) if values.is_empty() => {
                Value::Numbers(Vec::new())
            }
            (Self::Texts, Value::Numbers(values)) if values.is_empty() => Value::Texts(Vec::new()),
            (_, value) => value,
        };
        let fits = match (self, &value) {
            (Self::Flag, Value::Flag(_)) | (Self::Text, Value::Text(_)) => true,
            (Self::Choice(names), Value::Text(value)) => names.contains(&value.as_str()),
            (Self::Integer(range), Value::Integer(value)) => range.contains(value),
            (Self::Number(range), Value::Number(value)) => range.contains(value),
            (Self::Numbers(range), Value::Numbers(values)) => {
                values.iter().all(|value| range.contains(value))
            }
            (Self::Texts, Value::Texts(_)) => true,
            _ => false,
        };
        fits.then_some(value)
    }

    /// The value of this kind that a text stands for; that of a list is JSON, or has commas between the elements.
    pub fn parse(&self, text: &str) -> Option<Value> {
        let value = match self {
            Self::Flag => Value::Flag(text.parse().ok()?),
            Self::Text | Self::Choice(_) => Value::Text(text.to_string()),
            Self::Integer(_) => Value::Integer(text.parse().ok()?),
            Self::Number(_) => Value::Number(text.parse().ok()?),
            Self::Numbers(_) => Value::Numbers(numbers(text)?),
            Self::Texts => Value::Texts(texts(text)?),
        };
        self.checked(value)
    }
}

/// The elements of a list of numbers. (JSON's own would be off by a last bit now and then.)
fn numbers(text: &str) -> Option<Vec<f64>> {
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let inner = inner.unwrap_or(text).trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let parts = inner.split(',').map(|part| part.trim().parse().ok());
    parts.collect()
}

/// The elements of a list of strings.
fn texts(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    match text.starts_with('[') {
        true => serde_json::from_str(text).ok(),
        false => Some(text.split(',').map(|part| part.trim().into()).collect()),
    }
}

/// What is expected, as messages and documents say it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("true or false"),
            Self::Text => f.write_str("a string"),
            Self::Choice(names) => write!(f, "one of: {}", names.join(", ")),
            Self::Integer(range) => write!(f, "an integer, {} to {}", range.start(), range.end()),
            Self::Number(range) => write!(f, "a number, {:?} to {:?}", range.start(), range.end()),
            Self::Numbers(range) => {
                write!(
                    f,
                    "a list of numbers, {:?} to {:?}",
                    range.start(),
                    range.end()
                )
            }
            Self::Texts => f.write_str("a list of strings"),
        }
    }
}

/// A Rust type that a parameter can have.
pub trait Setting: Sized {
    /// What narrows it down: a range, or nothing.
    type Range;

    fn kind(range: Self::Range) -> Kind;

    fn value(&self) -> Value;

    /// None where the value is of another kind.
    fn of(value: &Value) -> Option<Self>;
}

/// Types that a value of one kind holds as they are.
macro_rules! held {
    ($($type:ty: $kind:ident, $range:ty, $pattern:pat => $of_range:expr;)*) => { $(
        impl Setting for $type {
            type Range = $range;

            fn kind($pattern: Self::Range) -> Kind {
                $of_range
            }

            fn value(&self) -> Value {
                Value::$kind(self.clone())
            }

            fn of(value: &Value) -> Option<Self> {
                match value {
                    Value::$kind(value) => Some(value.clone()),
                    _ => None,
                }
            }
        }
    )* };
}

held! {
    bool: Flag, (), () => Kind::Flag;
    f64: Number, RangeInclusive<f64>, range => Kind::Number(range);
    String: Text, (), () => Kind::Text;
    Vec<f64>: Numbers, RangeInclusive<f64>, range => Kind::Numbers(range);
    Vec<String>: Texts, (), () => Kind::Texts;
}

impl Setting for PathBuf {
    type Range = ();

    fn kind((): ()) -> Kind {
        Kind::Text
    }

    fn value(&self) -> Value {
        Value::Text(self.display().to_string())
    }

    fn of(value: &Value) -> Option<Self> {
        String::of(value).map(Self::from)
    }
}

/// Counts: the range keeps them within `i64`, which is what ROS has.
macro_rules! counts {
    ($($type:ty),*) => { $(
        impl Setting for $type {
            type Range = RangeInclusive<i64>;

            fn kind(range: Self::Range) -> Kind {
                Kind::Integer(range)
            }

            fn value(&self) -> Value {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }

            fn of(value: &Value) -> Option<Self> {
                match value {
                    Value::Integer(value) => Self::try_from(*value).ok(),
                    _ => None,
                }
            }
        }
    )* };
}

counts!(usize, u64);

/// Makes an enum with `ALL` and `name` a type that a parameter can have: one of its names.
macro_rules! choice {
    ($type:ty) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> std::result::Result<Self, String> {
                let mut choices = Self::ALL.into_iter();
                choices.find(|choice| choice.name() == name).ok_or_else(|| {
                    let names = Self::ALL.map(|choice| choice.name());
                    format!("{name} is unknown, expected one of: {}", names.join(", "))
                })
            }
        }

        impl $crate::cache::parameter::Setting for $type {
            type Range = ();

            fn kind((): ()) -> $crate::cache::parameter::Kind {
                let names = Self::ALL.map(|choice| choice.name());
                $crate::cache::parameter::Kind::Choice(names.to_vec())
            }

            fn value(&self) -> $crate::cache::parameter::Value {
                $crate::cache::parameter::Value::Text(self.name().to_string())
            }

            fn of(value: &$crate::cache::parameter::Value) -> Option<Self> {
                match value {
                    $crate::cache::parameter::Value::Text(name) => name.parse().ok(),
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use choice;
