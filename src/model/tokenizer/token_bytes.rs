//! The bytes that tokens stand for, which may be parts of characters: read off the vocabulary as the decoder would put them together.

use serde_json::Value;
use tokenizers::Tokenizer;

/// A step of a decoder, as far as it makes bytes of one token alone.
enum Step {
    /// A character for each byte.
    ByteLevel,
    /// `<0x0A>` for a byte.
    ByteFallback,
    Replace(String, String),
}

/// How a tokenizer spells the bytes of its tokens.
pub struct Spelling(Vec<Step>);

impl Spelling {
    /// Fails where the decoder does what is not known here.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = serde_json::to_value(tokenizer.get_decoder());
        let decoder = decoder.map_err(|error| error.to_string())?;
        let mut steps = Vec::new();
        let parts = match decoder["decoders"].as_array() {
            Some(parts) => parts.iter().collect(),
            None => vec![&decoder],
        };
        for part in parts {
            let text = |value: &Value| value.as_str().map(String::from);
            steps.push(match part["type"].as_str().unwrap_or("none") {
                "ByteLevel" => Step::ByteLevel,
                "ByteFallback" => Step::ByteFallback,
                "Metaspace" => {
                    let space = text(&part["replacement"]).unwrap_or_else(|| "▁".to_string());
                    Step::Replace(space, " ".to_string())
                }
                "Replace" => match (text(&part["pattern"]["String"]), text(&part["content"])) {
                    (Some(from), Some(to)) => Step::Replace(from, to),
                    _ => return Err(format!("its decoder replaces {}", part["pattern"])),
                },
                // What they do depends on the tokens around.
                "Fuse" | "Strip" => continue,
                other => {
                    return Err(format!(
                        "its decoder is {other}, expected ByteLevel, ByteFallback, Metaspace, Replace, Fuse or Strip"
                    ))
                }
            });
        }
        Ok(Self(steps))
    }

    /// The bytes of a token of the vocabulary; none where it spells no bytes.
    pub fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        let mut token = token.to_string();
        for step in &self.0 {
            match step {
                Step::ByteLevel => return token.chars().map(byte_of).collect(),
                Step::ByteFallback => {
                    let hex = token
                        .strip_prefix("<0x")
                        .and_then(|hex| hex.strip_suffix('>'));
                    let byte = hex.filter(|hex| hex.len() == 2);
                    if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                        return Some(vec![byte]);
                    }
                }
                Step::Replace(from, to) => token = token.replace(from, to),
            }
        }
        Some(token.into_bytes())
    }
}

/// The byte that a character stands for (GPT-2, `bytes_to_unicode`): bytes that can be seen for themselves, the others for the characters
/// from 256 on.
fn byte_of(character: char) -> Option<u8> {
    let seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character).checked_sub(256) {
        None => u8::try_from(character).ok().filter(seen),
        Some(n) => (0..=u8::MAX).filter(|byte| !seen(byte)).nth(n as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let characters = (0..1024).filter_map(char::from_u32);
        let mut bytes = characters.filter_map(byte_of).collect::<Vec<_>>();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn bytes_that_are_spelt_in_hexadecimal_and_spaces_that_are_drawn_are_read() {
        let drawn = Step::Replace("▁".to_string(), " ".to_string());
        let spelling = Spelling(vec![drawn, Step::ByteFallback]);
        assert_eq!(spelling.bytes("▁red").unwrap(), b" red");
        assert_eq!(spelling.bytes("<0x0A>").unwrap(), b"\n");
        assert_eq!(spelling.bytes("<0x0>").unwrap(), b"<0x0>");
    }
}
