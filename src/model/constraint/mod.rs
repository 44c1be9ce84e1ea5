//! Which tokens may come next in text of a grammar: a JSON schema, a regular expression or a Lark grammar, compiled by llguidance.
//!
//! - this file: grammars, and a text of one that is being written
//! - `schema`: JSON schemas
//! - `bounds`: those of their numbers
//! - `text_exists`: grammars of which there is no text

mod bounds;
mod schema;
mod text_exists;

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::Value;

use self::schema::{place, schema_grammar, wrong_part};
use self::text_exists::rule_without_text;
use super::ends::Ends;
use super::tokenizer::ChatTokenizer;
use super::ModelError;
use crate::excerpt::{excerpt, excerpt_of_message};

/// The longest grammar, bytes.
pub const MAX_GRAMMAR_BYTES: usize = 64 << 10;

/// Brackets within brackets of a grammar: it is compiled by functions that call themselves.
const MAX_NESTED: usize = 100;

/// Of the thread in which grammars are compiled, bytes; only what is used is allocated. Rules that stand for rules nest without brackets.
const STACK: usize = 256 << 20;

/// What is said of a grammar that allows nothing at all.
const NO_TEXT: &str = "there is no text of it, expected at least one";

/// What is said where the library panics.
const CANNOT: &str = "the grammar library cannot work with it (control tokens cannot be named)";

/// States of the automaton of a grammar's words, one or two kB each.
const MAX_STATES: usize = 20_000;

/// What a grammar is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrammarKind {
    JsonSchema,
    /// In the syntax of Rust's regex crate; the whole text matches it.
    Regex,
    /// In llguidance's dialect of Lark.
    Lark,
}

impl GrammarKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonSchema => "json_schema",
            Self::Regex => "regex",
            Self::Lark => "lark",
        }
    }
}

impl fmt::Display for GrammarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A grammar of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextGrammar {
    pub kind: GrammarKind,
    pub text: String,
}

/// Why there is no answer of a grammar, or not all of one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConstraintError {
    #[error("grammar ({0}) is empty, expected one")]
    Empty(GrammarKind),
    #[error("grammar ({kind}) is {bytes} bytes long, expected at most {MAX_GRAMMAR_BYTES}")]
    Long { kind: GrammarKind, bytes: usize },
    #[error("grammar ({kind}) has brackets within brackets {depth} deep at byte {at}, expected at most {MAX_NESTED}")]
    Nested {
        kind: GrammarKind,
        depth: usize,
        at: usize,
    },
    #[error("grammar ({kind}) cannot be compiled{place}: {what}")]
    Grammar {
        kind: GrammarKind,
        /// Where in it, if what is wrong does not say it itself.
        place: String,
        what: String,
    },
    #[error("this checkpoint cannot answer in a grammar: {0}")]
    Checkpoint(String),
    #[error("the answer's grammar cannot be followed any further: {0}")]
    Followed(String),
}

/// What grammars are compiled with: the bytes of a model's tokens.
pub struct Constraints {
    factory: ParserFactory,
    /// Control tokens; those that end an answer stand apart.
    controls: Arc<[u32]>,
    ends: Arc<[u32]>,
}

impl Constraints {
    /// For a decoder with logits over `vocabulary` tokens.
    pub fn new(
        tokenizer: &ChatTokenizer,
        ends: &Ends,
        vocabulary: usize,
    ) -> Result<Self, ConstraintError> {
        let unfit = |what: String| ConstraintError::Checkpoint(what);
        let &[end, ..] = ends.ids() else {
            return Err(unfit("it names no token that ends an answer".to_string()));
        };
        let words = tokenizer
            .token_bytes(vocabulary)
            .map_err(|error: ModelError| unfit(error.to_string()))?;
        let made = guarded(|| {
            let info = TokRxInfo::new(vocabulary as u32, end);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(ends.ids());
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&tokens).map_err(describe)?;
            factory.quiet();
            *factory.limits_mut() = ParserLimits {
                max_lexer_states: MAX_STATES,
                verbose_errors: false,
                ..ParserLimits::default()
            };
            Ok(factory)
        });
        let controls = tokenizer.controls().map(|(_, id)| id);
        Ok(Self {
            factory: made.map_err(unfit)?,
            controls: controls.filter(|&id| !ends.contains(id)).collect(),
            ends: ends.ids().into(),
        })
    }

    /// A text of `grammar` that has not begun; `lead` is written in front of it and no part of it.
    ///
    /// Fails where it is no grammar, and where there is no text of it.
    pub fn compile(
        &self,
        grammar: &TextGrammar,
        lead: &str,
    ) -> Result<Constraint, ConstraintError> {
        let &TextGrammar { kind, ref text } = grammar;
        if text.trim().is_empty() {
            return Err(ConstraintError::Empty(kind));
        }
        if text.len() > MAX_GRAMMAR_BYTES {
            let bytes = text.len();
            return Err(ConstraintError::Long { kind, bytes });
        }
        check_nesting(grammar)?;
        let built = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            let thread = builder.spawn_scoped(scope, || self.matcher(grammar, lead));
            let thread = thread.map_err(|error| ConstraintError::Checkpoint(error.to_string()))?;
            thread.join().unwrap_or_else(|_| {
                let what = "its compiler broke off".to_string();
                Err(refused(kind, String::new(), what))
            })
        })?;
        Ok(Constraint {
            matcher: built,
            tokens: self.factory.tok_env().clone(),
            lead: lead.len(),
            controls: self.controls.clone(),
            ends: self.ends.clone(),
        })
    }

    fn matcher(&self, grammar: &TextGrammar, lead: &str) -> Result<Matcher, ConstraintError> {
        let kind = grammar.kind;
        let refused = |place, what| refused(kind, place, what);
        let mut text = match kind {
            GrammarKind::Regex => GrammarWithLexer::from_regex(&grammar.text),
            GrammarKind::Lark => GrammarWithLexer::from_lark(grammar.text.clone()),
            GrammarKind::JsonSchema => {
                let schema = serde_json::from_str::<Value>(&grammar.text);
                let schema = schema.map_err(|error| refused(String::new(), error.to_string()))?;
                if let Some((pointer, what)) = wrong_part(&schema) {
                    return Err(refused(format!(" at #{pointer}"), what));
                }
                if let Err(what) = self.check(schema_grammar(&schema), false) {
                    let check = |grammar| self.check(grammar, false);
                    let pointer = place(&schema, &schema, &what, &check);
                    return Err(refused(format!(" at #{pointer}"), what));
                }
                schema_grammar(&schema)
            }
        };
        if kind != GrammarKind::JsonSchema {
            let checked = self.check(text.clone(), kind == GrammarKind::Lark);
            checked.map_err(|what| refused(String::new(), what))?;
        }
        text.name = Some(ANSWER.to_string());
        let top = match lead {
            "" => TopLevelGrammar::from_grammar(text),
            lead => {
                let lead = Value::from(lead);
                let start = format!("start: LEAD @{ANSWER}\nLEAD: {lead}\n");
                let mut top = TopLevelGrammar::from_lark(start);
                top.grammars.push(text);
                top
            }
        };
        let parser = self.parser(top);
        parser
            .and_then(matcher_of)
            .map_err(|what| refused(String::new(), what))
    }

    /// What is wrong with a grammar that cannot be compiled, or of which there is no text. `named`: its rules have the names that its author
    /// gave them.
    fn check(&self, grammar: GrammarWithLexer, named: bool) -> Result<(), String> {
        let mut parser = self.parser(TopLevelGrammar::from_grammar(grammar))?;
        let is_control = |id| self.controls.contains(&id) || self.ends.contains(&id);
        let rule = guarded(|| Ok(rule_without_text(&mut parser, &|id| !is_control(id))))?;
        if let Some(rule) = rule {
            return Err(match named {
                true => format!(
                    "there is no text of the rule {}, expected one that ends and has no control tokens",
                    excerpt(&rule)
                ),
                false => NO_TEXT.to_string(),
            });
        }
        let first = guarded(|| matcher_of(parser)?.compute_mask_or_eos().map_err(describe));
        // The library does not say more of a grammar with which no text can begin.
        first.map(|_| ()).map_err(|what| match what.is_empty() {
            true => NO_TEXT.to_string(),
            false => what,
        })
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<TokenParser, String> {
        guarded(|| self.factory.create_parser(grammar).map_err(describe))
    }
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").finish_non_exhaustive()
    }
}

/// What the rule in front of a grammar calls it.
const ANSWER: &str = "answer";

/// Counts every bracket, whatever it stands for: a few more than are nested do no harm.
fn check_nesting(grammar: &TextGrammar) -> Result<(), ConstraintError> {
    let mut depth = 0usize;
    for (at, byte) in grammar.text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTED {
            let kind = grammar.kind;
            return Err(ConstraintError::Nested { kind, depth, at });
        }
    }
    Ok(())
}

fn matcher_of(parser: TokenParser) -> Result<Matcher, String> {
    let matcher = Matcher::new(Ok(parser));
    match matcher.get_error() {
        Some(error) => Err(error),
        None => Ok(matcher),
    }
}

fn refused(kind: GrammarKind, place: String, what: String) -> ConstraintError {
    ConstraintError::Grammar { kind, place, what }
}

/// What the library says, but for what it says to its own developers.
fn describe(error: impl fmt::Display) -> String {
    let said = error.to_string();
    match said.trim_start().starts_with("panic") {
        true => CANNOT.to_string(),
        false => excerpt_of_message(said.replace("<non-verbose/>", "").trim()),
    }
}

/// What the library makes of a text from outside.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(CANNOT.to_string()))
}

/// A text of a grammar that is being written.
pub struct Constraint {
    matcher: Matcher,
    tokens: TokEnv,
    /// Bytes that are still to be written in front of the text.
    lead: usize,
    controls: Arc<[u32]>,
    ends: Arc<[u32]>,
}

impl Constraint {
    /// The tokens that may come next: text that the grammar goes on with, and the end where it is complete. Never a control token, whatever
    /// the grammar says.
    pub fn allowed(&mut self) -> Result<Allowed, ConstraintError> {
        let mut tokens = self.matcher.compute_mask_or_eos().map_err(followed)?;
        for &id in self.controls.iter() {
            tokens.disallow_token(id);
        }
        if !self.is_complete()? {
            for &id in self.ends.iter() {
                tokens.disallow_token(id);
            }
        }
        Ok(Allowed(tokens))
    }

    /// Goes on with a token that was allowed. Returns what the text grows by, bytes, which may be a part of a character.
    pub fn take(&mut self, token: u32) -> Result<Vec<u8>, ConstraintError> {
        self.matcher.consume_token(token).map_err(followed)?;
        let mut bytes = self.tokens.tok_trie().decode_raw(&[token]);
        let lead = self.lead.min(bytes.len());
        self.lead -= lead;
        bytes.drain(..lead);
        Ok(bytes)
    }

    /// Whether the text so far is one of the grammar.
    pub fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        match self.matcher.is_stopped() {
            true => Ok(true),
            false => self.matcher.is_accepting().map_err(followed),
        }
    }
}

fn followed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Followed(describe(error))
}

/// Tokens that may be chosen.
#[derive(Debug, Clone)]
pub struct Allowed(SimpleVob);

impl Allowed {
    pub fn contains(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// Takes all others out of logits over the vocabulary.
    pub fn keep(&self, logits: &mut [f32]) {
        for (logits, &word) in logits.chunks_mut(u32::BITS as usize).zip(self.0.as_slice()) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(beyond) = logits.get_mut(self.0.len()..) {
            beyond.fill(f32::NEG_INFINITY);
        }
    }
}
