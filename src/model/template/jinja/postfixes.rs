//! Tokens as a tree: what stands behind an expression.

use std::sync::Arc;

use super::ast::{Args, Const, Expr, Postfix};
use super::lexer::Kind;
use super::meter::{Error, Result};
use super::parser::Parser;

impl Parser<'_> {
    /// Attributes, items and calls.
    pub(super) fn postfixes(&mut self, behind: &mut Vec<Postfix>) -> Result<()> {
        loop {
            match self.peek() {
                Some(Kind::Op(".")) => {
                    self.next();
                    behind.push(match self.next() {
                        Some(Kind::Name(name)) => Postfix::Attribute(name.into()),
                        Some(Kind::Int(index)) => Postfix::Item(Expr::Const(Const::Int(index))),
                        _ => return Err(Error::new("a dot without a name behind it")),
                    });
                }
                Some(Kind::Op("[")) => {
                    self.next();
                    behind.push(self.subscript()?);
                }
                Some(Kind::Op("(")) => {
                    let args = self.args()?;
                    let name = match behind.last() {
                        Some(Postfix::Attribute(name)) => Some(name.clone()),
                        _ => None,
                    };
                    match name {
                        Some(name) => {
                            behind.pop();
                            behind.push(Postfix::Method(name, args));
                        }
                        None => behind.push(Postfix::Call(args)),
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn subscript(&mut self) -> Result<Postfix> {
        let mut parts = [None, None, None];
        let mut part = 0;
        loop {
            if self.skip_op("]") {
                break;
            }
            if self.skip_op(":") {
                part += 1;
                if part == parts.len() {
                    return Err(Error::new("a slice has at most three parts"));
                }
                continue;
            }
            if parts[part].is_some() {
                return Err(self.unexpected("\"]\""));
            }
            parts[part] = Some(self.expression()?);
        }
        match (part, parts) {
            (0, [Some(item), ..]) => Ok(Postfix::Item(item)),
            (0, _) => Err(Error::new("brackets without an index in them")),
            (_, parts) => Ok(Postfix::Slice(Box::new(parts))),
        }
    }

    pub(super) fn filters_and_tests(&mut self, behind: &mut Vec<Postfix>) -> Result<()> {
        loop {
            if self.skip_op("|") {
                behind.push(self.filter()?);
            } else if self.skip_word("is") {
                let negated = self.skip_word("not");
                let name = self.dotted_name()?;
                let args = self.test_args()?;
                behind.push(Postfix::Test {
                    name,
                    negated,
                    args,
                });
            } else if self.is_op("(") {
                behind.push(Postfix::Call(self.args()?));
            } else {
                return Ok(());
            }
        }
    }

    /// A filter's name and arguments.
    pub(super) fn filter(&mut self) -> Result<Postfix> {
        let name = self.dotted_name()?;
        let args = match self.is_op("(") {
            true => self.args()?,
            false => Args::default(),
        };
        Ok(Postfix::Filter(name, args))
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }

    /// The arguments of a test, which may be one without brackets.
    fn test_args(&mut self) -> Result<Args> {
        let one = match self.peek() {
            Some(Kind::Op("(")) => return self.args(),
            Some(Kind::Name(word)) => !["else", "or", "and"].contains(word),
            Some(Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{")) => true,
            _ => false,
        };
        let mut args = Args::default();
        if one {
            let expr = self.nested(Self::primary)?;
            let mut behind = Vec::new();
            self.postfixes(&mut behind)?;
            args.positional.push(with_postfixes(expr, behind));
        }
        Ok(args)
    }

    pub(super) fn args(&mut self) -> Result<Args> {
        let mut args = Args::default();
        self.expect_op("(")?;
        let mut first = true;
        while !self.skip_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            first = false;
            let is_named = self.peek_behind() == Some(&Kind::Op("="));
            if self.skip_op("*") {
                args.more = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                args.more_named = Some(Box::new(self.expression()?));
            } else if is_named {
                let name = self.expect_name()?;
                self.next();
                args.named.push((name, self.expression()?));
            } else if args.named.is_empty() {
                args.positional.push(self.expression()?);
            } else {
                return Err(Error::new(
                    "an argument without a name behind one with a name",
                ));
            }
        }
        Ok(args)
    }
}

pub(super) fn with_postfixes(expr: Expr, behind: Vec<Postfix>) -> Expr {
    match behind.is_empty() {
        true => expr,
        false => Expr::Postfix(Box::new(expr), behind),
    }
}
