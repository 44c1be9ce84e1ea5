//! The tree of a template. Chains of operators are flat, so that only brackets and blocks nest.

use std::sync::Arc;

pub type Body = Vec<Line>;

/// A statement, and the line that it begins in.
pub struct Line {
    pub number: u32,
    pub stmt: Stmt,
}

pub enum Stmt {
    Text(Arc<str>),
    Print(Expr),
    /// Conditions with what belongs to them, and what is done where none holds.
    If(Vec<(Expr, Body)>, Body),
    For(Box<For>),
    Set(Target, Expr),
    /// What the body writes, through filters, under a name.
    SetBlock(Target, Vec<Postfix>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(Box<Macro>),
    /// A macro's call with a body, which the macro knows as `caller`.
    Call(Box<Macro>, Expr),
    Filter(Vec<Postfix>, Body),
    /// A body with its own names.
    Scope(Body),
    Break,
    Continue,
}

pub struct For {
    pub target: Target,
    pub items: Expr,
    pub condition: Option<Expr>,
    pub body: Body,
    pub otherwise: Body,
    pub recursive: bool,
}

pub struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub body: Body,
}

/// What is assigned to.
pub enum Target {
    Name(Arc<str>),
    Tuple(Vec<Target>),
    /// A name and what of it.
    Attribute(Arc<str>, Arc<str>),
}

pub enum Expr {
    Const(Const),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Signed(Sign, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Math(Box<Expr>, Vec<(MathOp, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    Postfix(Box<Expr>, Vec<Postfix>),
}

#[derive(Clone)]
pub enum Const {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Clone, Copy)]
pub enum Sign {
    Plus,
    Minus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MathOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// What stands behind an expression and is done with its value.
pub enum Postfix {
    Attribute(Arc<str>),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Args),
    /// A method's call.
    Method(Arc<str>, Args),
    Filter(Arc<str>, Args),
    Test {
        name: Arc<str>,
        negated: bool,
        args: Args,
    },
}

#[derive(Default)]
pub struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    /// `*` and `**`.
    pub more: Option<Box<Expr>>,
    pub more_named: Option<Box<Expr>>,
}
