//! The decoder's weights as the kernels of a step take them.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::Unfit;
use crate::gpu::{Element, Launch};
use crate::model::decoder::{llama, Decoder, Norm};
use crate::model::linear::Linear;
use crate::model::weights::{Matrix, Planes};

/// A matrix `[out, in]`.
#[derive(Debug)]
pub enum Weight {
    /// In the decoder's type.
    Dense(Tensor),
    Planes(Arc<Planes>),
}

impl Weight {
    fn of(matrix: &Matrix) -> std::result::Result<Self, Unfit> {
        match matrix {
            Matrix::Dense(weight) => Ok(Self::Dense(weight.contiguous()?)),
            Matrix::Planes(planes) => Ok(Self::Planes(planes.clone())),
            Matrix::Quantised(blocks) => Err(Unfit::Weights(blocks.dtype())),
            Matrix::Panels(panels) => Err(Unfit::Weights(panels.blocks())),
        }
    }

    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Planes(planes) => Ok(planes.dims2()),
        }
    }

    /// What the instances of kernels for such a matrix are named with.
    pub fn suffix(&self) -> Result<&'static str> {
        match self {
            Self::Dense(weight) => Ok(Element::of(weight.dtype())?.suffix),
            Self::Planes(_) => Ok("planes"),
        }
    }

    /// What a kernel is told of it.
    pub fn argue(&self, launch: Launch) -> Result<Launch> {
        match self {
            Self::Dense(weight) => launch.tensor(weight),
            Self::Planes(planes) => planes.argue(launch),
        }
    }

    /// Shared memory that a product with it takes, bytes.
    pub fn shared_bytes(&self, width: usize) -> usize {
        match self {
            Self::Dense(_) => width * size_of::<f32>(),
            Self::Planes(_) => Planes::shared_bytes(width),
        }
    }
}

/// A norm: gain (`[hidden]` or `[head_dim]`, f32) and epsilon.
#[derive(Debug)]
pub struct Gain {
    pub gain: Tensor,
    pub eps: f32,
}

/// `[out, in]`, and what is added, `[out]`, f32.
#[derive(Debug)]
pub struct Product {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    pub rows: usize,
    pub width: usize,
}

#[derive(Debug)]
pub struct LayerWeights {
    pub input_norm: Gain,
    pub q: Product,
    pub k: Product,
    pub v: Product,
    /// Of queries and of keys.
    pub head_norms: Option<[Gain; 2]>,
    pub o: Product,
    pub post_norm: Gain,
    pub gate: Product,
    pub up: Product,
    pub down: Product,
}

/// All weights that a step reads. Matrices are the decoder's own; gains and biases are copies as f32.
#[derive(Debug)]
pub struct StepWeights {
    /// `[vocab, hidden]`
    pub embedding: Weight,
    pub layers: Vec<LayerWeights>,
    pub norm: Gain,
    pub head: Product,
}

impl StepWeights {
    pub fn of(decoder: &Decoder) -> std::result::Result<Self, Unfit> {
        let Norm::Rms(norm) = &decoder.norm else {
            return Err(Unfit::Layers);
        };
        let layers = decoder.layers.iter();
        let layers = layers.map(|layer| layer.as_llama().ok_or(Unfit::Layers).and_then(layer_of));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let head = product(&decoder.lm_head)?;
        if head.bias.is_some() {
            return Err(Unfit::Layers);
        }
        Ok(Self {
            embedding: Weight::of(&decoder.embed_tokens)?,
            layers,
            norm: gain(norm)?,
            head,
        })
    }
}

fn layer_of(layer: &llama::Layer) -> std::result::Result<LayerWeights, Unfit> {
    let (attention, mlp) = (&layer.self_attn, &layer.mlp);
    let head_norms = match &attention.norms {
        Some([q, k]) => Some([gain(q)?, gain(k)?]),
        None => None,
    };
    let [q, k, v] = together([&attention.q_proj, &attention.k_proj, &attention.v_proj])?;
    let [gate, up] = together([&mlp.gate_proj, &mlp.up_proj])?;
    Ok(LayerWeights {
        input_norm: gain(&layer.input_layernorm)?,
        q,
        k,
        v,
        head_norms,
        o: product(&attention.o_proj)?,
        post_norm: gain(&layer.post_attention_layernorm)?,
        gate,
        up,
        down: product(&mlp.down_proj)?,
    })
}

fn gain(norm: &candle_nn::RmsNorm) -> Result<Gain> {
    Ok(Gain {
        gain: norm.weight().to_dtype(DType::F32)?.contiguous()?,
        eps: norm.eps() as f32,
    })
}

/// Products that one kernel computes: all of floats, or all in planes, of whatever blocks.
fn together<const N: usize>(layers: [&Linear; N]) -> std::result::Result<[Product; N], Unfit> {
    let products = layers.into_iter().map(product);
    let products = products.collect::<std::result::Result<Vec<_>, _>>()?;
    let mut suffixes = products.iter().map(|product| product.weight.suffix());
    let first = suffixes.next().transpose()?;
    for suffix in suffixes {
        if Some(suffix?) != first {
            return Err(Unfit::Mixed);
        }
    }
    let products = <[Product; N]>::try_from(products);
    products.map_err(|_| Unfit::Layers)
}

fn product(linear: &Linear) -> std::result::Result<Product, Unfit> {
    let weight = Weight::of(linear.weight())?;
    let (rows, width) = weight.dims2()?;
    let bias = linear.bias();
    let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous());
    Ok(Product {
        weight,
        bias: bias.transpose()?,
        rows,
        width,
    })
}
