//! Matrices that are stored as integers or 8-bit floats with scales, as a `quantization_config` has them.
//!
//! - this file: which tensors of a file stand for a matrix
//! - `scheme`: what the configuration says
//! - `integers`: the tensors that hold integers, with a scale and a zero for each group of a row
//! - `unpack`: integers taken out of their words, and what they stand for
//! - `floats`: 8-bit floats with scales
//! - `repack`: integers as the blocks that hold the same numbers
//!
//! A matrix is asked for by the name that it has in a checkpoint of floats, `X.weight`, and read in bands of whole rows.

mod floats;
mod integers;
mod repack;
mod scheme;
mod unpack;

use std::collections::HashMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result};
use safetensors::Dtype;

use super::bands::{shape_of, Bands, BAND};
use super::mapped::{Entry, Shard};
use super::stored::give_back_around;
use floats::Floats;
use integers::Integers;
use scheme::Layout;
pub use scheme::Scheme;

/// The tensors that stand for a matrix.
pub struct Packed {
    /// `[rows, width]`
    dims: [usize; 2],
    form: Form,
    /// Tensors about what it is multiplied with, which are not used.
    beside: Vec<Entry>,
}

enum Form {
    Integers(Box<Integers>),
    Floats(Box<Floats>),
}

/// Endings of tensors that say how the inputs or outputs of a product were quantised. Here they are not.
const BESIDE: [&str; 6] = [
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "activation_scale",
];

/// What is wrong with a matrix: the tensor that shows it, and what.
pub type Wrong = (Entry, String);

/// Takes the tensors that stand for matrices out of `entries`. Returns the matrices by their names.
pub fn take(
    entries: &mut HashMap<String, Entry>,
    scheme: &Scheme,
    shards: &[Shard],
) -> std::result::Result<HashMap<String, Packed>, Wrong> {
    let mut mains = entries
        .iter()
        .filter_map(|(name, entry)| Some((module(name, entry, scheme)?.to_string(), name.clone())))
        .collect::<Vec<_>>();
    mains.sort();
    let mut found = HashMap::new();
    for (module, main) in mains {
        let Some(entry) = entries.remove(&main) else {
            continue;
        };
        let name = format!("{module}.weight");
        if let Some(plain) = entries.remove(&name) {
            let what = format!("it is there twice, the other time as {}", entry.stored);
            return Err((plain, what));
        }
        let mut parts = Parts {
            module,
            entries,
            shards,
        };
        let packed = match Packed::of(&entry, &mut parts, scheme) {
            Ok(packed) => packed,
            Err(what) => return Err((entry, what)),
        };
        found.insert(name, packed);
    }
    Ok(found)
}

/// The module whose matrix the tensor `name` holds in a packed form, if it does.
fn module<'a>(name: &'a str, entry: &Entry, scheme: &Scheme) -> Option<&'a str> {
    match scheme.layout {
        Layout::Awq | Layout::Gptq { .. } => name.strip_suffix(".qweight"),
        Layout::Compressed | Layout::Scaled => {
            let narrow = match entry.dtype {
                Dtype::F8_E4M3 => true,
                Dtype::I8 => scheme.layout == Layout::Compressed,
                _ => false,
            };
            let packed = name.strip_suffix(".weight_packed");
            let packed = packed.filter(|_| scheme.layout == Layout::Compressed);
            packed.or_else(|| name.strip_suffix(".weight").filter(|_| narrow))
        }
    }
}

/// The tensors of a module.
struct Parts<'a> {
    module: String,
    entries: &'a mut HashMap<String, Entry>,
    shards: &'a [Shard],
}

impl Parts<'_> {
    fn find(&mut self, part: &str) -> Option<Entry> {
        self.entries.remove(&format!("{}.{part}", self.module))
    }

    fn need(&mut self, part: &str) -> std::result::Result<Entry, String> {
        let missing = format!("{}.{part}, which belongs to it, is missing", self.module);
        self.find(part).ok_or(missing)
    }
}

impl Entry {
    /// Fails unless the tensor has these dimensions.
    fn expect_dims(&self, dims: &[usize], types: &[Dtype]) -> std::result::Result<(), String> {
        if !types.contains(&self.dtype) {
            let expected = types.iter().map(Dtype::to_string).collect::<Vec<_>>();
            let expected = expected.join(", ");
            return Err(format!(
                "the element type of {} is {}, expected {expected}",
                self.stored, self.dtype
            ));
        }
        match self.dims == dims {
            true => Ok(()),
            false => Err(format!(
                "{} has the shape {:?}, expected {dims:?}",
                self.stored, self.dims
            )),
        }
    }

    fn in_shard<'a>(&self, shards: &'a [Shard]) -> &'a [u8] {
        &shards[self.shard].bytes[self.bytes.clone()]
    }

    /// Its numbers, which are i32 or i64.
    fn whole_numbers(&self, shards: &[Shard]) -> Vec<i64> {
        let bytes = self.in_shard(shards);
        match self.dtype {
            Dtype::I32 => {
                let numbers = bytes.as_chunks().0.iter();
                let numbers = numbers.map(|&bytes| i32::from_le_bytes(bytes).into());
                numbers.collect()
            }
            _ => {
                let numbers = bytes.as_chunks().0.iter();
                numbers.map(|&bytes| i64::from_le_bytes(bytes)).collect()
            }
        }
    }

    /// Its numbers as f32; an error if one is not finite.
    fn numbers(&self, shards: &[Shard]) -> std::result::Result<Vec<f32>, String> {
        let mut numbers = vec![0f32; self.dims.iter().product()];
        let stored = self.floats(shards);
        let stored = stored.ok_or_else(|| format!("{} holds no floats", self.stored))?;
        let read = stored.widen(0, &mut numbers);
        read.map_err(|error| error.to_string())?;
        match numbers.iter().find(|number| !number.is_finite()) {
            Some(number) => Err(format!(
                "{number} is among its scales ({}), expected finite ones only",
                self.stored
            )),
            None => Ok(numbers),
        }
    }
}

/// What scales are stored as.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

impl Packed {
    fn of(main: &Entry, parts: &mut Parts, scheme: &Scheme) -> std::result::Result<Self, String> {
        let (dims, form) = match main.dtype {
            Dtype::F8_E4M3 => {
                let floats = Floats::of(main, parts, scheme)?;
                (floats.dims, Form::Floats(Box::new(floats)))
            }
            _ => {
                let integers = Integers::of(main, parts, scheme)?;
                (integers.dims, Form::Integers(Box::new(integers)))
            }
        };
        let beside = BESIDE.iter().filter_map(|part| parts.find(part)).collect();
        Ok(Self { dims, form, beside })
    }

    /// `[rows, width]`
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The tensor that errors name.
    pub fn main(&self) -> &Entry {
        match &self.form {
            Form::Integers(integers) => &integers.words,
            Form::Floats(floats) => &floats.bytes,
        }
    }

    /// All tensors that stand for it.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let parts = match &self.form {
            Form::Integers(integers) => integers.entries(),
            Form::Floats(floats) => vec![&floats.bytes, &floats.scales],
        };
        parts.into_iter().chain(&self.beside)
    }

    /// The kind of blocks that hold the same numbers, if there is one.
    pub fn blocks(&self) -> Option<GgmlDType> {
        match &self.form {
            Form::Integers(integers) => integers.blocks(),
            Form::Floats(_) => None,
        }
    }

    /// The matrix with what belongs to it, to be read; its rows in this order, if one is given.
    pub fn open<'a>(&'a self, shards: &'a [Shard], rows: Option<&'a [u32]>) -> Result<Opened<'a>> {
        let kind = match &self.form {
            Form::Integers(integers) => integers.open(shards).map(Kind::Integers),
            Form::Floats(floats) => floats.open(shards).map(Kind::Floats),
        };
        Ok(Opened {
            packed: self,
            shards,
            kind: kind.map_err(candle_core::Error::msg)?,
            rows,
        })
    }
}

/// A matrix whose scales have been read.
pub struct Opened<'a> {
    packed: &'a Packed,
    shards: &'a [Shard],
    kind: Kind<'a>,
    rows: Option<&'a [u32]>,
}

enum Kind<'a> {
    Integers(unpack::Opened<'a>),
    Floats(floats::Opened<'a>),
}

/// Rows that lie beside each other in a word.
const TOGETHER: usize = 8;

impl Opened<'_> {
    fn width(&self) -> usize {
        self.packed.dims[1]
    }

    /// Rows of a band.
    fn rows_at_once(&self) -> usize {
        let rows = BAND / self.width();
        (rows - rows % TOGETHER).max(TOGETHER)
    }

    /// The runs of rows that lie one after the other in the file, of the result's rows from `first` on, which are `count`.
    fn runs(&self, first: usize, count: usize) -> Vec<std::ops::Range<usize>> {
        match self.rows {
            None => std::iter::once(first..first + count).collect(),
            Some(rows) => {
                let rows = &rows[first..first + count];
                rows.iter()
                    .map(|&row| row as usize..row as usize + 1)
                    .collect()
            }
        }
    }

    /// The blocks that hold the same numbers. Fails if there are none.
    pub fn repacked(&self, device: &Device) -> Result<QTensor> {
        let blocks = match &self.kind {
            Kind::Integers(integers) => repack::blocks(self, integers)?,
            Kind::Floats(_) => candle_core::bail!("8-bit floats as blocks, expected integers"),
        };
        super::bands::on(device, QTensor::new(blocks, self.shape()?)?)
    }
}

impl Bands for Opened<'_> {
    fn shape(&self) -> Result<Vec<usize>> {
        shape_of(&self.packed.dims, self.rows)
    }

    fn band(&self) -> usize {
        self.rows_at_once() * self.width()
    }

    fn read(&self, start: usize, wide: &mut [f32]) -> Result<()> {
        let width = self.width();
        let mut wide = wide;
        for run in self.runs(start / width, wide.len() / width) {
            let (now, later) = wide.split_at_mut(run.len() * width);
            match &self.kind {
                Kind::Integers(integers) => integers.widen(run, now),
                Kind::Floats(floats) => floats.widen(run, now),
            }
            wide = later;
        }
        Ok(())
    }

    fn finish(&self) {
        for entry in self.packed.entries() {
            give_back_around(&self.shards[entry.shard].bytes, &entry.bytes);
        }
    }
}
