//! What weights are kept as, and random ones in the memory of the device.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{bail, DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::shapes::Shape;
use crate::model::precision::Precision;
use crate::model::weights::{Listed, Matrix, Quantization, Source};

/// What weights are kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    /// Everything, as numbers of this type.
    Floats(Precision),
    /// Matrices, as blocks of these integers.
    Blocks(Quantization),
}

impl WeightKind {
    /// Every kind that there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let floats = Precision::ALL.into_iter();
        let floats = floats.filter(|precision| *precision != Precision::Auto);
        let blocks = Quantization::ALL.into_iter();
        let blocks = blocks.filter(|kind| ![Quantization::Auto, Quantization::None].contains(kind));
        floats.map(Self::Floats).chain(blocks.map(Self::Blocks))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Floats(precision) => precision.name(),
            Self::Blocks(quantization) => quantization.name(),
        }
    }

    /// What becomes of matrices.
    fn quantization(self) -> Quantization {
        match self {
            Self::Floats(_) => Quantization::None,
            Self::Blocks(quantization) => quantization,
        }
    }
}

impl Display for WeightKind {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::all().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::all().map(Self::name).collect::<Vec<_>>();
            format!("{name} is unknown, expected one of: {}", names.join(", "))
        })
    }
}

/// Numbers that a thread draws, or blocks that it lays down, with one generator.
const PART: usize = 1 << 16;

/// Different blocks of a kind and deviation; a matrix is laid with them at random.
const TILES: usize = 4096;

/// The tensors of a shape with random numbers: weights of a deviation of 1 / sqrt(inputs), norms 1 and biases 0. What a tensor holds
/// depends on its name, the kind of weights and the kind of device.
pub struct RandomWeights {
    tensors: BTreeMap<String, Vec<usize>>,
    copies: BTreeMap<String, String>,
    kind: WeightKind,
    /// Bytes of what has been asked for, by name.
    given: Mutex<BTreeMap<String, usize>>,
    /// Blocks by kind and by the bits of their deviation.
    tiles: Mutex<HashMap<(GgmlDType, u64), Tiles>>,
}

/// Blocks, one after the other.
type Tiles = Arc<Vec<u8>>;

impl RandomWeights {
    pub fn new(shape: &Shape, kind: WeightKind) -> Self {
        Self {
            tensors: shape.tensors.clone(),
            copies: shape.copies.clone(),
            kind,
            given: Mutex::default(),
            tiles: Mutex::default(),
        }
    }

    /// Bytes of the tensor `name`, if it was asked for.
    pub fn given(&self, name: &str) -> Option<usize> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.get(name).copied()
    }

    fn note(&self, name: &str, bytes: usize) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.insert(name.to_string(), bytes);
    }

    /// The dimensions of what is asked for.
    fn dims(&self, name: &str, rows: Option<&[u32]>) -> Result<Vec<usize>> {
        let Some(mut dims) = self.shape(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        if let (Some(rows), Some(first)) = (rows, dims.first_mut()) {
            *first = rows.len();
        }
        Ok(dims)
    }

    /// The name whose numbers the tensor `name` has.
    fn original<'a>(&'a self, name: &'a str) -> &'a str {
        self.copies.get(name).map_or(name, String::as_str)
    }

    fn seed(&self, name: &str) -> u64 {
        // FNV-1a: the same in every version of the language.
        let bytes = self.original(name).bytes();
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// The blocks that a matrix of this deviation is laid with.
    fn tiles(&self, blocks: GgmlDType, deviation: f64) -> Result<Tiles> {
        let key = (blocks, deviation.to_bits());
        let mut tiles = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tiles.get(&key) {
            return Ok(known.clone());
        }
        let count = TILES * blocks.block_size();
        let values = Tensor::from_vec(
            uniform(count, deviation, 1),
            (TILES, blocks.block_size()),
            &Device::Cpu,
        )?;
        let bytes = QTensor::quantize(&values, blocks)?.data()?.into_owned();
        let bytes = Arc::new(bytes);
        tiles.insert(key, bytes.clone());
        Ok(bytes)
    }
}

/// Numbers of this deviation, evenly distributed around 0.
fn uniform(count: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let bound = (3f64.sqrt() * deviation) as f32;
    let mut values = vec![0f32; count];
    let parts = values.par_chunks_mut(PART).enumerate();
    parts.for_each(|(part, values)| {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(part as u64));
        for value in values {
            *value = (rng.random::<f32>() * 2.0 - 1.0) * bound;
        }
    });
    values
}

/// The deviation of a weight of these dimensions: that of what it is multiplied with is kept.
fn deviation(dims: &[usize]) -> f64 {
    let inputs = match dims {
        [_, inputs @ ..] if !inputs.is_empty() => inputs,
        all => all,
    };
    1.0 / (inputs.iter().product::<usize>().max(1) as f64).sqrt()
}

impl Source for RandomWeights {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).cloned()
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let dims = self.dims(name, rows)?;
        let original = self.original(name);
        let tensor = if original.ends_with(".bias") {
            Tensor::zeros(dims, dtype, device)?
        } else if dims.len() == 1 && original.ends_with(".weight") {
            Tensor::ones(dims, dtype, device)?
        } else {
            let deviation = deviation(&dims);
            let tensor = match device.is_cpu() {
                true => {
                    let count = dims.iter().product();
                    Tensor::from_vec(uniform(count, deviation, self.seed(name)), dims, device)?
                }
                false => {
                    device.set_seed(self.seed(name))?;
                    let bound = (3f64.sqrt() * deviation) as f32;
                    Tensor::rand(-bound, bound, dims, device)?
                }
            };
            tensor.to_dtype(dtype)?
        };
        self.note(name, tensor.elem_count() * dtype.size_in_bytes());
        Ok(tensor)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        let Some(blocks) = self.blocks(name) else {
            return Ok(Matrix::Dense(self.tensor(name, rows, dtype, device)?));
        };
        let dims = self.dims(name, rows)?;
        let tiles = self.tiles(blocks, deviation(&dims))?;
        let size = blocks.type_size();
        let count = dims.iter().product::<usize>() / blocks.block_size();
        let mut bytes = vec![0u8; count * size];
        let seed = self.seed(name);
        let parts = bytes.par_chunks_mut(PART * size).enumerate();
        parts.for_each(|(part, bytes)| {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(part as u64));
            for block in bytes.chunks_exact_mut(size) {
                let tile = rng.random_range(0..TILES) * size;
                block.copy_from_slice(&tiles[tile..tile + size]);
            }
        });
        self.note(name, bytes.len());
        let storage = QStorage::from_data(Cow::Owned(bytes), device, blocks)?;
        Ok(Matrix::Quantised(Arc::new(QTensor::new(storage, dims)?)))
    }

    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        let width = self.tensors.get(name)?.last()?;
        self.kind.quantization().blocks(*width)
    }

    fn same(&self, one: &str, other: &str) -> bool {
        self.original(one) == self.original(other)
    }

    fn describe(&self, name: &str) -> String {
        format!("{name} among random weights")
    }

    /// As published checkpoints are: bf16.
    fn list(&self) -> Vec<Listed> {
        let one = |(name, dims): (&String, &Vec<usize>)| Listed {
            name: name.clone(),
            dtype: "BF16".to_string(),
            bytes: dims.iter().product::<usize>() * DType::BF16.size_in_bytes(),
        };
        self.tensors.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "model.text_model.layers.0.self_attn.q_proj.weight";
    const KEY: &str = "model.text_model.layers.1.self_attn.q_proj.weight";

    fn source(kind: &str) -> RandomWeights {
        RandomWeights::new(&Shape::open("tiny").unwrap(), kind.parse().unwrap())
    }

    fn values(source: &RandomWeights, name: &str) -> Vec<f32> {
        let tensor = match source.matrix(name, None, DType::F32, &Device::Cpu).unwrap() {
            Matrix::Dense(tensor) => tensor,
            Matrix::Quantised(blocks) => blocks.dequantize(&Device::Cpu).unwrap(),
            Matrix::Panels(_) | Matrix::Planes(_) => panic!("{name} has been laid out"),
        };
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn weights_of_every_kind_have_the_deviation_of_a_layer_and_repeat() {
        for kind in WeightKind::all() {
            let name = kind.name();
            let drawn = values(&source(name), QUERY);
            assert_eq!(drawn, values(&source(name), QUERY), "{name}");
            assert_ne!(drawn, values(&source(name), KEY), "{name}");
            let square = drawn.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let found = (square / drawn.len() as f64).sqrt();
            assert!((found * 16.0 - 1.0).abs() < 0.05, "{name}: {found}");
            let rows = drawn.chunks(256).collect::<Vec<_>>();
            let first = rows.iter().filter(|row| **row == rows[0]).count();
            assert_eq!(first, 1, "{name}: rows repeat");
        }
    }

    #[test]
    fn norms_are_one_and_biases_zero() {
        let source = source("q8_0");
        let all = |name: &str| values_of(&source, name);
        let norm = all("model.text_model.norm.weight");
        assert!(norm.iter().all(|x| *x == 1.0));
        let bias = all("model.vision_model.post_layernorm.bias");
        assert!(bias.iter().all(|x| *x == 0.0));
    }

    fn values_of(source: &RandomWeights, name: &str) -> Vec<f32> {
        let tensor = source.tensor(name, None, DType::F32, &Device::Cpu);
        tensor.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn bytes_are_those_of_the_kind() {
        let rows = 256 * 256;
        for (kind, bytes) in [
            ("f32", 4 * rows),
            ("q8_0", rows / 32 * 34),
            ("q4_k", rows / 256 * 144),
        ] {
            let source = source(kind);
            values(&source, QUERY);
            assert_eq!(source.given(QUERY), Some(bytes), "{kind}");
            assert_eq!(source.given(KEY), None);
        }
        assert!("q9".parse::<WeightKind>().unwrap_err().contains("q8_0"));
    }
}
