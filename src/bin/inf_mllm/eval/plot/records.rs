//! The results that are plotted, by the command that made them.

use std::path::PathBuf;

use anyhow::Result;
use inf_mllm::eval::store;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One cell of the results.
pub struct Record {
    key: Value,
    result: Value,
}

impl Record {
    /// A text of the key; empty where it is missing.
    pub fn text(&self, name: &str) -> String {
        self.key[name].as_str().unwrap_or_default().to_string()
    }

    /// A parameter of the measurement, such as `chunk`.
    pub fn parameter(&self, name: &str) -> &Value {
        &self.key["parameters"][name]
    }

    /// A parameter of the cache, such as `budget`.
    pub fn cache(&self, name: &str) -> &Value {
        &self.key["parameters"]["cache"][name]
    }

    pub fn result<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_value(self.result.clone())?)
    }
}

pub struct Records(Vec<Record>);

impl Records {
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut records = Vec::new();
        for file in files {
            records.extend(store::read(file)?.into_iter().map(|mut record| Record {
                key: record["key"].take(),
                result: record["result"].take(),
            }));
        }
        Ok(Self(records))
    }

    /// The cells of one command, grouped by what `group` says of them, in the order in which they were measured.
    pub fn groups(
        &self,
        eval: &str,
        group: impl Fn(&Record) -> String,
    ) -> Vec<(String, Vec<&Record>)> {
        let mut groups: Vec<(String, Vec<&Record>)> = Vec::new();
        for record in self.0.iter().filter(|record| record.key["eval"] == eval) {
            let name = group(record);
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, records)) => records.push(record),
                None => groups.push((name, vec![record])),
            }
        }
        groups
    }

    /// The cells of one command.
    pub fn all(&self, eval: &str) -> impl Iterator<Item = &Record> {
        let eval = eval.to_string();
        self.0
            .iter()
            .filter(move |record| record.key["eval"] == eval.as_str())
    }
}

/// A policy's name and what is not as in the other cells of its policy: short labels for a legend.
pub fn labels(records: &[&Record]) -> Vec<String> {
    const PARTS: [&str; 2] = ["cache", "archive"];
    let policy = |record: &Record| {
        let recall = match record.parameter("archive").is_null() {
            true => "",
            false => "+recall",
        };
        format!(
            "{}{recall}",
            record.cache("policy").as_str().unwrap_or_default()
        )
    };
    let labels = records.iter().map(|record| {
        let same = records
            .iter()
            .filter(|other| policy(other) == policy(record));
        let same = same.collect::<Vec<_>>();
        let fields = PARTS.iter().flat_map(|part| {
            let fields = record.parameter(part).as_object().into_iter().flatten();
            fields.map(move |(name, value)| (part, name, value))
        });
        let different = fields.filter(|(part, name, value)| {
            let differs = |other: &&&Record| other.parameter(part)[name.as_str()] != **value;
            same.iter().any(differs)
        });
        let different = different
            .map(|(_, name, value)| format!("{name} {}", value.to_string().trim_matches('"')))
            .collect::<Vec<_>>();
        format!("{} {}", policy(record), different.join(", "))
            .trim_end()
            .to_string()
    });
    labels.collect()
}
