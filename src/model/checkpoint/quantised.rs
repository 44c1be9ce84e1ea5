//! Ways of quantising that are not read, by the name that a configuration gives them.

use serde_json::Value;

use crate::model::decoder::Unsupported;

/// `quant_method` of a `quantization_config`, and what people call it.
const METHODS: [(&str, &str); 21] = [
    ("aqlm", "AQLM"),
    ("auto-round", "AutoRound"),
    ("awq", "AWQ"),
    ("bitnet", "BitNet"),
    ("bitsandbytes", "bitsandbytes"),
    ("bitsandbytes_4bit", "bitsandbytes"),
    ("bitsandbytes_8bit", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("eetq", "EETQ"),
    ("exl2", "EXL2"),
    ("exl3", "EXL3"),
    ("fbgemm_fp8", "FP8 of FBGEMM"),
    ("fp8", "FP8"),
    ("gptq", "GPTQ"),
    ("higgs", "HIGGS"),
    ("hqq", "HQQ"),
    ("modelopt", "ModelOpt"),
    ("mxfp4", "MXFP4"),
    ("quanto", "Quanto"),
    ("torchao", "torchao"),
    ("vptq", "VPTQ"),
];

/// What to take in the place of weights that are quantised in a way that is not read.
pub const INSTEAD: &str = "weights as floats: take the model that it was made from (quantization q8_0 or q4_k makes that one smaller \
                           while it is loaded), or a GGUF of the model";

/// Fails for a configuration whose weights are quantised.
pub(super) fn check(config: &Value) -> Result<(), Unsupported> {
    for (part, within) in [
        (config, ""),
        (&config["text_config"], "text_config."),
        (&config["vision_config"], "vision_config."),
    ] {
        for field in ["quantization_config", "compression_config"] {
            let given = part[field].as_object().filter(|given| !given.is_empty());
            if given.is_some() {
                let named = format!("{within}{field}");
                return Err(Unsupported::new(named, method(&part[field]), INSTEAD));
            }
        }
        let mlx = &part["quantization"];
        if !mlx["bits"].is_null() {
            let value = format!("that of MLX{}", bits(mlx));
            return Err(Unsupported::new(
                format!("{within}quantization"),
                value,
                INSTEAD,
            ));
        }
    }
    Ok(())
}

/// What is known of a way of quantising: its name and bits.
fn method(config: &Value) -> String {
    let bits = bits(config);
    match config["quant_method"].as_str() {
        Some(name) => match METHODS.iter().find(|(method, _)| *method == name) {
            Some((_, called)) => format!("{called}{bits}"),
            None => format!("{name:?}{bits}"),
        },
        None if ["load_in_4bit", "load_in_8bit"]
            .iter()
            .any(|it| config[it] == true) =>
        {
            format!("bitsandbytes{bits}")
        }
        None => format!("without the field quant_method{bits}"),
    }
}

fn bits(config: &Value) -> String {
    let of_bitsandbytes = [("load_in_4bit", 4), ("load_in_8bit", 8)];
    let named = config["bits"].as_u64().or_else(|| {
        let found = of_bitsandbytes
            .iter()
            .find(|(field, _)| config[field] == true);
        found.map(|(_, bits)| *bits)
    });
    named.map_or_else(String::new, |bits| format!(" with {bits} bits"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_quantised_is_named() {
        for (config, told) in [
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 4}}),
                "quantization_config is AWQ with 4 bits",
            ),
            (
                json!({"quantization_config": {"load_in_4bit": true}}),
                "quantization_config is bitsandbytes with 4 bits",
            ),
            (
                json!({"quantization_config": {"quant_method": "fp8"}}),
                "quantization_config is FP8, expected",
            ),
            (
                json!({"compression_config": {"quant_method": "compressed-tensors"}}),
                "compression_config is compressed-tensors, expected",
            ),
            (
                json!({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}),
                "text_config.quantization_config is MXFP4, expected",
            ),
            (
                json!({"quantization_config": {"quant_method": "new"}}),
                "quantization_config is \"new\", expected",
            ),
            (
                json!({"quantization": {"group_size": 64, "bits": 8}}),
                "quantization is that of MLX with 8 bits",
            ),
        ] {
            let error = check(&config).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
        for config in [
            json!({}),
            json!({"quantization_config": null}),
            json!({"quantization_config": {}}),
            json!({"quantization": null}),
        ] {
            assert!(check(&config).is_ok(), "{config}");
        }
    }
}
