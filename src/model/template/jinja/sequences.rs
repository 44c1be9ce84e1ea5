//! Jinja's filters of lists.

use super::checks;
use super::expressions;
use super::filters;
use super::given::Given;
use super::meter::{Error, Meter, Result, STEP};
use super::text::{sorted, Writer};
use super::value::{Value, SLOT};

pub fn apply(name: &str, value: &Value, mut given: Given, meter: &Meter) -> Result<Value> {
    let result = match name {
        "list" => meter.list(value.items(meter)?)?,
        "first" => first(value.items(meter)?.into_iter()),
        "last" => first(value.items(meter)?.into_iter().rev()),
        "reverse" => match value {
            Value::Str(text) => {
                meter.spend_many(text.len(), 4)?;
                meter.made(text.chars().rev().collect::<String>())?
            }
            other => {
                let mut items = other.items(meter)?;
                items.reverse();
                meter.list(items)?
            }
        },
        "join" => joined(value, &mut given, meter)?,
        "sum" => {
            let attribute = given.take_text("attribute")?;
            let mut sum = given.take("start").unwrap_or(Value::Int(0));
            for item in value.items(meter)? {
                let item = part(&item, attribute.as_deref(), meter)?;
                sum = super::math::math(super::ast::MathOp::Add, &sum, &item, meter)?;
            }
            sum
        }
        "min" | "max" => {
            let case = given.take_truth("case_sensitive");
            let attribute = given.take_text("attribute")?;
            let items = in_order(value, attribute.as_deref(), case, meter)?;
            let mut items = items.into_iter().map(|(_, item)| item);
            match name {
                "min" => first(items),
                _ => first(items.next_back().into_iter()),
            }
        }
        "sort" => {
            let reverse = given.take_truth("reverse");
            let case = given.take_truth("case_sensitive");
            let attribute = given.take_text("attribute")?;
            let keyed = keyed(value, attribute.as_deref(), case, meter)?;
            // What is equal needs no order.
            let keyed = sorted(keyed, |a, b| match reverse {
                _ if a.0.equals(&b.0, meter)? => Ok(false),
                false => a.0.less(&b.0, meter),
                true => b.0.less(&a.0, meter),
            })?;
            meter.list(keyed.into_iter().map(|(_, item)| item).collect())?
        }
        "dictsort" => dictsorted(value, &mut given, meter)?,
        "unique" => {
            let case = given.take_truth("case_sensitive");
            let attribute = given.take_text("attribute")?;
            let mut unique: Vec<(Value, Value)> = Vec::new();
            'items: for (key, item) in keyed(value, attribute.as_deref(), case, meter)? {
                for (known, _) in &unique {
                    if known.equals(&key, meter)? {
                        continue 'items;
                    }
                }
                unique.push((key, item));
            }
            meter.list(unique.into_iter().map(|(_, item)| item).collect())?
        }
        "batch" => batched(value, &mut given, meter)?,
        "map" => return mapped(value, given, meter),
        "select" | "reject" => {
            let wanted = name == "select";
            let test = given.take_text("test")?;
            return kept(value, None, test.as_deref(), &given, wanted, meter);
        }
        "selectattr" | "rejectattr" => {
            let wanted = name == "selectattr";
            let attribute = given.expect_text("attribute")?;
            let test = given.take_text("test")?;
            return kept(
                value,
                Some(&attribute),
                test.as_deref(),
                &given,
                wanted,
                meter,
            );
        }
        _ => return Err(Error::new("there is no such filter")),
    };
    given.done()?;
    Ok(result)
}

fn first(mut items: impl Iterator<Item = Value>) -> Value {
    let none = || Value::undefined("an item of an empty list");
    items.next().unwrap_or_else(none)
}

/// What of an item is meant: names and numbers with dots between them, or the item itself.
fn part(item: &Value, attribute: Option<&str>, meter: &Meter) -> Result<Value> {
    let mut part = item.clone();
    for name in attribute.into_iter().flat_map(|path| path.split('.')) {
        meter.step()?;
        let index = match name.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => meter.text(name)?,
        };
        part = expressions::item(&part, &index, meter)?;
    }
    Ok(part)
}

/// Items with what they are ordered by.
fn keyed(
    value: &Value,
    attribute: Option<&str>,
    case: bool,
    meter: &Meter,
) -> Result<Vec<(Value, Value)>> {
    let items = value.items(meter)?;
    meter.spend_many(items.len(), 2 * STEP)?;
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        keyed.push((key(part(&item, attribute, meter)?, case, meter)?, item));
    }
    Ok(keyed)
}

/// Small letters, where large ones do not count.
fn key(value: Value, case: bool, meter: &Meter) -> Result<Value> {
    match &value {
        Value::Str(text) if !case => {
            meter.spend_many(text.len(), 4)?;
            meter.made(text.to_lowercase())
        }
        _ => Ok(value),
    }
}

fn in_order(
    value: &Value,
    attribute: Option<&str>,
    case: bool,
    meter: &Meter,
) -> Result<Vec<(Value, Value)>> {
    sorted(keyed(value, attribute, case, meter)?, |a, b| {
        a.0.less(&b.0, meter)
    })
}

fn dictsorted(value: &Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let case = given.take_truth("case_sensitive");
    let by = given.take_text("by")?;
    let reverse = given.take_truth("reverse");
    let Value::Dict(dict) = value else {
        return Err(Error::new(format!("{} is no dict", value.kind())));
    };
    meter.spend_many(dict.pairs.len(), 2 * STEP)?;
    let mut keyed = Vec::with_capacity(dict.pairs.len());
    for (name, value) in &dict.pairs {
        let by = match by.as_deref() {
            None | Some("key") => name,
            Some("value") => value,
            Some(other) => return Err(Error::new(format!("by {other:?}"))),
        };
        let pair = meter.tuple(vec![name.clone(), value.clone()])?;
        keyed.push((key(by.clone(), case, meter)?, pair));
    }
    let keyed = sorted(keyed, |a, b| match reverse {
        false => a.0.less(&b.0, meter),
        true => b.0.less(&a.0, meter),
    })?;
    meter.list(keyed.into_iter().map(|(_, pair)| pair).collect())
}

fn joined(value: &Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let between = match given.take("d") {
        Some(between) => filters::as_text(between, meter)?,
        None => meter.text("")?,
    };
    let attribute = given.take_text("attribute")?;
    let mut out = Writer::new(meter);
    for (i, item) in value.items(meter)?.iter().enumerate() {
        meter.step()?;
        if i > 0 {
            out.push(between.as_str().unwrap_or_default())?;
        }
        out.plain(&part(item, attribute.as_deref(), meter)?)?;
    }
    out.value()
}

fn batched(value: &Value, given: &mut Given, meter: &Meter) -> Result<Value> {
    let count = given.take_integer("linecount")?;
    let count = count.and_then(|count| usize::try_from(count).ok());
    let count = count.filter(|&count| count > 0);
    let count = count.ok_or_else(|| Error::new("batches of less than one"))?;
    let filling = given.take("fill_with");
    let mut batches = Vec::new();
    for batch in value.items(meter)?.chunks(count) {
        let mut batch = batch.to_vec();
        if let Some(filling) = &filling {
            let missing = count - batch.len();
            meter.spend_many(missing, SLOT)?;
            batch.extend(std::iter::repeat_n(filling.clone(), missing));
        }
        batches.push(meter.list(batch)?);
    }
    meter.list(batches)
}

fn mapped(value: &Value, mut given: Given, meter: &Meter) -> Result<Value> {
    let attribute = match given.take_named("attribute") {
        Some(attribute) => Some(filters::as_text(attribute, meter)?),
        None => None,
    };
    let default = given.take_named("default");
    let filter = match attribute {
        Some(_) => None,
        None => Some(given.expect_text("name")?),
    };
    let mut items = Vec::new();
    for item in value.items(meter)? {
        meter.step()?;
        items.push(match (&attribute, &filter) {
            (Some(path), _) => {
                let part = part(&item, path.as_str(), meter)?;
                match (&default, part.is_undefined()) {
                    (Some(default), true) => default.clone(),
                    _ => part,
                }
            }
            (None, Some(name)) => filters::apply(name, item, again(&given, meter)?, meter)?,
            (None, None) => item,
        });
    }
    meter.list(items)
}

/// The same arguments for one more call.
fn again(given: &Given, meter: &Meter) -> Result<Given> {
    meter.spend_many(given.positional.len() + given.named.len(), SLOT)?;
    Ok(Given {
        positional: given.positional.clone(),
        named: given.named.clone(),
    })
}

/// The items of which, or of whose `attribute`, a test says `wanted`; without a test their truth counts.
fn kept(
    value: &Value,
    attribute: Option<&str>,
    test: Option<&str>,
    given: &Given,
    wanted: bool,
    meter: &Meter,
) -> Result<Value> {
    let mut items = Vec::new();
    for item in value.items(meter)? {
        meter.step()?;
        let part = part(&item, attribute, meter)?;
        let holds = match test {
            Some(test) => checks::holds(test, &part, again(given, meter)?, meter)?,
            None => part.truth(),
        };
        if holds == wanted {
            items.push(item);
        }
    }
    meter.list(items)
}
