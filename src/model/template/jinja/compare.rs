//! Python's comparisons.

use std::rc::Rc;

use super::ast::CompareOp;
use super::meter::{Error, Meter, Result};
use super::value::Value;

/// `left op right`.
pub fn compare(op: CompareOp, left: &Value, right: &Value, meter: &Meter) -> Result<bool> {
    match op {
        CompareOp::Eq => left.equals(right, meter),
        CompareOp::Ne => Ok(!left.equals(right, meter)?),
        CompareOp::Lt => left.less(right, meter),
        CompareOp::Gt => right.less(left, meter),
        CompareOp::Le => Ok(left.less(right, meter)? || left.equals(right, meter)?),
        CompareOp::Ge => Ok(right.less(left, meter)? || left.equals(right, meter)?),
        CompareOp::In => right.contains(left, meter),
        CompareOp::NotIn => Ok(!right.contains(left, meter)?),
    }
}

impl Value {
    /// Python's `==`.
    pub fn equals(&self, other: &Value, meter: &Meter) -> Result<bool> {
        meter.spend(8)?;
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return Ok(match (self.integer(), other.integer()) {
                (Some(a), Some(b)) => a == b,
                _ => a == b,
            });
        }
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                meter.spend_many(a.len().min(b.len()), 1)?;
                Ok(a == b)
            }
            (Self::List(a), Self::List(b)) => {
                if a.is_tuple != b.is_tuple || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                meter.deeper(|| {
                    for (a, b) in a.items.iter().zip(&b.items) {
                        if !a.equals(b, meter)? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                })
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.pairs.len() != b.pairs.len() {
                    return Ok(false);
                }
                meter.deeper(|| {
                    for (key, value) in &a.pairs {
                        match b.get(key, meter)? {
                            Some(found) if found.equals(value, meter)? => {}
                            _ => return Ok(false),
                        }
                    }
                    Ok(true)
                })
            }
            (Self::None, Self::None) | (Self::Undefined(_), Self::Undefined(_)) => Ok(true),
            (Self::Namespace(a), Self::Namespace(b)) => Ok(Rc::ptr_eq(a, b)),
            (Self::Function(a), Self::Function(b)) => Ok(a == b),
            (Self::Macro(a), Self::Macro(b)) => Ok(a == b),
            _ => Ok(false),
        }
    }

    /// Whether it comes before `other`; an error if Python does not order the two.
    pub fn less(&self, other: &Value, meter: &Meter) -> Result<bool> {
        meter.step()?;
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return Ok(match (self.integer(), other.integer()) {
                (Some(a), Some(b)) => a < b,
                _ => a < b,
            });
        }
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                meter.spend(a.len().min(b.len()) as u64)?;
                Ok(a < b)
            }
            (Self::List(a), Self::List(b)) if a.is_tuple == b.is_tuple => meter.deeper(|| {
                for (one, two) in a.items.iter().zip(&b.items) {
                    if !one.equals(two, meter)? {
                        return one.less(two, meter);
                    }
                }
                Ok(a.items.len() < b.items.len())
            }),
            _ => Err(Error::new(format!(
                "{} and {} have no order",
                self.kind(),
                other.kind()
            ))),
        }
    }

    /// Python's `item in self`.
    pub fn contains(&self, item: &Value, meter: &Meter) -> Result<bool> {
        match self {
            Self::Undefined(_) => Ok(false),
            Self::Str(text) => {
                let Some(part) = item.as_str() else {
                    return Err(Error::new(format!("{} in a string", item.kind())));
                };
                meter.spend_many(text.len() + part.len(), 1)?;
                Ok(text.contains(part))
            }
            Self::List(list) => {
                for known in &list.items {
                    if known.equals(item, meter)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Dict(dict) => Ok(dict.get(item, meter)?.is_some()),
            other => Err(Error::new(format!("{} holds nothing", other.kind()))),
        }
    }
}
