//! Parameters that were given and make no difference.

use crate::cache::parameter::{Parameters, Value};
use crate::cache::PolicyKind;

/// What to say of the parameters among `given` that `policy` does not read. One that has its default, as in a file with all of
/// them, is not worth a word.
pub fn unread<'a, C: Parameters>(
    given: impl IntoIterator<Item = (&'a str, &'a Value)>,
    policy: PolicyKind,
) -> Vec<String> {
    let mut said = Vec::new();
    for (name, value) in given {
        let Ok(parameter) = C::find(name) else {
            continue;
        };
        if parameter.read_by(policy.name()) || parameter.default == *value {
            continue;
        }
        said.push(format!(
            "parameter {name} is {value}, but policy {policy} does not read it ({} would)",
            parameter.readers.join(", ")
        ));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::NodeConfig;

    #[test]
    fn only_what_another_policy_reads_and_is_not_the_default_is_said() {
        let given = [
            ("bias", Value::Number(0.5)),
            ("sinks", Value::Integer(4)),
            ("budget", Value::Integer(64)),
        ];
        let given = || given.iter().map(|(name, value)| (*name, value));
        let said = unread::<NodeConfig>(given(), PolicyKind::Window);
        assert_eq!(
            said,
            ["parameter bias is 0.5, but policy window does not read it (inf_mllm, inf_mllm_plus would)"]
        );
        assert!(unread::<NodeConfig>(given(), PolicyKind::InfMllm).is_empty());
    }
}
