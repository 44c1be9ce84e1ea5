//! Which tensors hold a matrix of integers, with a scale and a zero for each group of a row: the number of `q` is `(q - zero) * scale`.

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

use super::{Entry, Layout, Parts, Scheme, FLOATS};
use crate::model::weights::mapped::Shard;

/// Weights of the blocks that take the integers over.
pub const BLOCK: usize = 32;

/// A matrix in integers.
pub struct Integers {
    pub dims: [usize; 2],
    pub words: Entry,
    pub order: Order,
    pub bits: usize,
    pub scales: Entry,
    pub zeros: Option<Entry>,
    /// Groups of a row.
    pub groups: usize,
    /// Whether every zero is in the middle, whatever is stored.
    symmetric: bool,
    /// The group of each column, where they are not one after the other.
    pub indices: Option<Entry>,
    /// Whether the columns need not lie in the order of the groups.
    ordered: bool,
    shape: Option<Entry>,
}

/// How integers lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `[width, rows / 8]` words.
    Awq,
    /// `[width / per word, rows]` words.
    Gptq { one_less: bool },
    /// `[rows, width / per word]` words.
    Rows,
    /// `[rows, width]` signed bytes.
    Bytes,
}

impl Order {
    /// Whether zeros and scales have groups in front of rows.
    pub fn by_group(self) -> bool {
        matches!(self, Self::Awq | Self::Gptq { .. })
    }
}

/// The two sides of a tensor, none of them 0.
fn sides(entry: &Entry) -> Result<(usize, usize), String> {
    match *entry.dims.as_slice() {
        [a, b] if a > 0 && b > 0 => Ok((a, b)),
        _ => Err(format!(
            "{} has the shape {:?}, expected two sides and none of 0",
            entry.stored, entry.dims
        )),
    }
}

fn times(a: usize, b: usize) -> Result<usize, String> {
    a.checked_mul(b)
        .ok_or_else(|| format!("{a} x {b} numbers are too many"))
}

impl Integers {
    pub fn of(main: &Entry, parts: &mut Parts, scheme: &Scheme) -> Result<Self, String> {
        match (scheme.layout, main.dtype) {
            (Layout::Awq, _) => Self::by_columns(Order::Awq, main, parts, scheme),
            (Layout::Gptq { one_less }, _) => {
                Self::by_columns(Order::Gptq { one_less }, main, parts, scheme)
            }
            (_, Dtype::I8) => Self::by_rows(Order::Bytes, main, parts, scheme),
            _ => Self::by_rows(Order::Rows, main, parts, scheme),
        }
    }

    /// `qweight`, `qzeros`, `scales`, `g_idx`.
    fn by_columns(
        order: Order,
        main: &Entry,
        parts: &mut Parts,
        scheme: &Scheme,
    ) -> Result<Self, String> {
        main.expect_dims(&main.dims, &[Dtype::I32])?;
        let (down, across) = sides(main)?;
        let (scales, zeros) = (parts.need("scales")?, parts.need("qzeros")?);
        let (groups, rows) = sides(&scales)?;
        // A zero has as many bits as an integer.
        let (_, zeros_across) = sides(&zeros)?;
        let bits = match order {
            Order::Awq => 4,
            _ => zeros_across.saturating_mul(32) / rows,
        };
        if ![4, 8].contains(&bits) {
            return Err(format!(
                "{} has {zeros_across} words for {rows} zeros, expected those of 4 or 8 bits",
                zeros.stored
            ));
        }
        let per_word = 32 / bits;
        if !rows.is_multiple_of(per_word) {
            return Err(format!("{rows} rows, expected a multiple of {per_word}"));
        }
        let (width, expected) = match order {
            Order::Awq => (down, rows / per_word),
            _ => (times(down, per_word)?, rows),
        };
        if across != expected {
            return Err(format!(
                "its shape is {:?}, expected {expected} in the place of {across} as {} is {:?}",
                main.dims, scales.stored, scales.dims
            ));
        }
        let spec = scheme.of_integers(bits, (width, groups))?;
        scales.expect_dims(&[groups, rows], &FLOATS)?;
        zeros.expect_dims(&[groups, rows / per_word], &[Dtype::I32])?;
        let indices = match (order, spec.ordered) {
            (Order::Awq, _) => None,
            (_, true) => Some(parts.need("g_idx")?),
            (_, false) => parts.find("g_idx"),
        };
        let integers = Self {
            dims: [rows, width],
            words: main.clone(),
            order,
            bits,
            scales,
            zeros: Some(zeros),
            groups,
            symmetric: spec.symmetric,
            indices,
            ordered: spec.ordered,
            shape: None,
        };
        integers.checked()
    }

    /// `weight_packed` or `weight`, `weight_scale`, `weight_zero_point`, `weight_shape`, `weight_g_idx`.
    fn by_rows(
        order: Order,
        main: &Entry,
        parts: &mut Parts,
        scheme: &Scheme,
    ) -> Result<Self, String> {
        let (rows, across) = sides(main)?;
        let scales = parts.need("weight_scale")?;
        let groups = match *scales.dims.as_slice() {
            [] | [1] => 1,
            [n] if n == rows => 1,
            [n, groups] if n == rows && groups > 0 => groups,
            [1, 1] => 1,
            _ => {
                return Err(format!(
                    "{} has the shape {:?}, expected one of {rows} rows",
                    scales.stored, scales.dims
                ))
            }
        };
        scales.expect_dims(&scales.dims, &FLOATS)?;
        let (bits, width, shape) = match order {
            Order::Bytes => (8, across, None),
            _ => {
                main.expect_dims(&main.dims, &[Dtype::I32])?;
                let shape = parts.need("weight_shape")?;
                let width = width_of(&shape, rows, parts.shards)?;
                let fits = |bits: &usize| width.div_ceil(32 / bits) == across;
                let bits = [4, 8].into_iter().find(fits);
                let bits = bits.ok_or_else(|| {
                    format!(
                        "its shape is {:?}, but {} says [{rows}, {width}]; expected those numbers in 4 or 8 bits",
                        main.dims, shape.stored
                    )
                })?;
                (bits, width, Some(shape))
            }
        };
        let spec = scheme.of_integers(bits, (width, groups))?;
        let zeros = match spec.symmetric {
            true => None,
            false => {
                let zeros = parts.need("weight_zero_point")?;
                match order {
                    Order::Bytes => zeros.expect_dims(&scales.dims, &[Dtype::I8])?,
                    _ => {
                        let words = rows.div_ceil(32 / bits);
                        zeros.expect_dims(&[words, groups], &[Dtype::I32])?;
                    }
                }
                Some(zeros)
            }
        };
        let indices = match spec.ordered {
            true => Some(parts.need("weight_g_idx")?),
            false => parts.find("weight_g_idx"),
        };
        let integers = Self {
            dims: [rows, width],
            words: main.clone(),
            order,
            bits,
            scales,
            zeros,
            groups,
            symmetric: spec.symmetric,
            indices,
            ordered: spec.ordered,
            shape,
        };
        integers.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let width = self.dims[1];
        times(self.dims[0], width)?;
        if !width.is_multiple_of(self.groups) {
            return Err(format!("rows of {width} in {} groups", self.groups));
        }
        if let Some(indices) = &self.indices {
            indices.expect_dims(&[width], &[Dtype::I32, Dtype::I64])?;
        }
        Ok(self)
    }

    pub fn entries(&self) -> Vec<&Entry> {
        let always = [&self.words, &self.scales].into_iter();
        let sometimes = [&self.zeros, &self.indices, &self.shape]
            .into_iter()
            .flatten();
        always.chain(sometimes).collect()
    }

    /// The kind of blocks that hold the same numbers.
    pub fn blocks(&self) -> Option<GgmlDType> {
        let group = self.dims[1] / self.groups;
        if self.ordered || !group.is_multiple_of(BLOCK) {
            return None;
        }
        match (self.bits, self.symmetric) {
            (4, true) => Some(GgmlDType::Q4_0),
            (4, false) => Some(GgmlDType::Q4_1),
            (_, true) => Some(GgmlDType::Q8_0),
            // The difference of two bytes does not fit a byte.
            (_, false) => None,
        }
    }
}

/// The width that `weight_shape` gives a matrix of `rows`.
fn width_of(shape: &Entry, rows: usize, shards: &[Shard]) -> Result<usize, String> {
    shape.expect_dims(&[2], &[Dtype::I32, Dtype::I64])?;
    let sides = shape.whole_numbers(shards);
    let width = usize::try_from(sides[1]).ok().filter(|&width| width > 0);
    match width {
        Some(width) if usize::try_from(sides[0]) == Ok(rows) => Ok(width),
        _ => Err(format!(
            "{} holds {sides:?}, expected {rows} rows and columns from 1 on",
            shape.stored
        )),
    }
}
