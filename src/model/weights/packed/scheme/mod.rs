//! What `quantization_config` says of how matrices are stored, as far as it is read.
//!
//! The fields are those of transformers' classes of the same methods, of AutoAWQ, GPTQModel and compressed-tensors.
//!
//! - this file: the methods
//! - `fields`: what single fields may say

mod fields;

use std::fmt::{self, Display, Formatter};

use serde_json::Value;

use crate::model::decoder::Unsupported;
use fields::{block, expect_bits, expect_text, group, BLOCK};

/// How the matrices of a checkpoint are stored. A module that is not converted has its plain `weight`, so that lists of those are not
/// needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// What people call the method.
    method: &'static str,
    pub(super) layout: Layout,
    /// A matrix is stored as one of these.
    specs: Vec<Spec>,
    /// Modules may differ from what is said of all (`dynamic` of GPTQModel).
    exceptions: bool,
}

/// Which tensors stand for a matrix, and how they are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `qweight`, `qzeros`, `scales`: columns of the matrix as rows, eight of its rows interleaved in a word.
    Awq,
    /// The same names and `g_idx`: columns in words. `one_less`: stored zeros are one less than they are.
    Gptq { one_less: bool },
    /// `weight_packed`, `weight_scale`, `weight_shape`: rows in words; or `weight` of 8 bits and `weight_scale`.
    Compressed,
    /// `weight` of 8 bits and `weight_scale` or `weight_scale_inv`.
    Scaled,
}

/// A way of storing a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    pub bits: usize,
    /// Of a float; else an integer.
    pub float: bool,
    pub scope: Scope,
    /// Zero is in the middle of the integers; else each group says where.
    pub symmetric: bool,
    /// A column's group is told for each.
    pub ordered: bool,
}

/// The numbers that have a scale in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Row,
    /// So many of a row.
    Group(usize),
    /// Rows and columns of a rectangle.
    Block(usize, usize),
}

impl Scheme {
    /// What `config` says if its `quant_method` is one that is read. An error of the fields that are read otherwise.
    pub fn of(config: &Value) -> Result<Option<Self>, Unsupported> {
        match config["quant_method"].as_str().unwrap_or_default() {
            "awq" => Self::awq(config).map(Some),
            "gptq" => Self::gptq(config).map(Some),
            "compressed-tensors" => Self::compressed(config).map(Some),
            "fp8" => Self::fp8(config).map(Some),
            "fbgemm_fp8" => Ok(Some(Self::scaled("FP8 of FBGEMM", None))),
            "modelopt" => Self::modelopt(config).map(Some),
            _ => Ok(None),
        }
    }

    fn awq(config: &Value) -> Result<Self, Unsupported> {
        expect_text(config, &["version", "format"], &["gemm"], "gemm")?;
        expect_text(config, &["backend"], &["auto", "autoawq"], "auto")?;
        expect_bits(config, &["bits", "w_bit"], &[4])?;
        if config["zero_point"] == false {
            return Err(Unsupported::new("zero_point", "false", "true"));
        }
        Ok(Self {
            method: "AWQ",
            layout: Layout::Awq,
            specs: vec![Spec {
                bits: 4,
                float: false,
                scope: group(config, &["group_size", "q_group_size"])?,
                symmetric: false,
                ordered: false,
            }],
            exceptions: false,
        })
    }

    fn gptq(config: &Value) -> Result<Self, Unsupported> {
        if config["is_marlin_format"] == true {
            return Err(Unsupported::new("is_marlin_format", "true", "false"));
        }
        let formats = ["gptq", "gptq_v2"];
        let format = expect_text(config, &["checkpoint_format", "format"], &formats, "gptq")?;
        expect_text(config, &["pack_dtype"], &["int32"], "int32")?;
        for changed in ["rotation", "adapter"] {
            if !config[changed].is_null() {
                let value = &config[changed];
                return Err(Unsupported::new(changed, value, "none"));
            }
        }
        let bits = expect_bits(config, &["bits"], &[4, 8])?;
        Ok(Self {
            method: "GPTQ",
            layout: Layout::Gptq {
                one_less: format == "gptq",
            },
            specs: vec![Spec {
                bits,
                float: false,
                scope: group(config, &["group_size"])?,
                symmetric: config["sym"] != false,
                ordered: config["desc_act"] == true,
            }],
            exceptions: config["dynamic"]
                .as_object()
                .is_some_and(|given| !given.is_empty()),
        })
    }

    fn compressed(config: &Value) -> Result<Self, Unsupported> {
        const FORMATS: [&str; 5] = [
            "pack-quantized",
            "int-quantized",
            "float-quantized",
            "naive-quantized",
            "mixed-precision",
        ];
        expect_text(config, &["format"], &FORMATS, "")?;
        expect_text(
            config,
            &["quantization_status"],
            &["compressed"],
            "compressed",
        )?;
        expect_text(&config["sparsity_config"], &["format"], &["dense"], "dense")
            .map_err(|unsupported| unsupported.within("sparsity_config"))?;
        if let Some(given) = config["transform_config"]["config_groups"].as_object() {
            if !given.is_empty() {
                let names = given.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(Unsupported::new("transform_config", names, "none"));
            }
        }
        let Some(groups) = config["config_groups"].as_object() else {
            let value = &config["config_groups"];
            return Err(Unsupported::new("config_groups", value, "groups by name"));
        };
        let mut specs = Vec::new();
        for (name, group) in groups {
            let weights = &group["weights"];
            if group.is_object() && weights.is_null() {
                continue;
            }
            let within = |unsupported: Unsupported| {
                unsupported.within(&format!("config_groups.{name}.weights"))
            };
            expect_text(group, &["format"], &FORMATS, "pack-quantized")
                .map_err(|unsupported| unsupported.within(&format!("config_groups.{name}")))?;
            specs.push(Spec::compressed(weights).map_err(within)?);
        }
        if specs.is_empty() {
            let expected = "a group with weights";
            return Err(Unsupported::new("config_groups", "without any", expected));
        }
        Ok(Self {
            method: "compressed-tensors",
            layout: Layout::Compressed,
            specs,
            exceptions: false,
        })
    }

    fn fp8(config: &Value) -> Result<Self, Unsupported> {
        expect_text(config, &["fmt"], &["e4m3", "float8_e4m3fn"], "e4m3")?;
        Ok(Self::scaled("FP8", block(config, "weight_block_size")?))
    }

    fn modelopt(config: &Value) -> Result<Self, Unsupported> {
        let inner = match &config["quant_algo"] {
            Value::Null => &config["quantization"],
            _ => config,
        };
        expect_text(inner, &["quant_algo"], &["fp8"], "")?;
        Ok(Self::scaled("FP8 of ModelOpt", None))
    }

    fn scaled(method: &'static str, block: Option<(usize, usize)>) -> Self {
        let scopes = match block {
            Some((rows, columns)) => vec![Scope::Block(rows, columns)],
            None => vec![Scope::All, Scope::Row],
        };
        let spec = |scope| Spec {
            bits: 8,
            float: true,
            scope,
            symmetric: true,
            ordered: false,
        };
        Self {
            method,
            layout: Layout::Scaled,
            specs: scopes.into_iter().map(spec).collect(),
            exceptions: false,
        }
    }

    /// The way in which integers of `bits` in `groups` of a row of `width` are stored.
    pub(super) fn of_integers(
        &self,
        bits: usize,
        (width, groups): (usize, usize),
    ) -> Result<Spec, String> {
        let fits = |spec: &&Spec| {
            let in_groups = match spec.scope {
                Scope::Group(size) => groups.checked_mul(size) == Some(width),
                Scope::Row | Scope::All => groups == 1,
                Scope::Block(..) => false,
            };
            in_groups && spec.bits == bits && !spec.float
        };
        if let Some(spec) = self.specs.iter().find(fits) {
            return Ok(spec.clone());
        }
        match self.specs.as_slice() {
            [spec, ..] if self.exceptions && width.is_multiple_of(groups) => Ok(Spec {
                bits,
                scope: Scope::Group(width / groups),
                // What is said of all need not hold for it.
                symmetric: false,
                ..spec.clone()
            }),
            _ => Err(format!(
                "rows of {width} in {groups} groups of {bits} bits, but quantization_config says {self}"
            )),
        }
    }

    /// The way in which 8-bit floats `[rows, width]` with scales of these dimensions are stored: how many rows and columns have a scale in
    /// common.
    pub(super) fn of_floats(
        &self,
        (rows, width): (usize, usize),
        scales: &[usize],
    ) -> Result<(usize, usize), String> {
        let grid = match *scales {
            [] | [1] => (1, 1),
            [rows] => (rows, 1),
            [rows, columns] => (rows, columns),
            _ => (0, 0),
        };
        let blocks = self.specs.iter().filter(|spec| spec.float);
        let mut blocks = blocks.map(|spec| match spec.scope {
            Scope::All => (rows, width),
            Scope::Row => (1, width),
            Scope::Group(size) => (1, size),
            Scope::Block(rows, columns) => (rows, columns),
        });
        let fits =
            |block: &(usize, usize)| grid == (rows.div_ceil(block.0), width.div_ceil(block.1));
        blocks.find(fits).ok_or_else(|| {
            format!("scales of {scales:?} for {rows} x {width} numbers, but quantization_config says {self}")
        })
    }
}

impl Spec {
    fn compressed(weights: &Value) -> Result<Self, Unsupported> {
        let float = match expect_text(weights, &["type"], &["int", "float"], "int")?.as_str() {
            "float" => {
                expect_bits(weights, &["num_bits"], &[8])?;
                true
            }
            _ => false,
        };
        let bits = expect_bits(weights, &["num_bits"], &[4, 8])?;
        let inferred = match weights["group_size"].as_i64() {
            None => "tensor",
            Some(-1) => "channel",
            Some(_) => "group",
        };
        let strategies = ["tensor", "channel", "group", "block"];
        let strategy = expect_text(weights, &["strategy"], &strategies, inferred)?;
        let scope = match (strategy.as_str(), float) {
            ("tensor", _) => Scope::All,
            ("channel", _) => Scope::Row,
            ("group", _) => group(weights, &["group_size"])?,
            (_, true) => match block(weights, "block_structure")? {
                Some((rows, columns)) => Scope::Block(rows, columns),
                None => return Err(Unsupported::new("block_structure", "null", BLOCK)),
            },
            (other, false) => {
                let expected = "tensor, channel or group of integers";
                return Err(Unsupported::new("strategy", other, expected));
            }
        };
        let order = &weights["actorder"];
        Ok(Self {
            bits,
            float,
            scope,
            symmetric: weights["symmetric"] != false,
            ordered: *order == true || ["group", "dynamic"].iter().any(|it| order == it),
        })
    }
}

impl Display for Scheme {
    /// The method, and every way in which it stores matrices.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let specs = self.specs.iter().map(Spec::to_string).collect::<Vec<_>>();
        write!(f, "{}, {}", self.method, specs.join(" or "))?;
        match self.exceptions {
            true => write!(f, ", some otherwise"),
            false => Ok(()),
        }
    }
}

impl Display for Spec {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let kind = if self.float { "floats" } else { "integers" };
        write!(f, "{kind} of {} bits", self.bits)?;
        match self.scope {
            Scope::All => write!(f, " with one scale")?,
            Scope::Row => write!(f, " with a scale for each row")?,
            Scope::Group(size) => write!(f, " in groups of {size}")?,
            Scope::Block(rows, columns) => write!(f, " in blocks of {rows} x {columns}")?,
        }
        match self.ordered {
            true => write!(f, " (columns in an order of their own)"),
            false => Ok(()),
        }
    }
}
