//! Python's operators.

use super::ast::{MathOp, Sign};
use super::meter::{Error, Meter, Result};
use super::percent;
use super::value::{Value, SLOT};

/// `left op right`.
pub fn math(op: MathOp, left: &Value, right: &Value, meter: &Meter) -> Result<Value> {
    meter.step()?;
    match (op, left, right) {
        (MathOp::Add, Value::Str(a), Value::Str(b)) => {
            meter.spend_many(a.len() + b.len(), 2)?;
            meter.made(format!("{a}{b}"))
        }
        (MathOp::Add, Value::List(a), Value::List(b)) if a.is_tuple == b.is_tuple => {
            meter.spend_many(a.items.len() + b.items.len(), SLOT)?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            match a.is_tuple {
                true => meter.tuple(items),
                false => meter.list(items),
            }
        }
        (MathOp::Mul, Value::Str(text), count) | (MathOp::Mul, count, Value::Str(text))
            if count.integer().is_some() =>
        {
            let count = times(count);
            meter.spend(units(text.len(), count, 2))?;
            meter.made(text.repeat(count))
        }
        (MathOp::Mul, Value::List(list), count) | (MathOp::Mul, count, Value::List(list))
            if count.integer().is_some() =>
        {
            let count = times(count);
            meter.spend(units(list.items.len(), count, SLOT))?;
            let items = std::iter::repeat_n(&list.items, count).flatten();
            let items = items.cloned().collect();
            match list.is_tuple {
                true => meter.tuple(items),
                false => meter.list(items),
            }
        }
        (MathOp::Rem, Value::Str(format), value) => percent::formatted(format, value, meter),
        _ => numbers(op, left, right),
    }
}

/// A number of repetitions; none if it is negative.
fn times(count: &Value) -> usize {
    usize::try_from(count.integer().unwrap_or(0)).unwrap_or(0)
}

fn units(length: usize, count: usize, each: u64) -> u64 {
    // Repetitions of nothing take time all the same.
    let length = (length as u64).max(1);
    length.saturating_mul(count as u64).saturating_mul(each)
}

fn numbers(op: MathOp, left: &Value, right: &Value) -> Result<Value> {
    let symbol = match op {
        MathOp::Add => "+",
        MathOp::Sub => "-",
        MathOp::Mul => "*",
        MathOp::Div => "/",
        MathOp::FloorDiv => "//",
        MathOp::Rem => "%",
        MathOp::Pow => "**",
    };
    let (Some(a), Some(b)) = (left.number(), right.number()) else {
        return Err(Error::new(format!(
            "{} {symbol} {}",
            left.kind(),
            right.kind()
        )));
    };
    if b == 0.0 && matches!(op, MathOp::Div | MathOp::FloorDiv | MathOp::Rem) {
        return Err(Error::new("division by zero"));
    }
    if let (Some(a), Some(b)) = (left.integer(), right.integer()) {
        let whole = match op {
            MathOp::Add => Some(a.checked_add(b)),
            MathOp::Sub => Some(a.checked_sub(b)),
            MathOp::Mul => Some(a.checked_mul(b)),
            // Rounded down, as the sign of the divisor has it.
            MathOp::FloorDiv => Some(
                a.checked_div(b)
                    .map(|q| q - i64::from(q * b != a && (a < 0) != (b < 0))),
            ),
            MathOp::Rem => Some(
                a.checked_rem(b)
                    .map(|r| match r != 0 && (r < 0) != (b < 0) {
                        true => r + b,
                        false => r,
                    }),
            ),
            MathOp::Pow if b >= 0 => Some(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
            MathOp::Pow | MathOp::Div => None,
        };
        if let Some(whole) = whole {
            let too_large = || Error::new(format!("{a} {symbol} {b} is too large"));
            return whole.map(Value::Int).ok_or_else(too_large);
        }
    }
    Ok(Value::Float(match op {
        MathOp::Add => a + b,
        MathOp::Sub => a - b,
        MathOp::Mul => a * b,
        MathOp::Div => a / b,
        MathOp::FloorDiv => (a / b).floor(),
        MathOp::Rem => a - b * (a / b).floor(),
        MathOp::Pow => a.powf(b),
    }))
}

/// A sign in front of a number.
pub fn signed(sign: Sign, value: &Value) -> Result<Value> {
    let negative = matches!(sign, Sign::Minus);
    if let Some(number) = value.integer() {
        let signed = match negative {
            true => number.checked_neg(),
            false => Some(number),
        };
        let too_large = || Error::new(format!("-({number}) is too large"));
        return signed.map(Value::Int).ok_or_else(too_large);
    }
    match value {
        Value::Float(number) if negative => Ok(Value::Float(-number)),
        Value::Float(number) => Ok(Value::Float(*number)),
        other => Err(Error::new(format!("a sign in front of {}", other.kind()))),
    }
}
