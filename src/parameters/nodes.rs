//! Which nodes the names in a parameter file stand for.

/// Whether the node names that parameters stand under are those of a node, by rcl's rules: `*` is any one name, `**` any number of
/// them, and a name without a slash before it is one of the root namespace.
pub fn stands_for(nodes: &str, full: &str) -> bool {
    let pattern = nodes.trim_start_matches('/').split('/').collect::<Vec<_>>();
    let names = full.trim_start_matches('/').split('/').collect::<Vec<_>>();
    all_match(&pattern, &names)
}

fn all_match(pattern: &[&str], names: &[&str]) -> bool {
    match (pattern, names) {
        ([], names) => names.is_empty(),
        (["**", rest @ ..], names) => (0..=names.len()).any(|n| all_match(rest, &names[n..])),
        ([first, rest @ ..], [name, names @ ..]) => {
            (*first == "*" || first == name) && all_match(rest, names)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::stands_for;

    #[test]
    fn wildcards_stand_for_what_rcl_lets_them_stand_for() {
        for nodes in [
            "/**",
            "**",
            "/*/inf_mllm",
            "/robot1/*",
            "/robot1/**",
            "/**/inf_mllm",
            "/*/*",
            "/robot1/inf_mllm",
            "robot1/inf_mllm",
            "/**/robot1/inf_mllm",
            "/**/robot1/**",
        ] {
            assert!(stands_for(nodes, "/robot1/inf_mllm"), "{nodes}");
        }
        for nodes in [
            "/*",
            "*",
            "/inf_mllm",
            "inf_mllm",
            "/robot1",
            "/robot1/inf",
            "/robot2/**",
            "/*/*/*",
            "/**/eyes",
            "/robot1/*/inf_mllm",
        ] {
            assert!(!stands_for(nodes, "/robot1/inf_mllm"), "{nodes}");
        }
        for nodes in ["/*", "*", "/**", "/inf_mllm", "inf_mllm", "/**/inf_mllm"] {
            assert!(stands_for(nodes, "/inf_mllm"), "{nodes}");
        }
    }
}
