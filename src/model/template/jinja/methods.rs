//! Methods of Python's lists and dicts, and of loops. Those of strings are in `strings`.

use super::given::Given;
use super::meter::{Error, Meter, Result};
use super::strings;
use super::value::{Dict, List, Value, SLOT};

/// Methods that would change a list or dict, which templates may not.
const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "__setitem__",
];

/// What the method says; the arguments are given back if there is no such method.
pub fn call(
    value: &Value,
    name: &str,
    given: Given,
    meter: &Meter,
) -> Result<std::result::Result<Value, Given>> {
    let changes = matches!(value, Value::List(_) | Value::Dict(_)) && CHANGING.contains(&name);
    if changes {
        let what = format!(
            "{name} would change {}, which templates may not",
            value.kind()
        );
        return Err(Error::new(what));
    }
    let result = match value {
        Value::Str(text) => {
            meter.spend_many(text.len(), 4)?;
            strings::call(text, name, given, meter)
        }
        Value::Dict(dict) => of_dict(dict, name, given, meter),
        Value::List(list) => of_list(list, name, given, meter),
        Value::Loop(of) if name == "cycle" => {
            let count = given.positional.len().max(1);
            let one = given.positional.get(of.index % count).cloned();
            return Ok(Ok(one.ok_or_else(|| Error::new("a cycle of nothing"))?));
        }
        _ => return Ok(Err(given)),
    };
    match result {
        Ok(Some(result)) => Ok(Ok(result)),
        Ok(None) => Err(Error::new(format!("{} has no method {name}", value.kind()))),
        Err(error) => Err(error.inside(name)),
    }
}

fn of_dict(dict: &Dict, name: &str, mut given: Given, meter: &Meter) -> Result<Option<Value>> {
    meter.spend_many(dict.pairs.len(), SLOT)?;
    let result = match name {
        "keys" => meter.list(dict.pairs.iter().map(|(key, _)| key.clone()).collect())?,
        "values" => meter.list(dict.pairs.iter().map(|(_, value)| value.clone()).collect())?,
        "items" => items(dict, meter)?,
        "get" => {
            let key = given.expect("key")?;
            let default = given.take("default").unwrap_or(Value::None);
            let found = match key.is_scalar() {
                true => dict.get(&key, meter)?.cloned(),
                false => None,
            };
            found.unwrap_or(default)
        }
        "copy" => meter.dict(dict.pairs.iter().cloned())?,
        // A value of the dict that can be called.
        _ => match dict.get_name(name, meter)? {
            Some(value) => {
                let what = format!("{} cannot be called", value.kind());
                return Err(Error::new(what));
            }
            None => return Ok(None),
        },
    };
    given.done()?;
    Ok(Some(result))
}

/// Pairs of keys and values.
pub fn items(dict: &Dict, meter: &Meter) -> Result<Value> {
    let pairs = dict.pairs.iter();
    let pairs = pairs.map(|(key, value)| meter.tuple(vec![key.clone(), value.clone()]));
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    meter.list(pairs)
}

fn of_list(list: &List, name: &str, mut given: Given, meter: &Meter) -> Result<Option<Value>> {
    let result = match name {
        "count" | "index" => {
            let wanted = given.expect("value")?;
            let mut places = Vec::new();
            for (at, item) in list.items.iter().enumerate() {
                if item.equals(&wanted, meter)? {
                    places.push(at as i64);
                }
            }
            match (name, places.first()) {
                ("count", _) => Value::Int(places.len() as i64),
                (_, Some(first)) => Value::Int(*first),
                (_, None) => return Err(Error::new("it is not in the list")),
            }
        }
        "copy" => {
            meter.spend_many(list.items.len(), SLOT)?;
            meter.list(list.items.clone())?
        }
        _ => return Ok(None),
    };
    given.done()?;
    Ok(Some(result))
}
