//! Instructions whose answer is one of several texts: the likeliest, by what the model gives to each.
//!
//! The likelihood of a choice is that of its tokens, one after the other, and of the answer's end behind them, so that a choice which
//! goes on where another ends is compared with it. The question is fed once, and so is what choices have in common at their
//! beginning: their tokens form a tree, whose every branch is one chunk.

use std::collections::BTreeMap;
use std::time::Instant;

use super::formed::no_text;
use super::{AskError, Chunk, Session};
use crate::excerpt::excerpt;
use crate::model::chooser::{Choice, ChoiceError, Limits};
use crate::model::ModelError;
use crate::stream::answer::{AnswerDelta, Chosen, ChosenBy, FinishReason};
use crate::stream::generation::Generation;
use crate::stream::instruction::Instruction;

/// Why an instruction's choices cannot be chosen from.
#[derive(Debug, thiserror::Error)]
pub enum ChoicesError {
    #[error("choices are {given}, expected at most {limit} (choices_limit)")]
    Many { given: usize, limit: usize },
    #[error("choice {index} is empty, expected at least one character that is not a space")]
    Empty { index: usize },
    #[error("choices {first} and {second} are the same text ({text:?}), expected different ones")]
    Twice {
        first: usize,
        second: usize,
        text: String,
    },
    #[error("choice {index} is {tokens} tokens long, expected at most {room} (what the cache can hold of one turn, without the question)")]
    Long {
        index: usize,
        tokens: usize,
        room: usize,
    },
    #[error("choices are given beside a grammar, expected one of the two")]
    Grammar,
}

/// The likelihoods of a choice's tokens and of its end, natural logarithms.
#[derive(Debug, Clone, Default)]
struct Likelihood {
    tokens: Vec<f64>,
    /// The likeliest of the tokens that end an answer.
    end: u32,
}

impl Likelihood {
    fn sum(&self) -> f64 {
        self.tokens.iter().sum()
    }

    fn mean(&self) -> f64 {
        self.sum() / self.tokens.len().max(1) as f64
    }
}

/// Choices whose first tokens are the same, and the logits behind these.
struct Branch {
    choices: Vec<usize>,
    depth: usize,
    logits: Vec<f32>,
}

impl Session {
    /// Refuses choices that cannot be chosen from, as far as their texts tell.
    pub(super) fn check_choices(&self, instruction: &Instruction) -> Result<(), ChoicesError> {
        let choices = &instruction.choices;
        let (given, limit) = (choices.len(), self.config.choices_limit);
        if given > 0 && instruction.grammar.is_some() {
            return Err(ChoicesError::Grammar);
        }
        if given > limit {
            return Err(ChoicesError::Many { given, limit });
        }
        let mut known = BTreeMap::new();
        for (index, choice) in choices.iter().enumerate() {
            let text = choice.trim();
            if text.is_empty() {
                return Err(ChoicesError::Empty { index });
            }
            if let Some(first) = known.insert(text, index) {
                return Err(twice(first, index, text));
            }
        }
        Ok(())
    }

    /// Answers with the likeliest of the instruction's choices.
    pub(super) fn choose_from(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        let started = Instant::now();
        let ids = self.choice_ids(instruction)?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let stopped = || match cancelled() {
            true => Some(FinishReason::Cancelled),
            false => instruction
                .is_late(Instant::now())
                .then_some(FinishReason::TimeLimit),
        };
        let weighed = self.attempt(|session| {
            let logits = session.put(&instruction.text, longest, &mut run.answer)?;
            session.times.prefill = started.elapsed();
            let logits = session.close_thought(logits, run)?;
            session.weigh(&ids, logits, &stopped)
        })?;
        let finish = match weighed {
            Err(stopped) => Ok(stopped),
            Ok(likelihoods) => {
                let chosen = chosen(&likelihoods, self.config.choices_by);
                let index = chosen.index;
                run.answer.chosen = Some(chosen);
                // What an answer rests on is asked where it stands.
                let stays = !instruction.ephemeral || self.config.evidence.evidence_frames > 0;
                let said = self.say(&ids[index], &likelihoods[index], stays, run);
                if said.is_ok() {
                    // As it was given: tokens may stand for another spelling.
                    run.emit_bytes(instruction.choices[index].trim().as_bytes(), on_delta);
                }
                said
            }
        };
        if let Some(stepper) = &mut self.stepper {
            stepper.settle(&mut self.state.cache)?;
        }
        self.note_evidence(&mut run.answer, finish.as_ref().ok().copied());
        self.state.stream.grammar.answered();
        finish
    }

    /// The tokens of each choice, as the model would write it behind the question.
    pub(super) fn choice_ids(&self, instruction: &Instruction) -> Result<Vec<Vec<u32>>, AskError> {
        let tokenizer = &self.model.tokenizer;
        let grammar = &self.state.stream.grammar;
        let before = self.question(&instruction.text)?;
        let closing = tokenizer.encode_after(before.last().copied(), grammar.no_thought())?;
        let last = closing.last().or(before.last()).copied();
        let room = self.state.cache.longest_turn();
        let room = room.saturating_sub(before.len() + closing.len());
        let mut known = BTreeMap::new();
        let mut all = Vec::new();
        for (index, choice) in instruction.choices.iter().enumerate() {
            let text = choice.trim();
            let text = format!("{}{}", grammar.lead(), tokenizer.guard(text));
            let ids = tokenizer.encode_after(last, &text)?;
            if ids.len() > room {
                let tokens = ids.len();
                return Err(ChoicesError::Long {
                    index,
                    tokens,
                    room,
                }
                .into());
            }
            if let Some(first) = known.insert(ids.clone(), index) {
                return Err(twice(first, index, choice.trim()).into());
            }
            all.push(ids);
        }
        Ok(all)
    }

    /// How likely each choice is behind what has been fed, of whose last token `logits` are, or why it was not found out. The state is what it
    /// was.
    fn weigh(
        &mut self,
        ids: &[Vec<u32>],
        logits: Vec<f32>,
        stopped: &dyn Fn() -> Option<FinishReason>,
    ) -> Result<Result<Vec<Likelihood>, FinishReason>, AskError> {
        let mut likelihoods = vec![Likelihood::default(); ids.len()];
        let listening = self.state.cache.pause_listening();
        let root = Branch {
            choices: (0..ids.len()).collect(),
            depth: 0,
            logits,
        };
        let outcome = self.weigh_branch(ids, root, &mut likelihoods, stopped);
        self.state.cache.listen_on(listening);
        Ok(match outcome? {
            Some(stopped) => Err(stopped),
            None => Ok(likelihoods),
        })
    }

    /// Follows every way on from a branch, unless it is stopped.
    fn weigh_branch(
        &mut self,
        ids: &[Vec<u32>],
        mut branch: Branch,
        likelihoods: &mut [Likelihood],
        stopped: &dyn Fn() -> Option<FinishReason>,
    ) -> Result<Option<FinishReason>, AskError> {
        let depth = branch.depth;
        let first = self.logprobs(&mut branch.logits)?;
        let mut ways = BTreeMap::<u32, Vec<usize>>::new();
        for choice in branch.choices {
            match ids[choice].get(depth) {
                Some(&token) => ways.entry(token).or_default().push(choice),
                None => {
                    let (end, logprob) = self.end(&first)?;
                    likelihoods[choice].end = end;
                    likelihoods[choice].tokens.push(logprob);
                }
            }
        }
        for (token, choices) in ways {
            if let Some(stopped) = stopped() {
                return Ok(Some(stopped));
            }
            let until = common(ids, &choices, depth);
            let chunk = ids[choices[0]][depth..until].to_vec();
            let stopped = self.passing(|session| {
                let hidden = session.pass_whole(&chunk, &[], Chunk::Answer, 0)?;
                let mut rows = session.logits(&hidden)?;
                let logits = rows.pop().ok_or_else(no_text)?;
                let mut logprobs = vec![first[token as usize]];
                for (row, &next) in rows.iter_mut().zip(&chunk[1..]) {
                    logprobs.push(session.logprobs(row)?[next as usize]);
                }
                for &choice in &choices {
                    likelihoods[choice].tokens.extend(&logprobs);
                }
                let branch = Branch {
                    choices,
                    depth: until,
                    logits,
                };
                session.weigh_branch(ids, branch, likelihoods, stopped)
            })?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    /// Natural logarithms of the probabilities of all tokens.
    fn logprobs(&self, logits: &mut [f32]) -> Result<Vec<f64>, ChoiceError> {
        let spread = self.chooser.spread(logits)?;
        Ok(logits.iter().map(|&logit| spread.logprob(logit)).collect())
    }

    /// How likely the answer ends here, whichever of the tokens for that ends it, and the likeliest of these.
    fn end(&self, logprobs: &[f64]) -> Result<(u32, f64), ModelError> {
        let ends = self.model.ends.ids().iter();
        let ends = ends.filter_map(|&id| Some((id, *logprobs.get(id as usize)?)));
        let likeliest = ends.clone().max_by(|a, b| a.1.total_cmp(&b.1));
        let (end, _) = likeliest.ok_or_else(|| {
            ModelError::Inputs("the checkpoint names no token that ends an answer".to_string())
        })?;
        let all = ends.map(|(_, logprob)| logprob.exp()).sum::<f64>();
        Ok((end, all.ln()))
    }

    /// Takes the tokens of a choice for those of the answer. Where they stay (`stays`), if only for the moment, they are fed one by one, as
    /// an answer's are: the memory is what it were if the model had written them, but for the random state, which no choice changes.
    fn say(
        &mut self,
        ids: &[u32],
        likelihood: &Likelihood,
        stays: bool,
        run: &mut Generation,
    ) -> Result<FinishReason, AskError> {
        let started = Instant::now();
        for (&token, &logprob) in ids.iter().zip(&likelihood.tokens) {
            let logprob = logprob as f32;
            run.chose(Choice { token, logprob });
            if stays {
                let draws = self.state.stream.draws;
                self.follow(token, true, Limits::default())?;
                self.state.stream.draws = draws;
            }
        }
        run.chose(Choice {
            token: likelihood.end,
            logprob: likelihood
                .tokens
                .last()
                .map_or(0.0, |&logprob| logprob as f32),
        });
        self.times.decode = started.elapsed() / run.answer.output_tokens.max(1) as u32;
        Ok(FinishReason::Stop)
    }
}

fn twice(first: usize, second: usize, text: &str) -> ChoicesError {
    ChoicesError::Twice {
        first,
        second,
        text: excerpt(text),
    }
}

/// How many tokens these choices have in common from the beginning, at least up to behind `depth`.
fn common(ids: &[Vec<u32>], choices: &[usize], depth: usize) -> usize {
    let first = &ids[choices[0]];
    let shared = |&choice: &usize| {
        let pairs = first.iter().zip(&ids[choice]);
        pairs.take_while(|(a, b)| a == b).count()
    };
    let shared = choices.iter().map(shared).min().unwrap_or(0);
    shared.max(depth + 1)
}

/// The likeliest choice, the first of equal ones, with the probabilities of all.
fn chosen(likelihoods: &[Likelihood], by: ChosenBy) -> Chosen {
    let sums = likelihoods.iter().map(Likelihood::sum).collect::<Vec<_>>();
    let means = likelihoods.iter().map(Likelihood::mean).collect::<Vec<_>>();
    let deciding = match by {
        ChosenBy::Sum => &sums,
        ChosenBy::Mean => &means,
    };
    let best = (1..deciding.len()).fold(0, |best, i| match deciding[i] > deciding[best] {
        true => i,
        false => best,
    });
    Chosen {
        index: best,
        by,
        probabilities: shares(&sums),
        mean_probabilities: shares(&means),
    }
}

/// The share of each in the sum of all, of natural logarithms.
fn shares(logarithms: &[f64]) -> Vec<f32> {
    let max = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = logarithms.iter().map(|&l| (l - max).exp());
    let weights = weights.collect::<Vec<_>>();
    let total = weights.iter().sum::<f64>();
    weights
        .iter()
        .map(|&weight| (weight / total) as f32)
        .collect()
}

impl From<ChoiceError> for AskError {
    fn from(error: ChoiceError) -> Self {
        ModelError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[f64]) -> Likelihood {
        Likelihood {
            tokens: tokens.to_vec(),
            end: 0,
        }
    }

    #[test]
    fn sums_favour_short_choices_and_means_do_not() {
        let likelihoods = [of(&[-1.0, -1.0]), of(&[-0.75, -0.75, -0.75, -0.75])];
        let (sum, mean) = (
            chosen(&likelihoods, ChosenBy::Sum),
            chosen(&likelihoods, ChosenBy::Mean),
        );
        assert_eq!((sum.index, mean.index), (0, 1));
        assert_eq!(sum.probabilities, mean.probabilities);
        // e^-2 : e^-3 and e^-1 : e^-0.75
        let odds = |of: &[f32]| of[0] / of[1];
        assert!((odds(&sum.probabilities) - 1f32.exp()).abs() < 1e-5);
        assert!((odds(&sum.mean_probabilities) - (-0.25f32).exp()).abs() < 1e-5);
        assert!((sum.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_first_of_equally_likely_choices_is_taken_and_one_that_is_impossible_is_not() {
        let never = of(&[f64::NEG_INFINITY]);
        let likelihoods = [never, of(&[-1.0]), of(&[-1.0])];
        let chosen = chosen(&likelihoods, ChosenBy::Sum);
        assert_eq!(chosen.index, 1);
        assert_eq!(chosen.probabilities, [0.0, 0.5, 0.5]);
    }
}
