//! From the tree of a template to text: expressions.

use std::sync::Arc;

use super::ast::{Args, CompareOp, Expr, Postfix};
use super::compare::compare;
use super::eval::Eval;
use super::given::Given;
use super::math::{math, signed};
use super::meter::{Error, Meter, Result};
use super::text::Writer;
use super::value::{Loop, Value, SLOT};
use super::{checks, filters, functions, methods};

/// Most arguments of a call.
const MOST_ARGUMENTS: usize = 255;

impl<'t> Eval<'t> {
    pub fn eval(&mut self, expr: &'t Expr) -> Result<Value> {
        self.meter.enter()?;
        let value = self.eval_inner(expr);
        self.meter.leave();
        value
    }

    fn eval_inner(&mut self, expr: &'t Expr) -> Result<Value> {
        match expr {
            Expr::Const(constant) => Ok(constant.into()),
            Expr::Name(name) => Ok(self.named(name)),
            Expr::List(items) => {
                let items = self.eval_all(items)?;
                self.meter.list(items)
            }
            Expr::Tuple(items) => {
                let items = self.eval_all(items)?;
                self.meter.tuple(items)
            }
            Expr::Dict(pairs) => {
                let mut values = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    values.push((self.eval(key)?, self.eval(value)?));
                }
                self.meter.dict(values)
            }
            Expr::Not(of) => Ok(Value::Bool(!self.eval(of)?.truth())),
            Expr::Signed(sign, of) => signed(*sign, &self.eval(of)?),
            Expr::And(operands) => self.first_that(operands, false),
            Expr::Or(operands) => self.first_that(operands, true),
            Expr::Math(first, rest) => {
                let mut value = self.eval(first)?;
                for (op, right) in rest {
                    let right = self.eval(right)?;
                    value = math(*op, &value, &right, self.meter)?;
                }
                Ok(value)
            }
            Expr::Concat(operands) => {
                let mut text = Writer::new(self.meter);
                for operand in operands {
                    text.plain(&self.eval(operand)?)?;
                }
                text.value()
            }
            Expr::Compare(first, rest) => self.comparison(first, rest),
            Expr::If {
                condition,
                then,
                otherwise,
            } => match (self.eval(condition)?.truth(), otherwise) {
                (true, _) => self.eval(then),
                (false, Some(otherwise)) => self.eval(otherwise),
                (false, None) => Ok(Value::undefined("a condition without else")),
            },
            Expr::Postfix(of, behind) => self.postfixed(of, behind, None),
        }
    }

    fn named(&self, name: &Arc<str>) -> Value {
        match self.lookup(name) {
            Some(value) => value.clone(),
            None => match functions::named(name) {
                Some(function) => Value::Function(function),
                None => Value::Undefined(name.clone()),
            },
        }
    }

    fn eval_all(&mut self, exprs: &'t [Expr]) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    /// The first operand whose truth is `wanted`, or the last.
    fn first_that(&mut self, operands: &'t [Expr], wanted: bool) -> Result<Value> {
        let mut last = Value::None;
        for operand in operands {
            last = self.eval(operand)?;
            if last.truth() == wanted {
                break;
            }
        }
        Ok(last)
    }

    fn comparison(&mut self, first: &'t Expr, rest: &'t [(CompareOp, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (op, right) in rest {
            let right = self.eval(right)?;
            if !compare(*op, &left, &right, self.meter)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// What stands behind an expression is done with its value; `caller` is handed to the call at the end.
    pub(super) fn postfixed(
        &mut self,
        of: &'t Expr,
        behind: &'t [Postfix],
        caller: Option<Value>,
    ) -> Result<Value> {
        let mut value = self.eval(of)?;
        let Some((last, before)) = behind.split_last() else {
            return Ok(value);
        };
        for one in before {
            value = self.postfix(value, one, None)?;
        }
        self.postfix(value, last, caller)
    }

    pub(super) fn postfix(
        &mut self,
        value: Value,
        postfix: &'t Postfix,
        caller: Option<Value>,
    ) -> Result<Value> {
        self.meter.step()?;
        match postfix {
            Postfix::Attribute(name) => attribute(&value, name, self.meter),
            Postfix::Item(index) => {
                let index = self.eval(index)?;
                item(&value, &index, self.meter)
            }
            Postfix::Slice(parts) => {
                let mut bounds = [None; 3];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = slice_bound(&self.eval(part)?)?;
                    }
                }
                slice(&value, bounds, self.meter)
            }
            Postfix::Call(args) => {
                let given = self.args(args, caller)?;
                self.call(&value, given)
            }
            Postfix::Method(name, args) => {
                let given = self.args(args, caller)?;
                match methods::call(&value, name, given, self.meter)? {
                    Ok(result) => Ok(result),
                    Err(given) => {
                        let called = attribute(&value, name, self.meter)?;
                        self.call(&called, given)
                    }
                }
            }
            Postfix::Filter(name, args) => {
                let given = self.args(args, None)?;
                filters::apply(name, value, given, self.meter).map_err(|e| e.inside(name))
            }
            Postfix::Test {
                name,
                negated,
                args,
            } => {
                let given = self.args(args, None)?;
                let holds = checks::holds(name, &value, given, self.meter);
                Ok(Value::Bool(holds.map_err(|e| e.inside(name))? != *negated))
            }
        }
    }

    fn args(&mut self, args: &'t Args, caller: Option<Value>) -> Result<Given> {
        let mut given = Given {
            positional: self.eval_all(&args.positional)?,
            named: Vec::with_capacity(args.named.len()),
        };
        for (name, expr) in &args.named {
            given.named.push((name.clone(), self.eval(expr)?));
        }
        if let Some(more) = &args.more {
            let more = self.eval(more)?;
            given.positional.extend(more.items(self.meter)?);
        }
        if let Some(more) = &args.more_named {
            let Value::Dict(more) = self.eval(more)? else {
                return Err(Error::new("** in front of something that is no dict"));
            };
            self.meter.spend_many(more.pairs.len(), 2 * SLOT)?;
            for (name, value) in &more.pairs {
                if let Value::Str(name) = name {
                    given.named.push((name.clone(), value.clone()));
                }
            }
        }
        if let Some(caller) = caller {
            given.named.push(("caller".into(), caller));
        }
        match given.positional.len() + given.named.len() {
            0..=MOST_ARGUMENTS => Ok(given),
            more => Err(Error::new(format!(
                "{more} arguments, expected at most {MOST_ARGUMENTS}"
            ))),
        }
    }

    fn call(&mut self, called: &Value, mut given: Given) -> Result<Value> {
        match called {
            Value::Function(function) => functions::call(*function, given, self.meter),
            Value::Macro(number) => self.call_macro(*number, given),
            Value::Loop(of) => {
                let items = given.expect("iterable")?;
                self.call_loop(of, &items)
            }
            Value::Undefined(name) => Err(Error::new(format!("{name} is undefined"))),
            other => Err(Error::new(format!("{} cannot be called", other.kind()))),
        }
    }
}

/// `value.name`
pub fn attribute(value: &Value, name: &str, meter: &Meter) -> Result<Value> {
    let found = match value {
        Value::Undefined(of) => return Err(Error::new(format!("{of} is undefined"))),
        Value::Dict(dict) => dict.get_name(name, meter)?.cloned(),
        Value::Namespace(space) => {
            let entries = space.borrow();
            meter.spend_many(entries.len(), 8)?;
            let found = entries.iter().find(|(known, _)| &**known == name);
            found.map(|(_, value)| value.clone())
        }
        Value::Loop(of) => of.attribute(name),
        _ => None,
    };
    Ok(found.unwrap_or_else(|| Value::undefined(name)))
}

impl Loop {
    fn attribute(&self, name: &str) -> Option<Value> {
        let count = self.items.len();
        let number = |number: usize| Some(Value::Int(number as i64));
        let neighbour = |at: Option<usize>| {
            let item = at.and_then(|at| self.items.get(at)).cloned();
            Some(item.unwrap_or_else(|| Value::undefined(name)))
        };
        match name {
            "index" => number(self.index + 1),
            "index0" => number(self.index),
            "revindex" => number(count - self.index),
            "revindex0" => number(count - self.index - 1),
            "first" => Some(Value::Bool(self.index == 0)),
            "last" => Some(Value::Bool(self.index + 1 == count)),
            "length" => number(count),
            "depth" => number(self.depth + 1),
            "depth0" => number(self.depth),
            "previtem" => neighbour(self.index.checked_sub(1)),
            "nextitem" => neighbour(Some(self.index + 1)),
            _ => None,
        }
    }
}

/// `value[index]`
pub fn item(value: &Value, index: &Value, meter: &Meter) -> Result<Value> {
    let place = |length: usize| {
        let at = index.integer()?;
        let at = if at < 0 { at + length as i64 } else { at };
        usize::try_from(at).ok()
    };
    let found = match value {
        Value::Undefined(of) => return Err(Error::new(format!("{of} is undefined"))),
        Value::List(list) => place(list.items.len()).and_then(|at| list.items.get(at).cloned()),
        Value::Dict(dict) if index.is_scalar() => dict.get(index, meter)?.cloned(),
        Value::Str(text) => {
            let length = value.length(meter)?;
            match place(length).and_then(|at| text.chars().nth(at)) {
                Some(c) => Some(meter.text(c.encode_utf8(&mut [0; 4]))?),
                None => None,
            }
        }
        _ => match index.as_str() {
            Some(name) => return attribute(value, name, meter),
            None => None,
        },
    };
    match (found, index) {
        (Some(found), _) => Ok(found),
        (None, Value::Str(name)) => Ok(Value::Undefined(name.clone())),
        (None, _) => Ok(Value::undefined("an item that is not there")),
    }
}

fn slice_bound(value: &Value) -> Result<Option<i64>> {
    match value {
        Value::None => Ok(None),
        other => match other.integer() {
            Some(number) => Ok(Some(number)),
            None => Err(Error::new(format!("a slice by {}", other.kind()))),
        },
    }
}

/// `value[start:stop:step]`
fn slice(value: &Value, [start, stop, step]: [Option<i64>; 3], meter: &Meter) -> Result<Value> {
    if !matches!(value, Value::Str(_) | Value::List(_)) {
        return Err(Error::new(format!("a slice of {}", value.kind())));
    }
    let length = value.length(meter)? as i64;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new("a slice with a step of 0"));
    }
    // Where a bound lies, if those behind the ends count as `lowest` and `highest`.
    let (lowest, highest) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let place = |bound: i64| {
        let bound = if bound < 0 {
            bound.saturating_add(length)
        } else {
            bound
        };
        bound.clamp(lowest, highest)
    };
    let (first, end) = match step > 0 {
        true => (start.map_or(0, place), stop.map_or(length, place)),
        false => (start.map_or(length - 1, place), stop.map_or(-1, place)),
    };
    let mut at = first;
    let mut places = Vec::new();
    meter.spend_many(length as usize, 8)?;
    while (step > 0 && at < end) || (step < 0 && at > end) {
        places.push(at as usize);
        at = at.saturating_add(step);
    }
    match value {
        Value::List(list) => {
            let items = places.into_iter().map(|at| list.items[at].clone());
            let items = items.collect();
            match list.is_tuple {
                true => meter.tuple(items),
                false => meter.list(items),
            }
        }
        Value::Str(text) => {
            meter.spend_many(text.len(), 6)?;
            let chars = text.chars().collect::<Vec<_>>();
            let part = places.into_iter().map(|at| chars[at]);
            meter.made(part.collect::<String>())
        }
        _ => Err(Error::new("a slice of something else")),
    }
}
