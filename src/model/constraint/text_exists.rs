//! Whether there is any text of a compiled grammar: rules may go round in circles, patterns may match nothing, and control tokens are never
//! written.

use std::collections::HashSet;

use llguidance::earley::{CGrammar, CSymIdx};
use llguidance::TokenParser;

/// The rule of which there is no text, if that leaves none of the grammar. `is_written`: whether a token may be in a text.
///
/// A symbol has a text if it may be empty, if it is a word of the lexer that matches something, or if one of its rules consists of symbols
/// that have one (the productive symbols of a context-free grammar: Hopcroft, Motwani and Ullman, section 7.1).
pub fn rule_without_text(
    parser: &mut TokenParser,
    is_written: &dyn Fn(u32) -> bool,
) -> Option<String> {
    let words = words(parser, is_written);
    let grammar = parser.parser.grammar();
    let symbols = reachable(grammar);
    let mut with_text = HashSet::new();
    loop {
        let before = with_text.len();
        for &symbol in &symbols {
            let data = grammar.sym_data(symbol);
            let is_empty = data.is_nullable || !data.cond_nullable.is_empty();
            let is_word = data
                .lexeme
                .is_some_and(|word| words.contains(&word.as_usize()));
            let by_rule = || {
                let mut rules = data.rules.iter().map(|&rule| grammar.rule_rhs(rule).0);
                rules.any(|rule| rule.iter().all(|part| with_text.contains(part)))
            };
            if is_empty || is_word || data.gen_grammar.is_some() || by_rule() {
                with_text.insert(symbol);
            }
        }
        if with_text.len() == before {
            break;
        }
    }
    let culprit = innermost(grammar, &with_text)?;
    Some(grammar.sym_name(culprit).to_string())
}

/// The words of the lexer that match some text.
fn words(parser: &mut TokenParser, is_written: &dyn Fn(u32) -> bool) -> HashSet<usize> {
    let tokens = parser.token_env.tok_trie().vocab_size() as u32;
    let all = parser.parser.grammar().lexer_spec().all_lexemes();
    let matching = parser.parser.with_recognizer(|recognizer| {
        let lexer = recognizer.lexer_mut();
        let start = lexer.start_state(&all);
        lexer.possible_lexemes(start).clone()
    });
    let spec = parser.parser.grammar().lexer_spec();
    let of_tokens = spec.token_range_lexemes(&all);
    let written = |word: usize| {
        let of_tokens = of_tokens
            .iter()
            .find(|of| std::ptr::eq(**of, &spec.lexemes[word]));
        of_tokens.is_none_or(|of| (0..tokens).any(|id| of.contains_token(id) && is_written(id)))
    };
    let matching = matching.iter().map(|word| word.as_usize());
    matching.filter(|&word| written(word)).collect()
}

/// Every symbol that a text may be made of.
fn reachable(grammar: &CGrammar) -> Vec<CSymIdx> {
    let mut found = vec![grammar.start()];
    let mut known = HashSet::from([grammar.start()]);
    let mut next = 0;
    while let Some(&symbol) = found.get(next) {
        next += 1;
        for &rule in grammar.rules_of(symbol) {
            let parts = grammar.rule_rhs(rule).0.iter();
            found.extend(parts.filter(|&&part| known.insert(part)));
        }
    }
    found
}

/// From the start, down rules without a text, the last symbol on the way; none if the start has one.
fn innermost(grammar: &CGrammar, with_text: &HashSet<CSymIdx>) -> Option<CSymIdx> {
    let mut known = HashSet::new();
    let mut culprit = None;
    let mut next = Some(grammar.start()).filter(|start| !with_text.contains(start));
    while let Some(symbol) = next {
        known.insert(symbol);
        culprit = Some(symbol);
        let rules = grammar.rules_of(symbol).iter();
        let mut parts = rules.flat_map(|&rule| grammar.rule_rhs(rule).0);
        let without = |part: &&CSymIdx| !with_text.contains(part) && !known.contains(part);
        next = parts.find(without).copied();
    }
    culprit
}
