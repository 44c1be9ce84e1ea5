//! The decoder's weights as the kernels of a step take them.

use candle_core::{DType, Result, Tensor};

use super::Unfit;
use crate::model::decoder::{llama, Decoder, Norm};
use crate::model::linear::Linear;
use crate::model::weights::Matrix;

/// A norm: gain (`[hidden]` or `[head_dim]`, f32) and epsilon.
#[derive(Debug)]
pub struct Gain {
    pub gain: Tensor,
    pub eps: f32,
}

/// `[out, in]` in the decoder's type, and what is added, `[out]`, f32.
#[derive(Debug)]
pub struct Product {
    pub weight: Tensor,
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
    pub embedding: Tensor,
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
            embedding: dense(&decoder.embed_tokens)?,
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
    Ok(LayerWeights {
        input_norm: gain(&layer.input_layernorm)?,
        q: product(&attention.q_proj)?,
        k: product(&attention.k_proj)?,
        v: product(&attention.v_proj)?,
        head_norms,
        o: product(&attention.o_proj)?,
        post_norm: gain(&layer.post_attention_layernorm)?,
        gate: product(&mlp.gate_proj)?,
        up: product(&mlp.up_proj)?,
        down: product(&mlp.down_proj)?,
    })
}

fn gain(norm: &candle_nn::RmsNorm) -> Result<Gain> {
    Ok(Gain {
        gain: norm.weight().to_dtype(DType::F32)?.contiguous()?,
        eps: norm.eps() as f32,
    })
}

fn product(linear: &Linear) -> std::result::Result<Product, Unfit> {
    let weight = dense(linear.weight())?;
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

fn dense(matrix: &Matrix) -> std::result::Result<Tensor, Unfit> {
    match matrix {
        Matrix::Dense(weight) => Ok(weight.contiguous()?),
        Matrix::Quantised(weight) => Err(Unfit::Weights(weight.dtype())),
    }
}
