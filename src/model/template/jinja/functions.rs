//! The functions that every template knows: Jinja's, and those that transformers adds to them.

use std::cell::RefCell;
use std::rc::Rc;

use jiff::Zoned;

use super::eval::set_in;
use super::given::Given;
use super::meter::{Error, Meter, Result, STEP};
use super::text::Writer;
use super::value::{Function, Value, SLOT};

/// Longest range, as in Jinja's sandbox.
const LONGEST_RANGE: i128 = 100_000;

/// What one character of a format for times can become, bytes.
const TIME_GROWTH: u64 = 256;

pub fn named(name: &str) -> Option<Function> {
    match name {
        "range" => Some(Function::Range),
        "dict" => Some(Function::Dict),
        "namespace" => Some(Function::Namespace),
        "raise_exception" => Some(Function::RaiseException),
        "strftime_now" => Some(Function::StrftimeNow),
        _ => None,
    }
}

pub fn call(function: Function, mut given: Given, meter: &Meter) -> Result<Value> {
    match function {
        Function::Range => range(given, meter),
        Function::Dict => meter.dict(pairs(given, meter)?),
        Function::Namespace => {
            meter.step()?;
            let space = RefCell::new(Vec::new());
            for (name, value) in pairs(given, meter)? {
                if let Value::Str(name) = name {
                    set_in(&space, &name, value, meter)?;
                }
            }
            Ok(Value::Namespace(Rc::new(space)))
        }
        Function::RaiseException => {
            let mut text = Writer::new(meter);
            text.plain(&given.expect("message")?)?;
            Err(Error::new(text.text))
        }
        Function::StrftimeNow => {
            let format = given.expect_text("format")?;
            given.done()?;
            meter.spend_many(format.len(), TIME_GROWTH)?;
            let time = jiff::fmt::strtime::format(&*format, &Zoned::now());
            meter.made(time.map_err(|error| Error::new(error.to_string()))?)
        }
    }
}

fn range(given: Given, meter: &Meter) -> Result<Value> {
    if !given.named.is_empty() {
        return Err(Error::new("range takes no named arguments"));
    }
    let numbers = given.positional.iter().map(|value| {
        let number = value.integer();
        number.ok_or_else(|| Error::new(format!("a range of {}", value.kind())))
    });
    let (start, stop, step) = match numbers.collect::<Result<Vec<_>>>()?[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(Error::new("range takes one to three integers")),
    };
    if step == 0 {
        return Err(Error::new("a range with a step of 0"));
    }
    let (start, stop, step) = (i128::from(start), i128::from(stop), i128::from(step));
    let towards = step.signum();
    let count = ((stop - start) * towards + step.abs() - 1) / step.abs();
    let count = count.max(0);
    if count > LONGEST_RANGE {
        let what = format!("a range of {count}, expected at most {LONGEST_RANGE}");
        return Err(Error::new(what));
    }
    meter.spend_many(count as usize, SLOT)?;
    let numbers = (0..count).map(|i| Value::Int((start + i * step) as i64));
    meter.list(numbers.collect())
}

/// The entries of a dict or namespace: those of a dict or of a list of pairs, and named ones.
fn pairs(mut given: Given, meter: &Meter) -> Result<Vec<(Value, Value)>> {
    let mut pairs = Vec::new();
    match given.take("mapping") {
        Some(Value::Dict(dict)) => {
            meter.spend_many(dict.pairs.len(), 2 * SLOT)?;
            pairs.extend(dict.pairs.iter().cloned());
        }
        Some(other) => {
            for item in other.items(meter)? {
                meter.spend(STEP)?;
                match &item.items(meter)?[..] {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return Err(Error::new("a dict of something that is no pair")),
                }
            }
        }
        None => {}
    }
    if !given.positional.is_empty() {
        return Err(Error::new("more arguments than a dict takes"));
    }
    let named = given.named.into_iter();
    pairs.extend(named.map(|(name, value)| (Value::Str(name), value)));
    Ok(pairs)
}
