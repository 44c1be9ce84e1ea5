//! Tokens as a tree: expressions. Statements are in `statements`, what stands behind an expression in `postfixes`.

use std::sync::Arc;

use super::ast::{CompareOp, Const, Expr, MathOp, Sign};
use super::lexer::{Kind, Token};
use super::meter::{Error, Result};
use super::postfixes::with_postfixes;

/// Levels of brackets, operators and blocks inside each other.
const NESTING: usize = 64;

pub struct Parser<'s> {
    tokens: Vec<Token<'s>>,
    at: usize,
    depth: usize,
    /// Loops around the statement that is read.
    pub(super) loops: usize,
}

/// Levels of precedence, from what binds least.
const LEVELS: [Level; 6] = [
    Level::Or,
    Level::And,
    Level::Compare,
    Level::Sum,
    Level::Concat,
    Level::Product,
];

#[derive(Clone, Copy)]
enum Level {
    Or,
    And,
    Compare,
    Sum,
    Concat,
    Product,
}

impl<'s> Parser<'s> {
    pub fn new(tokens: Vec<Token<'s>>) -> Self {
        Self {
            tokens,
            at: 0,
            depth: 0,
            loops: 0,
        }
    }

    /// The line of the next token.
    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get(self.at.min(last))
            .map_or(1, |token| token.line)
    }

    pub(super) fn peek(&self) -> Option<&Kind<'s>> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn peek_behind(&self) -> Option<&Kind<'s>> {
        self.tokens.get(self.at + 1).map(|token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Option<Kind<'s>> {
        let kind = self.peek().cloned();
        self.at += 1;
        kind
    }

    pub(super) fn skip(&mut self, kind: &Kind) -> bool {
        let found = self.peek() == Some(kind);
        self.at += usize::from(found);
        found
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Kind::Op(found)) if *found == op)
    }

    pub(super) fn skip_op(&mut self, op: &'static str) -> bool {
        self.skip(&Kind::Op(op))
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if *found == word)
    }

    pub(super) fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_op(&mut self, op: &'static str) -> Result<()> {
        match self.skip_op(op) {
            true => Ok(()),
            false => Err(self.unexpected(&format!("{op:?}"))),
        }
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>> {
        match self.peek() {
            Some(&Kind::Name(name)) => {
                self.at += 1;
                Ok(name.into())
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    /// What stands there instead of `expected`.
    pub(super) fn unexpected(&self, expected: &str) -> Error {
        let found = match self.peek() {
            None => "the end of the template".to_string(),
            Some(Kind::Text(_)) => "text".to_string(),
            Some(Kind::PrintBegin) => "{{".to_string(),
            Some(Kind::PrintEnd) => "}}".to_string(),
            Some(Kind::TagBegin) => "{%".to_string(),
            Some(Kind::TagEnd) => "%}".to_string(),
            Some(Kind::Name(name)) => name.to_string(),
            Some(Kind::Str(_)) => "a string".to_string(),
            Some(Kind::Int(_) | Kind::Float(_)) => "a number".to_string(),
            Some(Kind::Op(op)) => format!("{op:?}"),
        };
        Error::new(format!("{found}, expected {expected}"))
    }

    /// Reads something one level deeper.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == NESTING {
            return Err(Error::new(format!(
                "the template is nested deeper than {NESTING} levels"
            )));
        }
        self.depth += 1;
        let done = read(self);
        self.depth -= 1;
        done
    }

    /// A whole expression.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::conditional)
    }

    /// An expression without a condition behind it.
    pub(super) fn unconditional(&mut self) -> Result<Expr> {
        self.nested(|parser| parser.level(0))
    }

    /// One expression, or several with commas between them as a tuple.
    pub(super) fn tuple(&mut self, conditional: bool) -> Result<Expr> {
        let mut items = Vec::new();
        loop {
            if self.ends_tuple() {
                break;
            }
            items.push(match conditional {
                true => self.expression()?,
                false => self.unconditional()?,
            });
            if !self.is_op(",") {
                return Ok(match (items.len(), items.pop()) {
                    (1, Some(only)) => only,
                    (_, last) => {
                        items.extend(last);
                        Expr::Tuple(items)
                    }
                });
            }
            self.at += 1;
        }
        match items.is_empty() {
            true => Err(self.unexpected("an expression")),
            false => Ok(Expr::Tuple(items)),
        }
    }

    fn ends_tuple(&self) -> bool {
        match self.peek() {
            None | Some(Kind::TagEnd | Kind::PrintEnd) => true,
            Some(Kind::Op(op)) => *op == ")",
            Some(Kind::Name(name)) => *name == "in" || *name == "recursive",
            _ => false,
        }
    }

    fn conditional(&mut self) -> Result<Expr> {
        let mut expr = self.level(0)?;
        for _ in 0..NESTING {
            if !self.skip_word("if") {
                return Ok(expr);
            }
            let condition = Box::new(self.level(0)?);
            let otherwise = match self.skip_word("else") {
                true => Some(Box::new(self.expression()?)),
                false => None,
            };
            expr = Expr::If {
                condition,
                then: Box::new(expr),
                otherwise,
            };
        }
        Err(Error::new(format!(
            "more than {NESTING} conditions in a row"
        )))
    }

    fn level(&mut self, level: usize) -> Result<Expr> {
        match LEVELS.get(level) {
            None => self.power(),
            Some(Level::Or) => self.words("or", level, Expr::Or),
            Some(Level::And) => self.words("and", level, Expr::And),
            Some(Level::Compare) => self.negation(level),
            Some(Level::Sum) => self.math(level, &[("+", MathOp::Add), ("-", MathOp::Sub)]),
            Some(Level::Concat) => {
                let first = self.level(level + 1)?;
                if !self.is_op("~") {
                    return Ok(first);
                }
                let mut operands = vec![first];
                while self.skip_op("~") {
                    operands.push(self.level(level + 1)?);
                }
                Ok(Expr::Concat(operands))
            }
            Some(Level::Product) => self.math(
                level,
                &[
                    ("*", MathOp::Mul),
                    ("/", MathOp::Div),
                    ("//", MathOp::FloorDiv),
                    ("%", MathOp::Rem),
                ],
            ),
        }
    }

    fn words(&mut self, word: &str, level: usize, chain: fn(Vec<Expr>) -> Expr) -> Result<Expr> {
        let first = self.level(level + 1)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_word(word) {
            operands.push(self.level(level + 1)?);
        }
        Ok(chain(operands))
    }

    fn negation(&mut self, level: usize) -> Result<Expr> {
        match self.skip_word("not") {
            true => {
                let negated = self.nested(|parser| parser.negation(level))?;
                Ok(Expr::Not(Box::new(negated)))
            }
            false => self.comparison(level),
        }
    }

    fn comparison(&mut self, level: usize) -> Result<Expr> {
        let first = self.level(level + 1)?;
        let mut rest = Vec::new();
        loop {
            let negated = self.is_word("not") && self.peek_behind() == Some(&Kind::Name("in"));
            let op = match self.peek() {
                Some(Kind::Op("==")) => CompareOp::Eq,
                Some(Kind::Op("!=")) => CompareOp::Ne,
                Some(Kind::Op("<")) => CompareOp::Lt,
                Some(Kind::Op("<=")) => CompareOp::Le,
                Some(Kind::Op(">")) => CompareOp::Gt,
                Some(Kind::Op(">=")) => CompareOp::Ge,
                Some(Kind::Name("in")) => CompareOp::In,
                _ if negated => CompareOp::NotIn,
                _ => break,
            };
            self.at += 1 + usize::from(negated);
            rest.push((op, self.level(level + 1)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expr::Compare(Box::new(first), rest),
        })
    }

    fn math(&mut self, level: usize, ops: &[(&'static str, MathOp)]) -> Result<Expr> {
        let first = self.level(level + 1)?;
        let mut rest = Vec::new();
        while let Some(&(_, op)) = ops.iter().find(|(op, _)| self.is_op(op)) {
            self.at += 1;
            rest.push((op, self.level(level + 1)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expr::Math(Box::new(first), rest),
        })
    }

    fn power(&mut self) -> Result<Expr> {
        let first = self.unary(true)?;
        let mut rest = Vec::new();
        while self.skip_op("**") {
            rest.push((MathOp::Pow, self.unary(true)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expr::Math(Box::new(first), rest),
        })
    }

    /// A sign in front binds more than a filter behind.
    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let sign = match self.peek() {
            Some(Kind::Op("-")) => Some(Sign::Minus),
            Some(Kind::Op("+")) => Some(Sign::Plus),
            _ => None,
        };
        let expr = match sign {
            Some(sign) => {
                self.at += 1;
                let of = self.nested(|parser| parser.unary(false))?;
                Expr::Signed(sign, Box::new(of))
            }
            None => self.primary()?,
        };
        let mut behind = Vec::new();
        self.postfixes(&mut behind)?;
        if with_filters {
            self.filters_and_tests(&mut behind)?;
        }
        Ok(with_postfixes(expr, behind))
    }

    pub(super) fn primary(&mut self) -> Result<Expr> {
        let Some(kind) = self.peek().cloned() else {
            return Err(self.unexpected("an expression"));
        };
        let constant = match kind {
            Kind::Name("true" | "True") => Const::Bool(true),
            Kind::Name("false" | "False") => Const::Bool(false),
            Kind::Name("none" | "None") => Const::None,
            Kind::Int(number) => Const::Int(number),
            Kind::Float(number) => Const::Float(number),
            Kind::Str(mut text) => {
                self.at += 1;
                while let Some(Kind::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                return Ok(Expr::Const(Const::Str(text.into())));
            }
            Kind::Name(name) => {
                self.at += 1;
                return Ok(Expr::Name(name.into()));
            }
            Kind::Op("(") => {
                self.at += 1;
                let inner = match self.is_op(")") {
                    true => Expr::Tuple(Vec::new()),
                    false => self.tuple(true)?,
                };
                self.expect_op(")")?;
                return Ok(inner);
            }
            Kind::Op("[") => {
                self.at += 1;
                return Ok(Expr::List(self.listed("]", Self::expression)?));
            }
            Kind::Op("{") => {
                self.at += 1;
                let pair = |parser: &mut Self| {
                    let key = parser.expression()?;
                    parser.expect_op(":")?;
                    Ok((key, parser.expression()?))
                };
                return Ok(Expr::Dict(self.listed("}", pair)?));
            }
            _ => return Err(self.unexpected("an expression")),
        };
        self.at += 1;
        Ok(Expr::Const(constant))
    }

    /// Things with commas between them up to `end`.
    fn listed<T>(
        &mut self,
        end: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(end) {
                    break;
                }
            }
            items.push(read(self)?);
        }
        Ok(items)
    }
}
