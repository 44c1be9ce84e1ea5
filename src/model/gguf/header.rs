//! The header of a GGUF file: metadata and the table of tensors, read from the file's bytes and checked against them.
//!
//! candle's reader divides by an alignment of 0, widens every byte of an array to 32 and lets tensors share their bytes, so a small
//! file could end the process or fill the memory. Here values stay in the file until they are asked for.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::value::{Cursor, Kind, Value};
use crate::model::checkpoint::foreign;
use crate::model::weights::block_name;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// As in ggml.h.
const MAX_DIMS: u32 = 4;

/// Where a tensor lies and what it is.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub dtype: GgmlDType,
    /// As in `[out, in]`: the reverse of the file's order.
    pub dims: Vec<usize>,
    /// Which of the model's files it is in, from 0 on.
    pub part: usize,
    /// In the file.
    pub bytes: Range<usize>,
}

/// Metadata and tensors by name.
#[derive(Debug)]
pub struct Header {
    /// Where each value lies.
    metadata: HashMap<String, (Kind, usize)>,
    /// In the order of their names, so that of several errors it is always the same one that is told.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Parses the bytes of a whole file. An error says what is wrong and where.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor::new(bytes);
        if cursor.take(4).ok() != Some(MAGIC) {
            let what = foreign(bytes).map_or_else(String::new, |what| format!(", it is {what}"));
            return Err(format!(
                "not a GGUF file: it does not begin with GGUF{what}"
            ));
        }
        let version = cursor.u32()?;
        if (2..=3).contains(&version.swap_bytes()) {
            return Err(
                "its numbers begin with their highest byte, expected a little-endian GGUF file"
                    .to_string(),
            );
        }
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version is {version}, expected 2 or 3"));
        }
        let (tensor_count, metadata_count) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = HashMap::new();
        for i in 0..metadata_count {
            let at = |e: String| format!("key {} of {metadata_count}: {e}", i + 1);
            let key = cursor.text().map_err(at)?;
            let kind = Kind::read(&mut cursor).map_err(|e| format!("{key}: {e}"))?;
            let at = cursor.at();
            cursor.skip(kind, 0).map_err(|e| format!("{key}: {e}"))?;
            if metadata.insert(key.to_string(), (kind, at)).is_some() {
                return Err(format!("the key {key} is there twice"));
            }
        }
        let mut entries = Vec::new();
        for i in 0..tensor_count {
            let at = |e: String| format!("tensor {} of {tensor_count}: {e}", i + 1);
            let name = cursor.text().map_err(at)?;
            entries
                .push(Entry::read(name, &mut cursor).map_err(|e| format!("tensor {name}: {e}"))?);
        }
        let mut header = Self {
            metadata,
            tensors: BTreeMap::new(),
        };
        let alignment = alignment(header.get(bytes, "general.alignment"))?;
        header.tensors = place(entries, cursor.at(), bytes.len(), alignment)?;
        Ok(header)
    }

    /// The value of `key` in `bytes`, which are those that were parsed.
    pub fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let &(kind, at) = self.metadata.get(key)?;
        Some(Value::new(kind, Cursor::at_offset(bytes, at)?))
    }
}

/// A line of the table of tensors.
struct Entry<'a> {
    name: &'a str,
    dtype: GgmlDType,
    dims: Vec<usize>,
    /// From the start of the data.
    offset: u64,
    size: usize,
}

impl<'a> Entry<'a> {
    fn read(name: &'a str, cursor: &mut Cursor<'a>) -> Result<Self, String> {
        let rank = cursor.u32()?;
        if !(1..=MAX_DIMS).contains(&rank) {
            return Err(format!("{rank} dimensions, expected 1 to {MAX_DIMS}"));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            let dim = cursor.u64()?;
            let fits = usize::try_from(dim);
            dims.push(
                fits.map_err(|_| format!("a dimension is {dim}, expected at most {}", usize::MAX))?,
            );
        }
        dims.reverse();
        let id = cursor.u32()?;
        let dtype = element_type(id).ok_or_else(|| {
            let name = UNREAD.iter().find(|(unread, _)| *unread == id);
            let told = name.map_or_else(|| id.to_string(), |(_, name)| format!("{name} ({id})"));
            format!(
                "element type is {told}, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K"
            )
        })?;
        let offset = cursor.u64()?;
        let (block, width) = (dtype.block_size(), dims[dims.len() - 1]);
        if !width.is_multiple_of(block) {
            return Err(format!(
                "rows of {width} elements, expected a multiple of {block} for {}",
                block_name(dtype)
            ));
        }
        let size = dims
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .and_then(|elements| (elements / block).checked_mul(dtype.type_size()))
            .ok_or_else(|| {
                format!(
                    "shape {dims:?} is too large, expected at most {} bytes",
                    usize::MAX
                )
            })?;
        Ok(Self {
            name,
            dtype,
            dims,
            offset,
            size,
        })
    }
}

/// Where each tensor lies in a file of `length` bytes whose header ends at `end`.
fn place(
    mut entries: Vec<Entry>,
    end: usize,
    length: usize,
    alignment: u64,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let start = (end as u64).next_multiple_of(alignment);
    entries.sort_by_key(|entry| (entry.offset, entry.size));
    let mut tensors = BTreeMap::new();
    // Tensors that share bytes would make a small file need any amount of memory.
    let mut free = start;
    for entry in entries {
        let name = entry.name;
        let from = start.saturating_add(entry.offset);
        let to = from.saturating_add(entry.size as u64);
        if !entry.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor {name}: offset is {}, expected a multiple of {alignment}",
                entry.offset
            ));
        }
        if to > length as u64 {
            return Err(format!(
                "tensor {name}: it ends at byte {to}, but the file has {length}: it was not copied to its end"
            ));
        }
        if from < free {
            return Err(format!(
                "tensor {name}: it begins at byte {from}, within the tensor before it, which ends at {free}"
            ));
        }
        free = to;
        let info = TensorInfo {
            dtype: entry.dtype,
            dims: entry.dims,
            part: 0,
            bytes: from as usize..to as usize,
        };
        if tensors.insert(name.to_string(), info).is_some() {
            return Err(format!("the tensor {name} is there twice"));
        }
    }
    Ok(tensors)
}

/// A multiple of 8, as the format demands; at most 2^20, so that sums of offsets cannot overflow.
fn alignment(value: Option<Value>) -> Result<u64, String> {
    let Some(value) = value else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let described = value.clone();
    value
        .whole()
        .filter(|&given| given != 0 && given.is_multiple_of(8) && given <= 1 << 20)
        .ok_or_else(|| {
            format!(
                "general.alignment is {}, expected a multiple of 8 up to 1048576",
                described.describe()
            )
        })
}

/// Element types of ggml.h that are not read, by their names there.
const UNREAD: [(u32, &str); 24] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

fn element_type(id: u32) -> Option<GgmlDType> {
    Some(match id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
