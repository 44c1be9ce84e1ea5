//! What a tokenizer may cost, seen from its description before it is made: a file from outside must not end the process.

use serde_json::Value;

/// Steps of one kind (of normalising, cutting, decoding), and how deep sequences of them may stand in each other.
const MOST_STEPS: usize = 64;
const DEEPEST: usize = 8;

/// Longest pattern, bytes.
const LONGEST_PATTERN: usize = 16 << 10;

/// Most added tokens, and bytes of their texts in all.
const MOST_ADDED: usize = 200_000;
const LONGEST_ADDED: usize = 8 << 20;

/// Longest text of a token, bytes.
const LONGEST_TOKEN: usize = 16 << 10;

/// Most bytes that normalising may make of one, and decoding.
const LARGEST_NORMALISED: u64 = 1024;
const LARGEST_DECODED: u64 = 16;

/// Longest text that is handed to the library, bytes, after all that normalising may make of it.
const LONGEST_NORMALISED: u64 = 8 << 20;

/// The most bytes that the steps make of `n` bytes: `factor * n + more`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    factor: u64,
    more: u64,
}

impl Growth {
    const NONE: Self = Self { factor: 1, more: 0 };

    /// Both, in whichever order.
    fn and(self, other: Self) -> Self {
        let factor = self.factor.saturating_mul(other.factor);
        let more = self.more.saturating_mul(other.factor);
        let more_of_other = other.more.saturating_mul(self.factor);
        Self {
            factor,
            more: more.saturating_add(more_of_other),
        }
    }

    fn by(factor: u64) -> Self {
        Self { factor, more: 0 }
    }

    fn of(self, bytes: u64) -> u64 {
        self.factor.saturating_mul(bytes).saturating_add(self.more)
    }

    /// Whether a text of so many bytes may be tokenised.
    pub fn check(self, bytes: usize) -> Result<(), String> {
        match self.of(bytes as u64) {
            0..=LONGEST_NORMALISED => Ok(()),
            more => Err(format!(
                "a text of {bytes} bytes may become {more} before it is cut, expected at most {LONGEST_NORMALISED}"
            )),
        }
    }
}

/// Takes out what a tokenizer would do to every text beside tokenising it and transformers resets at every call: cutting it to a
/// length, and filling it up to one. Trainers leave both in their files.
pub fn reset(json: &mut Value) {
    if let Some(fields) = json.as_object_mut() {
        fields.insert("truncation".to_string(), Value::Null);
        fields.insert("padding".to_string(), Value::Null);
    }
}

/// Checks what the steps of a `tokenizer.json` can make of a text; how much normalising may.
pub fn check(json: &Value) -> Result<Growth, String> {
    let normalizer = steps(&json["normalizer"], "normalizers", "normalizer")?;
    let decoder = steps(&json["decoder"], "decoders", "decoder")?;
    let cuts = steps(&json["pre_tokenizer"], "pretokenizers", "pre_tokenizer")?;
    let processors = steps(&json["post_processor"], "processors", "post_processor")?;
    for step in normalizer.iter().chain(&decoder).chain(&cuts) {
        let pattern = &step["pattern"];
        for pattern in [pattern, &pattern["Regex"], &pattern["String"]] {
            let length = pattern.as_str().map_or(0, str::len);
            if length > LONGEST_PATTERN {
                return Err(format!(
                    "a pattern of {length} bytes, expected at most {LONGEST_PATTERN}"
                ));
            }
        }
    }
    for step in processors {
        let pieces = [&step["single"], &step["pair"]];
        let pieces = pieces.map(|pieces| pieces.as_array().map_or(0, Vec::len));
        let tokens = step["special_tokens"].as_object().into_iter().flatten();
        let ids = tokens.map(|(_, token)| token["ids"].as_array().map_or(0, Vec::len));
        let most = pieces.into_iter().chain(ids).max().unwrap_or(0);
        if most > MOST_STEPS {
            return Err(format!(
                "post_processor: {most} tokens around a text, expected at most {MOST_STEPS}"
            ));
        }
    }
    check_added(&json["added_tokens"])?;
    check_vocabulary(&json["model"]["vocab"])?;
    let grows = |steps: &[&Value]| {
        steps
            .iter()
            .map(|step| growth(step))
            .fold(Growth::NONE, Growth::and)
    };
    for (name, growth, most) in [
        ("normalizer", grows(&normalizer), LARGEST_NORMALISED),
        ("decoder", grows(&decoder), LARGEST_DECODED),
    ] {
        if growth.factor > most || growth.more > LONGEST_NORMALISED {
            return Err(format!(
                "{name}: {} bytes may become of one, expected at most {most}",
                growth.of(1)
            ));
        }
    }
    Ok(grows(&normalizer))
}

/// The steps that one consists of, sequences taken apart; not in their order.
fn steps<'j>(step: &'j Value, list: &str, name: &str) -> Result<Vec<&'j Value>, String> {
    let mut found = Vec::new();
    let mut level = vec![step];
    for _ in 0..DEEPEST {
        let (sequences, plain): (Vec<&Value>, Vec<&Value>) =
            level.iter().partition(|step| step[list].is_array());
        found.extend(plain.into_iter().filter(|step| !step.is_null()));
        level = sequences
            .into_iter()
            .filter_map(|step| step[list].as_array())
            .flatten()
            .collect();
        if found.len() + level.len() > MOST_STEPS {
            return Err(format!("{name}: more than {MOST_STEPS} steps"));
        }
        if level.is_empty() {
            return Ok(found);
        }
    }
    Err(format!("{name}: sequences deeper than {DEEPEST}"))
}

fn check_added(added: &Value) -> Result<(), String> {
    let tokens = added.as_array().map_or(&[][..], Vec::as_slice);
    let texts = tokens
        .iter()
        .map(|token| token["content"].as_str().map_or(0, str::len));
    let bytes = texts.sum::<usize>();
    match tokens.len() > MOST_ADDED || bytes > LONGEST_ADDED {
        true => Err(format!(
            "added_tokens: {} of {bytes} bytes, expected at most {MOST_ADDED} of {LONGEST_ADDED}",
            tokens.len()
        )),
        false => Ok(()),
    }
}

/// A vocabulary is a map from texts to ids or, with scores, a list of pairs.
fn check_vocabulary(vocabulary: &Value) -> Result<(), String> {
    let map = vocabulary
        .as_object()
        .into_iter()
        .flatten()
        .map(|(text, _)| text.len());
    let pairs = vocabulary.as_array().into_iter().flatten();
    let pairs = pairs.map(|pair| pair[0].as_str().map_or(0, str::len));
    match map.chain(pairs).max().unwrap_or(0) {
        0..=LONGEST_TOKEN => Ok(()),
        longest => Err(format!(
            "a token of {longest} bytes, expected at most {LONGEST_TOKEN}"
        )),
    }
}

/// What one step of normalising or decoding can make of a text.
fn growth(step: &Value) -> Growth {
    let length = |value: &Value| value.as_str().map_or(0, str::len) as u64;
    match step["type"].as_str() {
        Some("Replace") => {
            let content = length(&step["content"]);
            match length(&step["pattern"]["String"]) {
                // Behind every byte, and once more at the end.
                0 => Growth {
                    factor: content + 1,
                    more: content,
                },
                pattern => Growth::by(content.div_ceil(pattern).max(1)),
            }
        }
        Some("Prepend") => Growth {
            factor: 1,
            more: length(&step["prepend"]),
        },
        // The longest compatibility decomposition has 33 bytes for 3, the longest canonical one 3 for 1.
        Some("NFKC" | "NFKD") => Growth::by(11),
        Some("NFC" | "NFD") => Growth::by(3),
        // Blanks around ideographs, and accents taken apart.
        Some("BertNormalizer") => Growth::by(6),
        Some("Lowercase" | "ByteLevel") => Growth::by(2),
        Some("Precompiled") => Growth::by(longest_replacement(&step["precompiled_charsmap"])),
        _ => Growth::NONE,
    }
}

/// The longest text that SentencePiece's table puts in the place of another, bytes. The table is the size of a trie (4 bytes, little
/// endian), the trie, and the texts with a zero byte behind each.
fn longest_replacement(table: &Value) -> u64 {
    let bytes = table
        .as_str()
        .and_then(|table| base64::decode(table).ok())
        .unwrap_or_default();
    let trie = bytes
        .first_chunk()
        .map_or(0, |size| u32::from_le_bytes(*size) as usize);
    let texts = bytes.get(4 + trie..).unwrap_or_default();
    texts
        .split(|&byte| byte == 0)
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0)
        .max(1) as u64
}
