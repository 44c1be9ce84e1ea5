//! Tokens as a tree: statements.

use std::sync::Arc;

use super::ast::{Body, Expr, For, Line, Macro, Postfix, Stmt, Target};
use super::lexer::Kind;
use super::meter::{Error, Result};
use super::parser::Parser;

impl Parser<'_> {
    /// The whole template.
    pub fn template(&mut self) -> Result<Body> {
        let body = self.body(&[]).map_err(|error| error.at(self.line()))?;
        match self.peek() {
            None => Ok(body),
            Some(_) => Err(self.unexpected("the end of the template").at(self.line())),
        }
    }

    /// Statements up to a tag with one of the words `ends`, whose word is the next token then.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Vec::new();
        while let Some(kind) = self.peek().cloned() {
            let number = self.line();
            let stmt = match kind {
                Kind::Text(text) => {
                    self.next();
                    Stmt::Text(text.into())
                }
                Kind::PrintBegin => {
                    self.next();
                    let expr = self.tuple(true)?;
                    self.expect(&Kind::PrintEnd, "}}")?;
                    Stmt::Print(expr)
                }
                Kind::TagBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_word(end)) {
                        return Ok(body);
                    }
                    self.nested(Self::statement)?
                }
                _ => return Err(self.unexpected("text or a tag")),
            };
            body.push(Line { number, stmt });
        }
        match ends {
            [] => Ok(body),
            _ => Err(self.unexpected(&format!("{{% {} %}}", ends.join(" %} or {% ")))),
        }
    }

    fn expect(&mut self, kind: &Kind, name: &str) -> Result<()> {
        match self.skip(kind) {
            true => Ok(()),
            false => Err(self.unexpected(name)),
        }
    }

    fn end_of_tag(&mut self) -> Result<()> {
        self.expect(&Kind::TagEnd, "%}")
    }

    /// Statements up to `end`, with that tag; the tag in front of them ends here.
    fn block(&mut self, end: &str) -> Result<Body> {
        self.end_of_tag()?;
        let body = self.body(&[end])?;
        self.next();
        self.end_of_tag()?;
        Ok(body)
    }

    fn statement(&mut self) -> Result<Stmt> {
        let word = self.expect_name()?;
        match &*word {
            "if" => self.condition(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.expect_name()?;
                let parameters = self.parameters()?;
                let body = self.outside_loops(|parser| parser.block("endmacro"))?;
                Ok(Stmt::Macro(Box::new(Macro {
                    name,
                    parameters,
                    body,
                })))
            }
            "call" => self.call(),
            "filter" => {
                let mut filters = vec![self.filter()?];
                self.filters_and_tests(&mut filters)?;
                Ok(Stmt::Filter(filters, self.block("endfilter")?))
            }
            // Marks for training what an assistant has said.
            "generation" => Ok(Stmt::Scope(self.block("endgeneration")?)),
            "break" | "continue" if self.loops > 0 => {
                self.end_of_tag()?;
                Ok(match &*word {
                    "break" => Stmt::Break,
                    _ => Stmt::Continue,
                })
            }
            other => Err(Error::new(format!("the tag {other} cannot stand here"))),
        }
    }

    fn condition(&mut self) -> Result<Stmt> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(true)?;
            self.end_of_tag()?;
            branches.push((condition, self.body(&["elif", "else", "endif"])?));
            if self.skip_word("elif") {
                continue;
            }
            let otherwise = match self.skip_word("else") {
                true => {
                    self.end_of_tag()?;
                    self.body(&["endif"])?
                }
                false => Vec::new(),
            };
            self.next();
            self.end_of_tag()?;
            return Ok(Stmt::If(branches, otherwise));
        }
    }

    fn for_loop(&mut self) -> Result<Stmt> {
        let target = self.target()?;
        if !self.skip_word("in") {
            return Err(self.unexpected("in"));
        }
        let items = self.tuple(false)?;
        let condition = match self.skip_word("if") {
            true => Some(self.expression()?),
            false => None,
        };
        let recursive = self.skip_word("recursive");
        self.end_of_tag()?;
        self.loops += 1;
        let body = self.body(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let otherwise = match self.skip_word("else") {
            true => {
                self.end_of_tag()?;
                self.body(&["endfor"])?
            }
            false => Vec::new(),
        };
        self.next();
        self.end_of_tag()?;
        Ok(Stmt::For(Box::new(For {
            target,
            items,
            condition,
            body,
            otherwise,
            recursive,
        })))
    }

    /// What is assigned to: names with commas between them.
    fn target(&mut self) -> Result<Target> {
        let first = self.nested(Self::one_target)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut targets = vec![first];
        while self.skip_op(",") && !self.is_word("in") && !self.is_op("=") {
            targets.push(self.nested(Self::one_target)?);
        }
        Ok(Target::Tuple(targets))
    }

    fn one_target(&mut self) -> Result<Target> {
        if self.skip_op("(") {
            let inner = self.target()?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let name = self.expect_name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            return Err(Error::new(format!("{name} cannot be assigned to")));
        }
        Ok(Target::Name(name))
    }

    fn set(&mut self) -> Result<Stmt> {
        let mut target = self.target()?;
        if let Target::Name(name) = &target {
            if self.skip_op(".") {
                target = Target::Attribute(name.clone(), self.expect_name()?);
            }
        }
        if self.skip_op("=") {
            let value = self.tuple(true)?;
            self.end_of_tag()?;
            return Ok(Stmt::Set(target, value));
        }
        let mut filters = Vec::new();
        self.filters_and_tests(&mut filters)?;
        Ok(Stmt::SetBlock(target, filters, self.block("endset")?))
    }

    fn with(&mut self) -> Result<Stmt> {
        let mut assigned = Vec::new();
        while self.peek() != Some(&Kind::TagEnd) {
            if !assigned.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.nested(Self::one_target)?;
            self.expect_op("=")?;
            assigned.push((target, self.expression()?));
        }
        Ok(Stmt::With(assigned, self.block("endwith")?))
    }

    /// The parameters of a macro, in brackets.
    fn parameters(&mut self) -> Result<Vec<(Arc<str>, Option<Expr>)>> {
        let mut parameters = Vec::new();
        self.expect_op("(")?;
        while !self.skip_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            let default = match self.skip_op("=") {
                true => Some(self.expression()?),
                false => None,
            };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn call(&mut self) -> Result<Stmt> {
        let parameters = match self.is_op("(") {
            true => self.parameters()?,
            false => Vec::new(),
        };
        let called = self.expression()?;
        let is_call = matches!(&called, Expr::Postfix(_, behind)
            if matches!(behind.last(), Some(Postfix::Call(_) | Postfix::Method(..))));
        if !is_call {
            return Err(Error::new("the tag call without a call in it"));
        }
        let body = self.outside_loops(|parser| parser.block("endcall"))?;
        let caller = Macro {
            name: "caller".into(),
            parameters,
            body,
        };
        Ok(Stmt::Call(Box::new(caller), called))
    }

    /// A loop around a macro is none that the macro's body could leave.
    fn outside_loops<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let loops = std::mem::take(&mut self.loops);
        let done = read(self);
        self.loops = loops;
        done
    }
}
