//! Perplexity cells: the streams of one text under several policies, in lock-step where that is asked for.

use anyhow::Result;
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::ppl::{perplexity, PplOptions, PplResult};
use inf_mllm::eval::text::Text;
use inf_mllm::eval::variant::describe;
use serde_json::{json, Value};

use super::common::{label, Bench};

/// One text, and how it is streamed.
pub struct Streams<'a> {
    /// Name of the measurement in the results.
    pub eval: &'static str,
    pub text: &'a Text,
    pub ids: &'a [u32],
    pub options: PplOptions,
    /// A further parameter of the cells' keys.
    pub also: (&'static str, Value),
    /// Streams that go through the model together: one pass over the weights serves all of them.
    pub together: usize,
}

impl Streams<'_> {
    /// The result of every policy, in the order of `configs`; measures those that are missing.
    pub fn results(&self, bench: &mut Bench, configs: &[CacheConfig]) -> Result<Vec<PplResult>> {
        let mut results = Vec::new();
        let mut missing = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            let result = bench.find(&self.key(bench, config))?;
            bench.bar.inc_length(self.part(config).len() as u64);
            if result.is_some() {
                bench.bar.inc(self.part(config).len() as u64);
            } else {
                missing.push(i);
            }
            results.push(result);
        }
        // Streams of one length only can go together.
        missing.sort_by_key(|&i| self.part(&configs[i]).len());
        for same in missing
            .chunk_by(|&a, &b| self.part(&configs[a]).len() == self.part(&configs[b]).len())
            .flat_map(|same| same.chunks(self.together.max(1)))
        {
            let group = same.iter().map(|&i| configs[i].clone()).collect::<Vec<_>>();
            for (&i, result) in same.iter().zip(self.measure(bench, &group)?) {
                bench.add(&self.key(bench, &configs[i]), &result)?;
                results[i] = Some(result);
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    fn measure(&self, bench: &mut Bench, group: &[CacheConfig]) -> Result<Vec<PplResult>> {
        let what = match group {
            [one] => format!("{} at {}", label(one), one.budget),
            several => format!("{} in lock-step", several.len()),
        };
        let (text, chunk) = (&self.text.name, self.options.chunk);
        bench.begin(format!("{text}, {what}, chunk {chunk}"));
        let ids = self.part(&group[0]);
        let results = bench.measure(|model, progress| {
            let progress = |done: usize| progress(done * group.len());
            perplexity(model, ids, group, &self.options, &progress)
        });
        Ok(results?)
    }

    /// What of the text a policy can take: full attention no more than the model's context.
    fn part(&self, config: &CacheConfig) -> &[u32] {
        match config.policy {
            PolicyKind::Full => &self.ids[..self.ids.len().min(config.budget)],
            _ => self.ids,
        }
    }

    fn key(&self, bench: &Bench, config: &CacheConfig) -> Value {
        let mut parameters = json!({
            "cache": describe(config), "chunk": self.options.chunk, "block": self.options.block,
        });
        parameters[self.also.0] = self.also.1.clone();
        bench.key(self.eval, self.text, self.part(config), parameters)
    }
}
