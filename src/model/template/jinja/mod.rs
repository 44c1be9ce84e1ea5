//! Jinja as far as chat templates use it, for templates that nobody vouches for.
//!
//! A checkpoint's template is a program from outside. Here everything that it does is metered: each step, and each byte that is
//! made, copied or looked at, is paid for beforehand out of one fixed sum ([`meter`]); brackets, blocks, calls and data nest to fixed
//! depths; values never change and hold no cycles. So memory, time and stack are bounded whatever the template says, in the process
//! that renders it. A general engine gives no such bound: a step of it may double a string, and steps are all that it counts.
//!
//! What templates mean is what Jinja 3.1 makes of them in the environment of transformers' `apply_chat_template`: blanks around tags
//! trimmed, `break` and `continue`, the tag `generation`, `tojson` as `json.dumps`, `raise_exception`, `strftime_now`, lists and dicts
//! that cannot be changed. The tags that load other templates are refused.
//!
//! - `lexer`, `parser` (expressions), `postfixes` (what stands behind them), `statements`: from the source to the tree of `ast`
//! - `eval` (statements), `expressions`: from the tree to text
//! - `data`: what conversations are handed over as
//! - `value`, `compare`, `math`, `text`: Python's values, operators and spellings; `percent`: its formatting with `%`
//! - `given` (arguments), `functions`, `filters`, `sequences` (filters of lists), `methods`, `strings` (methods of strings),
//!   `checks` (tests): what templates can call

mod ast;
mod checks;
mod compare;
mod data;
mod eval;
mod expressions;
mod filters;
mod functions;
mod given;
mod lexer;
mod math;
mod meter;
mod methods;
mod parser;
mod percent;
mod postfixes;
mod sequences;
mod statements;
mod strings;
mod text;
mod value;

pub use data::Data;
pub use meter::Error;
use meter::{Meter, Result};

/// Longest source, bytes. The longest published ones have about 30,000.
pub const LONGEST_SOURCE: usize = 256 << 10;

/// A template that has been read.
pub struct Template {
    body: ast::Body,
}

impl Template {
    pub fn parse(source: &str) -> Result<Self> {
        if source.len() > LONGEST_SOURCE {
            return Err(Error::new(format!(
                "the template is {} bytes long, expected at most {LONGEST_SOURCE}",
                source.len()
            )));
        }
        let source = lexer::with_plain_line_ends(source);
        let tokens = lexer::tokens(&source)?;
        let body = parser::Parser::new(tokens).template()?;
        Ok(Self { body })
    }

    /// What the template makes of `variables`, of which the last of one name counts.
    pub fn render(&self, variables: &[(String, Data)]) -> Result<String> {
        let meter = Meter::new();
        eval::render(&self.body, variables, &meter)
    }
}
