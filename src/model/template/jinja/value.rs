//! What templates compute with: Python's values as far as templates have them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::Const;
use super::data::Data;
use super::meter::{Error, Meter, Result, DATA_DEPTH, STEP};

/// A value. Lists and dicts never change, and only data is inside them, so that they are trees of at most [`DATA_DEPTH`] levels.
#[derive(Clone)]
pub enum Value {
    /// What is not there, and what it was to be.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Rc<List>),
    Dict(Rc<Dict>),
    /// What `set` may change from inside a loop.
    Namespace(Rc<Space>),
    /// The state of a loop.
    Loop(Rc<Loop>),
    /// One of the functions that every template knows.
    Function(Function),
    /// A macro of the template, by its number.
    Macro(usize),
}

/// The names of a namespace.
pub type Space = RefCell<Vec<(Arc<str>, Value)>>;

pub struct List {
    pub items: Vec<Value>,
    pub is_tuple: bool,
    depth: u8,
}

pub struct Dict {
    /// Keys are scalars, each once.
    pub pairs: Vec<(Value, Value)>,
    depth: u8,
}

pub struct Loop {
    pub items: Rc<Vec<Value>>,
    pub index: usize,
    /// Loops of the same tag around this one.
    pub depth: usize,
    /// The loop's number, where it may call itself.
    pub recursive: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
}

/// What a value takes in a list, bytes.
pub const SLOT: u64 = 32;

impl Meter {
    /// A string, paid for.
    pub fn text(&self, text: &str) -> Result<Value> {
        self.spend_many(text.len(), 1)?;
        self.made(text)
    }

    /// A string whose bytes have been paid for.
    pub fn made(&self, text: impl Into<Arc<str>>) -> Result<Value> {
        self.step()?;
        Ok(Value::Str(text.into()))
    }

    /// A list whose items have been paid for, as those of a list that is already there have.
    pub fn list(&self, items: Vec<Value>) -> Result<Value> {
        self.sequence(items, false)
    }

    pub fn tuple(&self, items: Vec<Value>) -> Result<Value> {
        self.sequence(items, true)
    }

    fn sequence(&self, items: Vec<Value>, is_tuple: bool) -> Result<Value> {
        self.step()?;
        self.spend_many(items.len(), SLOT)?;
        let depth = depth_above(items.iter())?;
        Ok(Value::List(Rc::new(List {
            items,
            is_tuple,
            depth,
        })))
    }

    /// A dict; of equal keys the last counts, in the place of the first.
    pub fn dict(&self, pairs: impl IntoIterator<Item = (Value, Value)>) -> Result<Value> {
        self.step()?;
        let mut unique: Vec<(Value, Value)> = Vec::new();
        for (key, value) in pairs {
            self.spend(2 * SLOT)?;
            if !key.is_scalar() {
                return Err(Error::new(format!("{} as the key of a dict", key.kind())));
            }
            match position(&unique, &key, self)? {
                Some(at) => unique[at].1 = value,
                None => unique.push((key, value)),
            }
        }
        let depth = depth_above(unique.iter().map(|(_, value)| value))?;
        Ok(Value::Dict(Rc::new(Dict {
            pairs: unique,
            depth,
        })))
    }

    /// Data that comes from outside.
    pub fn data(&self, data: &Data) -> Result<Value> {
        self.deeper(|| match data {
            Data::Null => Ok(Value::None),
            Data::Bool(truth) => Ok(Value::Bool(*truth)),
            Data::Int(number) => Ok(Value::Int(*number)),
            Data::Float(number) => Ok(Value::Float(*number)),
            Data::Text(text) => self.text(text),
            Data::List(items) => {
                let items = items.iter().map(|item| self.data(item));
                let items = items.collect::<Result<Vec<_>>>()?;
                self.list(items)
            }
            Data::Object(fields) => {
                let mut pairs = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    pairs.push((self.text(name)?, self.data(value)?));
                }
                self.dict(pairs)
            }
        })
    }
}

/// The depth of something with these things inside.
fn depth_above<'v>(items: impl Iterator<Item = &'v Value>) -> Result<u8> {
    let mut deepest = 0;
    for item in items {
        let depth = match item {
            Value::List(list) => list.depth,
            Value::Dict(dict) => dict.depth,
            Value::Namespace(_) | Value::Loop(_) | Value::Function(_) | Value::Macro(_) => {
                let what = format!("{} inside of data", item.kind());
                return Err(Error::new(what));
            }
            _ => 0,
        };
        deepest = deepest.max(depth);
    }
    match deepest {
        DATA_DEPTH.. => Err(Error::new(format!(
            "data nested deeper than {DATA_DEPTH} levels"
        ))),
        depth => Ok(depth + 1),
    }
}

/// Where `key` stands.
fn position(pairs: &[(Value, Value)], key: &Value, meter: &Meter) -> Result<Option<usize>> {
    for (at, (known, _)) in pairs.iter().enumerate() {
        if known.equals(key, meter)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

impl Dict {
    pub fn get(&self, key: &Value, meter: &Meter) -> Result<Option<&Value>> {
        Ok(position(&self.pairs, key, meter)?.map(|at| &self.pairs[at].1))
    }

    pub fn get_name(&self, name: &str, meter: &Meter) -> Result<Option<&Value>> {
        meter.spend_many(self.pairs.len(), 8)?;
        let is_it = |key: &Value| matches!(key, Value::Str(key) if **key == *name);
        Ok(self
            .pairs
            .iter()
            .find(|(key, _)| is_it(key))
            .map(|(_, value)| value))
    }
}

impl From<&Const> for Value {
    fn from(constant: &Const) -> Self {
        match constant {
            Const::None => Self::None,
            Const::Bool(truth) => Self::Bool(*truth),
            Const::Int(number) => Self::Int(*number),
            Const::Float(number) => Self::Float(*number),
            Const::Str(text) => Self::Str(text.clone()),
        }
    }
}

impl Value {
    /// What is not there.
    pub fn undefined(name: &str) -> Self {
        Self::Undefined(name.into())
    }

    /// The name of the type, for errors.
    pub fn kind(&self) -> String {
        match self {
            Self::Undefined(name) => format!("{name}, which is undefined,"),
            Self::None => "none".to_string(),
            Self::Bool(_) => "a boolean".to_string(),
            Self::Int(_) => "an integer".to_string(),
            Self::Float(_) => "a float".to_string(),
            Self::Str(_) => "a string".to_string(),
            Self::List(list) if list.is_tuple => "a tuple".to_string(),
            Self::List(_) => "a list".to_string(),
            Self::Dict(_) => "a dict".to_string(),
            Self::Namespace(_) => "a namespace".to_string(),
            Self::Loop(_) => "a loop".to_string(),
            Self::Function(_) | Self::Macro(_) => "a function".to_string(),
        }
    }

    /// Whether it may be inside of lists, dicts and namespaces.
    pub fn check_data(&self) -> Result<()> {
        depth_above(std::iter::once(self)).map(|_| ())
    }

    pub fn is_scalar(&self) -> bool {
        matches!(
            self,
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Str(_)
        )
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// What Python's `bool` says.
    pub fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(truth) => *truth,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Dict(dict) => !dict.pairs.is_empty(),
            _ => true,
        }
    }

    /// As an integer, where Python takes it as one.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(truth) => Some(i64::from(*truth)),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            other => other.integer().map(|number| number as f64),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The things that a loop over it goes through, paid for.
    pub fn items(&self, meter: &Meter) -> Result<Vec<Value>> {
        match self {
            Self::Undefined(_) => Ok(Vec::new()),
            Self::Str(text) => {
                meter.spend_many(text.len(), SLOT + STEP)?;
                let mut buffer = [0; 4];
                let mut one = |c: char| Self::Str((&*c.encode_utf8(&mut buffer)).into());
                Ok(text.chars().map(&mut one).collect())
            }
            Self::List(list) => {
                meter.spend_many(list.items.len(), SLOT)?;
                Ok(list.items.clone())
            }
            Self::Dict(dict) => {
                meter.spend_many(dict.pairs.len(), SLOT)?;
                Ok(dict.pairs.iter().map(|(key, _)| key.clone()).collect())
            }
            other => Err(Error::new(format!("{} is not iterable", other.kind()))),
        }
    }

    /// Number of characters, items or keys.
    pub fn length(&self, meter: &Meter) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => {
                meter.spend_many(text.len(), 1)?;
                Ok(text.chars().count())
            }
            Self::List(list) => Ok(list.items.len()),
            Self::Dict(dict) => Ok(dict.pairs.len()),
            other => Err(Error::new(format!("{} has no length", other.kind()))),
        }
    }
}
