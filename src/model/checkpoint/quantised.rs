//! Ways of quantising by the name that a configuration gives them: which are read, and what is said of the others.

use serde_json::Value;

use crate::model::decoder::Unsupported;
use crate::model::weights::Scheme;

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

/// How the weights of a configuration are quantised, if they are. An error for a way that is not read.
pub(super) fn scheme(config: &Value) -> Result<Option<Scheme>, Unsupported> {
    let mut found = None;
    for (part, within) in [
        (config, ""),
        (&config["text_config"], "text_config."),
        (&config["vision_config"], "vision_config."),
    ] {
        for field in ["quantization_config", "compression_config"] {
            let given = part[field].as_object().filter(|given| !given.is_empty());
            if given.is_none() {
                continue;
            }
            let named = format!("{within}{field}");
            let scheme = read(&part[field], &named)?;
            if found.as_ref().is_some_and(|other| *other != scheme) {
                let expected = "one way of quantising for all of the checkpoint";
                return Err(Unsupported::new(named, "another than before it", expected));
            }
            found = Some(scheme);
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
    Ok(found)
}

/// What the field `named` says. An error names the method, and what of it is not read.
fn read(config: &Value, named: &str) -> Result<Scheme, Unsupported> {
    match Scheme::of(config) {
        Ok(Some(scheme)) => Ok(scheme),
        Ok(None) => Err(Unsupported::new(named, method(config), INSTEAD)),
        Err(unsupported) => {
            let value = format!("{} ({})", unsupported.value, method(config));
            let expected = format!("{}, or {INSTEAD}", unsupported.expected);
            Err(Unsupported::new(unsupported.field, value, expected).within(named))
        }
    }
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
    fn what_is_not_read_is_named() {
        for (config, told) in [
            (
                json!({"quantization_config": {"load_in_4bit": true}}),
                "quantization_config is bitsandbytes with 4 bits, expected weights as floats",
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
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 3}}),
                "quantization_config.bits is 3 (AWQ with 3 bits), expected 4, or weights as floats",
            ),
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}),
                "quantization_config.version is \"gemv\" (AWQ with 4 bits), expected gemm, or",
            ),
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 0}}),
                "quantization_config.group_size is 0 (AWQ with 4 bits), expected a whole number",
            ),
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 4, "zero_point": false}}),
                "quantization_config.zero_point is false",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq", "bits": 2, "group_size": 64}}),
                "quantization_config.bits is 2 (GPTQ with 2 bits), expected 4 or 8, or",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -2}}),
                "quantization_config.group_size is -2",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}),
                "quantization_config.checkpoint_format is \"marlin\" (GPTQ with 4 bits), expected gptq, gptq_v2, or",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "is_marlin_format": true}}),
                "quantization_config.is_marlin_format is true",
            ),
            (
                json!({"compression_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}),
                "compression_config.format is \"nvfp4-pack-quantized\" (compressed-tensors), expected pack-quantized",
            ),
            (
                json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 128}}}}}),
                "quantization_config.config_groups.group_0.weights.num_bits is 3 (compressed-tensors), expected 4 or 8",
            ),
            (
                json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}),
                "quantization_config.config_groups is null",
            ),
            (
                json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}}),
                "quantization_config.weight_block_size is [128,0] (FP8), expected two whole numbers",
            ),
            (
                json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}),
                "quantization_config.quant_algo is \"NVFP4\" (ModelOpt), expected fp8, or",
            ),
            (
                json!({"quantization_config": {"quant_method": "fp8"},
                    "text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}}),
                "text_config.quantization_config is another than before it",
            ),
        ] {
            let error = scheme(&config).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}\n{told}");
        }
    }

    #[test]
    fn what_is_read_is_told_with_its_sizes() {
        for (config, told) in [
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": true}),
                "AWQ, integers of 4 bits in groups of 64",
            ),
            (
                json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": true, "sym": true}),
                "GPTQ, integers of 8 bits with a scale for each row (columns in an order of their own)",
            ),
            (
                json!({"quant_method": "fp8", "weight_block_size": [128, 64]}),
                "FP8, floats of 8 bits in blocks of 128 x 64",
            ),
            (
                json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
                "FP8 of ModelOpt, floats of 8 bits with one scale or floats of 8 bits with a scale for each row",
            ),
            (
                json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "targets": ["Linear"]}}}),
                "compressed-tensors, floats of 8 bits with a scale for each row",
            ),
        ] {
            let found = scheme(&json!({"quantization_config": config})).unwrap();
            assert_eq!(found.unwrap().to_string(), told);
        }
    }

    #[test]
    fn a_configuration_of_floats_has_no_way() {
        for config in [
            json!({}),
            json!({"quantization_config": null}),
            json!({"quantization_config": {}}),
            json!({"quantization": null}),
        ] {
            assert_eq!(scheme(&config).unwrap(), None, "{config}");
        }
    }
}
