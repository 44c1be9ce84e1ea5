//! A template's source as tokens: text with the blanks around tags treated as Jinja treats them, and what stands inside tags.

use super::meter::{Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub enum Kind<'s> {
    /// Text between tags.
    Text(&'s str),
    /// `{{` and `}}`
    PrintBegin,
    PrintEnd,
    /// `{%` and `%}`
    TagBegin,
    TagEnd,
    Name(&'s str),
    Str(String),
    Int(i64),
    Float(f64),
    Op(&'static str),
}

#[derive(Debug, Clone)]
pub struct Token<'s> {
    pub kind: Kind<'s>,
    pub line: u32,
}

/// Line ends as Jinja reads them, and none at the end of the source.
pub fn with_plain_line_ends(source: &str) -> String {
    let mut plain = source.replace("\r\n", "\n").replace('\r', "\n");
    if plain.ends_with('\n') {
        plain.pop();
    }
    plain
}

/// The tokens of a source without carriage returns.
pub fn tokens(source: &str) -> Result<Vec<Token<'_>>> {
    let mut lexer = Lexer {
        rest: source,
        line: 1,
        line_starts: true,
        tokens: Vec::new(),
    };
    while !lexer.rest.is_empty() {
        lexer.outside().map_err(|error| error.at(lexer.line))?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    rest: &'s str,
    line: u32,
    /// Whether what was read last ends a line.
    line_starts: bool,
    tokens: Vec<Token<'s>>,
}

/// Of two bytes first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

impl<'s> Lexer<'s> {
    fn push(&mut self, kind: Kind<'s>) {
        self.tokens.push(Token {
            kind,
            line: self.line,
        });
    }

    /// Reads `bytes` of the rest.
    fn advance(&mut self, bytes: usize) -> &'s str {
        let (read, rest) = self.rest.split_at(bytes);
        self.line += read.bytes().filter(|&byte| byte == b'\n').count() as u32;
        if !read.is_empty() {
            self.line_starts = read.ends_with('\n');
        }
        self.rest = rest;
        read
    }

    fn skip_blanks(&mut self) {
        self.advance(self.rest.len() - self.rest.trim_start().len());
    }

    /// Text up to the next tag, and that tag.
    fn outside(&mut self) -> Result<()> {
        let Some(at) = next_tag(self.rest) else {
            let text = self.advance(self.rest.len());
            self.push(Kind::Text(text));
            return Ok(());
        };
        let opening = &self.rest[at..at + 2];
        let sign = sign(&self.rest[at + 2..]);
        let text = match sign {
            "-" => self.rest[..at].trim_end(),
            "" if opening != "{{" => self.without_indent(&self.rest[..at]),
            _ => &self.rest[..at],
        };
        if !text.is_empty() {
            self.push(Kind::Text(text));
        }
        self.advance(at);
        if opening == "{%" {
            if let Some((length, end_sign)) = named_tag(self.rest, "raw") {
                self.advance(length);
                return self.raw(end_sign);
            }
        }
        self.advance(2 + sign.len());
        match opening {
            "{#" => self.comment(),
            "{{" => {
                self.push(Kind::PrintBegin);
                self.inside("}}")
            }
            _ => {
                self.push(Kind::TagBegin);
                self.inside("%}")
            }
        }
    }

    /// `text` without the blanks of a line that has nothing else in front of a tag.
    fn without_indent<'t>(&self, text: &'t str) -> &'t str {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let starts = line > 0 || self.line_starts;
        let blank = text[line..]
            .bytes()
            .all(|byte| matches!(byte, b' ' | b'\t'));
        match starts && blank {
            true => &text[..line],
            false => text,
        }
    }

    /// What a tag's end takes of the text behind it.
    fn after_tag(&mut self, sign: &str) {
        match sign {
            "-" => self.skip_blanks(),
            "" if self.rest.starts_with('\n') => {
                self.advance(1);
            }
            _ => {}
        }
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest.find("#}") else {
            return Err(Error::new("a comment is not closed"));
        };
        let comment = self.advance(end);
        self.advance(2);
        self.after_tag(match comment.chars().next_back() {
            Some('-') => "-",
            Some('+') => "+",
            _ => "",
        });
        Ok(())
    }

    /// Text that is taken as it is.
    fn raw(&mut self, begin_sign: &str) -> Result<()> {
        if begin_sign == "-" {
            self.skip_blanks();
        }
        let ends = self.rest.match_indices("{%");
        let found = ends.map(|(at, _)| (at, named_tag(&self.rest[at..], "endraw")));
        let Some((at, (length, end_sign))) = found
            .filter_map(|(at, tag)| tag.map(|tag| (at, tag)))
            .next()
        else {
            return Err(Error::new("a raw block is not closed"));
        };
        let text = match sign(&self.rest[at + 2..]) {
            "-" => self.rest[..at].trim_end(),
            "+" => &self.rest[..at],
            _ => self.without_indent(&self.rest[..at]),
        };
        if !text.is_empty() {
            self.push(Kind::Text(text));
        }
        self.advance(at + length);
        self.after_tag(end_sign);
        Ok(())
    }

    /// The inside of a tag and its `end`.
    fn inside(&mut self, end: &'static str) -> Result<()> {
        let mut open = Vec::new();
        loop {
            self.skip_blanks();
            if open.is_empty() {
                let sign = sign(self.rest);
                let signed = sign == "-" || (sign == "+" && end == "%}");
                if signed && self.rest[1..].starts_with(end) {
                    self.advance(3);
                    return self.end(end, sign);
                }
                if self.rest.starts_with(end) {
                    self.advance(2);
                    return self.end(end, "");
                }
            }
            self.token(&mut open)?;
        }
    }

    fn end(&mut self, end: &str, sign: &str) -> Result<()> {
        match end {
            "}}" => {
                self.push(Kind::PrintEnd);
                if sign == "-" {
                    self.skip_blanks();
                }
            }
            _ => {
                self.push(Kind::TagEnd);
                self.after_tag(sign);
            }
        }
        Ok(())
    }

    /// One token inside a tag; `open` are the brackets that wait for their ends.
    fn token(&mut self, open: &mut Vec<&'static str>) -> Result<()> {
        let Some(first) = self.rest.chars().next() else {
            return Err(Error::new("a tag is not closed"));
        };
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '_' || first.is_alphabetic() {
            let is_part = |c: char| c == '_' || c.is_alphanumeric();
            let name = self.advance(self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len()));
            self.push(Kind::Name(name));
            return Ok(());
        }
        if first == '\'' || first == '"' {
            return self.string(first);
        }
        let found = OPERATORS.iter().find(|op| self.rest.starts_with(**op));
        let Some(&op) = found else {
            return Err(Error::new(format!("unexpected character {first:?}")));
        };
        match op {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" if open.pop() != Some(op) => {
                return Err(Error::new(format!("unexpected {op:?}")));
            }
            _ => {}
        }
        self.advance(op.len());
        self.push(Kind::Op(op));
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            return Err(Error::new("a string is not closed"));
        };
        let text = unescaped(&self.rest[1..1 + end])?;
        self.push(Kind::Str(text));
        self.advance(end + 2);
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let digits = |text: &str, radix: u32| {
            let is_part = |c: char| c.is_digit(radix) || c == '_';
            text.find(|c| !is_part(c)).unwrap_or(text.len())
        };
        let radix = match self.rest.get(..2) {
            Some("0b" | "0B") => 2,
            Some("0o" | "0O") => 8,
            Some("0x" | "0X") => 16,
            _ => 10,
        };
        let wrong = |text: &str| Error::new(format!("{text} is no number that can be read"));
        if radix != 10 {
            let end = 2 + digits(&self.rest[2..], radix);
            let text = self.advance(end);
            let number = i64::from_str_radix(&text[2..].replace('_', ""), radix);
            self.push(Kind::Int(number.map_err(|_| wrong(text))?));
            return Ok(());
        }
        let mut end = digits(self.rest, 10);
        let mut is_float = false;
        let digit_at = |at: usize| self.rest[at..].starts_with(|c: char| c.is_ascii_digit());
        // In `list.0.1` there are two indices.
        let is_index = matches!(self.tokens.last(), Some(last) if last.kind == Kind::Op("."));
        if self.rest[end..].starts_with('.') && digit_at(end + 1) && !is_index {
            is_float = true;
            end += 1 + digits(&self.rest[end + 1..], 10);
        }
        if self.rest[end..].starts_with(['e', 'E']) {
            let sign = sign(&self.rest[end + 1..]).len();
            if digit_at(end + 1 + sign) {
                is_float = true;
                end += 1 + sign;
                end += digits(&self.rest[end..], 10);
            }
        }
        let text = self.advance(end);
        let plain = text.replace('_', "");
        let kind = match is_float {
            true => plain.parse().map(Kind::Float).ok(),
            false => plain.parse().map(Kind::Int).ok(),
        };
        self.push(kind.ok_or_else(|| wrong(text))?);
        Ok(())
    }
}

/// Where the next tag begins.
fn next_tag(text: &str) -> Option<usize> {
    let opens = |at: &usize| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    text.match_indices('{').map(|(at, _)| at).find(opens)
}

/// The sign that `text` begins with, if it begins with one.
fn sign(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'-') => "-",
        Some(b'+') => "+",
        _ => "",
    }
}

/// The length of the tag of one word that `text` begins with, if it is `name`, and the sign at its end.
fn named_tag(text: &str, name: &str) -> Option<(usize, &'static str)> {
    let inner = text.strip_prefix("{%")?;
    let inner = inner[sign(inner).len()..].trim_start();
    let inner = inner.strip_prefix(name)?.trim_start();
    let end_sign = sign(inner);
    let after = inner[end_sign.len()..].strip_prefix("%}")?;
    Some((text.len() - after.len(), end_sign))
}

/// A string's contents with Python's escapes.
fn unescaped(text: &str) -> Result<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let Some(kind) = escape.chars().next() else {
            plain.push('\\');
            return Ok(plain);
        };
        let after = &escape[kind.len_utf8()..];
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        rest = after;
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => plain.push(kind),
            'a' => plain.push('\u{7}'),
            'b' => plain.push('\u{8}'),
            'f' => plain.push('\u{c}'),
            'n' => plain.push('\n'),
            'r' => plain.push('\r'),
            't' => plain.push('\t'),
            'v' => plain.push('\u{b}'),
            '0'..='7' => {
                let is_octal = |c: char| c.is_digit(8);
                let length = escape.chars().take(3).take_while(|&c| is_octal(c)).count();
                let code = u32::from_str_radix(&escape[..length], 8);
                plain.extend(code.ok().and_then(char::from_u32));
                rest = &escape[length..];
            }
            'x' | 'u' | 'U' => {
                let code = after.get(..digits);
                let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
                let Some(c) = code.and_then(char::from_u32) else {
                    let what =
                        format!("\\{kind} in a string is not followed by a character's code");
                    return Err(Error::new(what));
                };
                plain.push(c);
                rest = &after[digits..];
            }
            other => {
                plain.push('\\');
                plain.push(other);
            }
        }
    }
    plain.push_str(rest);
    Ok(plain)
}
