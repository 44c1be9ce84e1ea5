//! From the tree of a template to text: statements, and the names that they see.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Body, Expr, For, Macro, Postfix, Stmt, Target};
use super::data::Data;
use super::given::Given;
use super::meter::{Error, Meter, Result};
use super::text::Writer;
use super::value::{Loop, Space, Value, SLOT};

pub(super) type Scope = HashMap<Arc<str>, Value>;

/// Where a statement leaves off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// A rendering under way.
pub(super) struct Eval<'t> {
    pub meter: &'t Meter,
    /// Names, the innermost last.
    scopes: Vec<Scope>,
    /// What [`Value::Macro`] counts: macros with the number of scopes that they see, which are those around them.
    macros: Vec<(&'t Macro, usize)>,
    /// Loops that may call themselves, likewise.
    loops: Vec<(&'t For, usize)>,
    out: Writer<'t>,
}

/// What a template makes of `variables`, of which the last of one name counts.
pub fn render(body: &Body, variables: &[(String, Data)], meter: &Meter) -> Result<String> {
    let mut scope = Scope::new();
    for (name, value) in variables {
        scope.insert(name.as_str().into(), meter.data(value)?);
    }
    let mut eval = Eval {
        meter,
        scopes: vec![scope],
        macros: Vec::new(),
        loops: Vec::new(),
        out: Writer::new(meter),
    };
    eval.run(body)?;
    Ok(eval.out.text)
}

impl<'t> Eval<'t> {
    pub fn lookup(&self, name: &str) -> Option<&Value> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn store(&mut self, name: &Arc<str>, value: Value) -> Result<()> {
        self.meter.spend(2 * SLOT)?;
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Does `work` with names of its own.
    fn scoped<T>(&mut self, scope: Scope, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.meter.step()?;
        self.scopes.push(scope);
        let done = work(self);
        self.scopes.pop();
        done
    }

    /// Does `work` as it would be done among the outermost `visible` scopes.
    fn within<T>(
        &mut self,
        visible: usize,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.meter.spend_many(self.scopes.len(), SLOT)?;
        let hidden = self.scopes.split_off(visible.min(self.scopes.len()));
        let done = work(self);
        self.scopes.extend(hidden);
        done
    }

    /// The text that `work` writes.
    fn captured(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<Value> {
        let outer = std::mem::replace(&mut self.out, Writer::new(self.meter));
        let done = work(self);
        let text = std::mem::replace(&mut self.out, outer);
        done?;
        text.value()
    }

    fn run(&mut self, body: &'t Body) -> Result<Flow> {
        self.meter.enter()?;
        let flow = self.run_lines(body);
        self.meter.leave();
        flow
    }

    fn run_lines(&mut self, body: &'t Body) -> Result<Flow> {
        for line in body {
            self.meter.step()?;
            let done = self.statement(&line.stmt);
            match done.map_err(|error| error.at(line.number))? {
                Flow::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::Next)
    }

    /// Runs a body that no loop is left from.
    fn run_whole(&mut self, body: &'t Body) -> Result<()> {
        self.run(body).map(|_| ())
    }

    fn statement(&mut self, stmt: &'t Stmt) -> Result<Flow> {
        match stmt {
            Stmt::Text(text) => self.out.push(text)?,
            Stmt::Print(expr) => {
                let value = self.eval(expr)?;
                self.out.plain(&value)?;
            }
            Stmt::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition)?.truth() {
                        return self.run(body);
                    }
                }
                return self.run(otherwise);
            }
            Stmt::For(tag) => {
                let items = self.eval(&tag.items)?;
                let recursive = tag.recursive.then(|| {
                    self.loops.push((tag, self.scopes.len()));
                    self.loops.len() - 1
                });
                self.run_loop(tag, &items, 0, recursive)?;
            }
            Stmt::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign(target, value)?;
            }
            Stmt::SetBlock(target, filters, body) => {
                let value = self.filtered(filters, body)?;
                self.assign(target, value)?;
            }
            Stmt::Filter(filters, body) => {
                let value = self.filtered(filters, body)?;
                self.out.plain(&value)?;
            }
            Stmt::With(assigned, body) => return self.with(assigned, body),
            Stmt::Macro(tag) => {
                self.macros.push((tag, self.scopes.len()));
                self.store(&tag.name, Value::Macro(self.macros.len() - 1))?;
            }
            Stmt::Call(caller, called) => {
                self.macros.push((caller, self.scopes.len()));
                let caller = Value::Macro(self.macros.len() - 1);
                let value = match called {
                    Expr::Postfix(of, behind) => self.postfixed(of, behind, Some(caller))?,
                    other => self.eval(other)?,
                };
                self.out.plain(&value)?;
            }
            Stmt::Scope(body) => return self.scoped(Scope::new(), |eval| eval.run(body)),
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn with(&mut self, assigned: &'t [(Target, Expr)], body: &'t Body) -> Result<Flow> {
        let mut values = Vec::with_capacity(assigned.len());
        for (target, expr) in assigned {
            values.push((target, self.eval(expr)?));
        }
        self.scoped(Scope::new(), |eval| {
            for (target, value) in values {
                eval.assign(target, value)?;
            }
            eval.run(body)
        })
    }

    /// What a body writes, through filters.
    fn filtered(&mut self, filters: &'t [Postfix], body: &'t Body) -> Result<Value> {
        let written = |eval: &mut Self| eval.scoped(Scope::new(), |eval| eval.run_whole(body));
        let mut value = self.captured(written)?;
        for filter in filters {
            value = self.postfix(value, filter, None)?;
        }
        Ok(value)
    }

    /// Runs a loop's body for every item; `depth` loops of the same tag are around it.
    fn run_loop(
        &mut self,
        tag: &'t For,
        items: &Value,
        depth: usize,
        recursive: Option<usize>,
    ) -> Result<()> {
        let mut items = items.items(self.meter)?;
        if let Some(condition) = &tag.condition {
            let mut kept = Vec::new();
            for item in items {
                let holds = self.scoped(Scope::new(), |eval| {
                    eval.assign(&tag.target, item.clone())?;
                    Ok(eval.eval(condition)?.truth())
                })?;
                if holds {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let items = Rc::new(items);
        let name: Arc<str> = "loop".into();
        // As in Jinja, a body that was left before its end does not count.
        let mut completed = false;
        for (index, item) in items.iter().enumerate() {
            let state = Value::Loop(Rc::new(Loop {
                items: items.clone(),
                index,
                depth,
                recursive,
            }));
            let flow = self.scoped(Scope::new(), |eval| {
                eval.store(&name, state)?;
                eval.assign(&tag.target, item.clone())?;
                eval.run(&tag.body)
            })?;
            match flow {
                Flow::Next => completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        match completed {
            true => Ok(()),
            false => self.scoped(Scope::new(), |eval| eval.run_whole(&tag.otherwise)),
        }
    }

    /// What a loop that calls itself writes for `items`.
    pub(super) fn call_loop(&mut self, of: &Loop, items: &Value) -> Result<Value> {
        let Some((number, &(tag, visible))) = of
            .recursive
            .and_then(|number| Some((number, self.loops.get(number)?)))
        else {
            return Err(Error::new("the loop is not recursive"));
        };
        let depth = of.depth + 1;
        self.captured(|eval| {
            eval.within(visible, |eval| {
                eval.run_loop(tag, items, depth, Some(number))
            })
        })
    }

    /// What the macro with this number writes.
    pub(super) fn call_macro(&mut self, number: usize, mut given: Given) -> Result<Value> {
        let Some(&(of, visible)) = self.macros.get(number) else {
            return Err(Error::new("a macro that is not there"));
        };
        let called = |eval: &mut Self| {
            let mut scope = Scope::new();
            if let Some(caller) = given.take_named("caller") {
                scope.insert("caller".into(), caller);
            }
            let mut missing = Vec::new();
            for (name, default) in &of.parameters {
                match given.take(name) {
                    Some(value) => {
                        scope.insert(name.clone(), value);
                    }
                    None => missing.push((name, default)),
                }
            }
            let (positional, named) = (given.positional, given.named);
            scope.insert("varargs".into(), eval.meter.tuple(positional)?);
            let named = named
                .into_iter()
                .map(|(name, value)| (Value::Str(name), value));
            scope.insert("kwargs".into(), eval.meter.dict(named)?);
            eval.scoped(scope, |eval| {
                for (name, default) in missing {
                    let value = match default {
                        Some(default) => eval.eval(default)?,
                        None => Value::Undefined(name.clone()),
                    };
                    eval.store(name, value)?;
                }
                eval.run_whole(&of.body)
            })
        };
        self.captured(|eval| eval.within(visible, called))
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.store(name, value),
            Target::Tuple(targets) => {
                let items = value.items(self.meter)?;
                if items.len() != targets.len() {
                    let (count, given) = (targets.len(), items.len());
                    return Err(Error::new(format!("{given} values for {count} names")));
                }
                let mut pairs = targets.iter().zip(items);
                pairs.try_for_each(|(target, item)| self.assign(target, item))
            }
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(space)) = self.lookup(name) else {
                    let what = format!("{name} is no namespace, whose {attribute} could be set");
                    return Err(Error::new(what));
                };
                let space = space.clone();
                set_in(&space, attribute, value, self.meter)
            }
        }
    }
}

/// Puts a value under a name into a namespace.
pub(super) fn set_in(space: &Space, name: &Arc<str>, value: Value, meter: &Meter) -> Result<()> {
    value.check_data()?;
    let mut entries = space.borrow_mut();
    meter.spend_many(entries.len() + 1, SLOT)?;
    match entries.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => entries.push((name.clone(), value)),
    }
    Ok(())
}
