//! Planted facts, the text around them, and when to ask for each.

use super::model::EvalModel;
use super::{parameter, EvalError};

/// Keys are "ADJECTIVE NOUN"; every pair names one fact.
const ADJECTIVES: [&str; 20] = [
    "red", "blue", "green", "yellow", "black", "white", "brown", "golden", "silver", "old", "new",
    "small", "large", "wooden", "iron", "glass", "stone", "round", "broken", "hidden",
];
const NOUNS: [&str; 16] = [
    "door", "box", "gate", "lamp", "bridge", "tower", "clock", "wagon", "mirror", "table", "ship",
    "bell", "chest", "wheel", "barrel", "window",
];

/// How a fact is told and asked for; `{key}` and `{value}` stand for its parts.
#[derive(Debug, Clone)]
pub struct Wording {
    pub statement: String,
    /// Ends where the value begins.
    pub question: String,
    /// What a user says to get it in a conversation; the answer then begins with `question`.
    pub request: String,
    pub values: Values,
}

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// A number of so many digits.
    Digits(u32),
    /// A common noun.
    Words,
}

/// A fact as ids.
#[derive(Debug, Clone)]
pub struct Fact {
    pub key: String,
    pub value: String,
    pub statement: Vec<u32>,
    /// The question and, after it, the value: what is appended to ask.
    pub question: Vec<u32>,
    pub request: Vec<u32>,
    /// How many ids at the end of `question` are the value.
    pub value_ids: usize,
}

impl Fact {
    /// Fact number `i`, the same for every run.
    pub fn new(i: usize, wording: &Wording, model: &EvalModel) -> Result<Self, EvalError> {
        let most = ADJECTIVES.len() * NOUNS.len();
        if i >= most {
            return Err(parameter("facts", i + 1, format!("at most {most}")));
        }
        // Neighbours share neither adjective nor noun.
        let noun = i % NOUNS.len();
        let key = format!(
            "{} {}",
            ADJECTIVES[(i + i / NOUNS.len()) % ADJECTIVES.len()],
            NOUNS[noun]
        );
        let value = value(i, wording.values);
        let fill = |text: &str| text.replace("{key}", &key).replace("{value}", &value);
        let asked = model.encode(&fill(&wording.question))?;
        let question = model.encode(&format!("{} {value}", fill(&wording.question)))?;
        if !question.starts_with(&asked) {
            return Err(parameter(
                "question",
                &wording.question,
                "a text whose tokens do not change when the value follows",
            ));
        }
        Ok(Self {
            statement: model.encode(&fill(&wording.statement))?,
            request: model.encode(&fill(&wording.request))?,
            value_ids: question.len() - asked.len(),
            question,
            key,
            value,
        })
    }

    /// The question without its value.
    pub fn asked(&self) -> &[u32] {
        &self.question[..self.question.len() - self.value_ids]
    }
}

/// Words of one token after a space in the usual vocabularies.
const WORDS: [&str; 24] = [
    "apple", "river", "music", "paper", "horse", "winter", "garden", "silver", "ocean", "bread",
    "forest", "coffee", "island", "sugar", "flower", "rabbit", "copper", "orange", "pepper",
    "butter", "pencil", "cotton", "lemon", "tiger",
];

/// A value that looks random and is the same in every run.
fn value(i: usize, values: Values) -> String {
    // The finaliser of SplitMix64 (Steele and others 2014).
    let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    match values {
        Values::Digits(digits) => {
            let low = 10u64.pow(digits.saturating_sub(1));
            (low + z % (9 * low)).to_string()
        }
        Values::Words => WORDS[(z % WORDS.len() as u64) as usize].to_string(),
    }
}

/// A question at a place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Tokens of the stream before the question.
    pub at: usize,
    /// Which fact of the timeline.
    pub fact: usize,
    /// Tokens between the statement's last and the question's first; none: before the fact was told at all.
    pub distance: Option<usize>,
}

/// Filler with facts in it, and the questions in the order of the stream.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub ids: Vec<u32>,
    pub facts: Vec<Fact>,
    pub asks: Vec<Ask>,
}

impl Timeline {
    /// Tells a fact every `spacing` tokens and asks for each at every distance, and once right before it is told.
    pub fn new(
        facts: Vec<Fact>,
        filler: &[u32],
        spacing: usize,
        distances: &[usize],
    ) -> Result<Self, EvalError> {
        let longest = facts.iter().map(|fact| fact.statement.len()).max();
        if longest.is_none_or(|longest| spacing <= longest) {
            return Err(parameter(
                "spacing",
                spacing,
                "more tokens than a fact's statement has, and at least one fact",
            ));
        }
        let mut filler = filler.iter().copied();
        let mut ids = Vec::new();
        let mut asks = Vec::new();
        let mut fill = |ids: &mut Vec<u32>, to: usize| {
            let missing = to.saturating_sub(ids.len());
            ids.extend(filler.by_ref().take(missing));
            match ids.len() == to {
                true => Ok(()),
                false => Err(parameter("text", "too short", "filler for all facts")),
            }
        };
        for (i, fact) in facts.iter().enumerate() {
            let end = (i + 1) * spacing;
            fill(&mut ids, end - fact.statement.len())?;
            asks.push(Ask {
                at: ids.len(),
                fact: i,
                distance: None,
            });
            ids.extend_from_slice(&fact.statement);
            asks.extend(distances.iter().map(|&distance| Ask {
                at: end + distance,
                fact: i,
                distance: Some(distance),
            }));
        }
        asks.sort_by_key(|ask| ask.at);
        fill(&mut ids, asks.last().map_or(0, |ask| ask.at))?;
        Ok(Self { ids, facts, asks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_and_have_their_digits() {
        let mut seen = (0..300)
            .map(|i| value(i, Values::Digits(4)))
            .collect::<Vec<_>>();
        assert!(seen.iter().all(|value| value.len() == 4));
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 280);
    }
}
