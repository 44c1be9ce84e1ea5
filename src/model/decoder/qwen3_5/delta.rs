//! The gated delta rule (Gated DeltaNet, arXiv 2412.06464): for each head a matrix from keys to values, of which a share is forgotten with
//! every token, and into which its value is written in the place of what the matrix has for its key.
//!
//! On the CPU they go through it one by one ([`in_place`]). On a GPU, where every operation costs, several at once (arXiv 2406.06484): within
//! a chunk what a token writes depends on those before it by a triangular system, and the matrix changes once for the chunk.

use candle_core::{DType, Result, Tensor};

use super::in_place;

/// Tokens that go through at once: of more the triangular system takes longer than it saves.
const CHUNK: usize = 16;

/// Tokens of one stream, all f32.
#[derive(Debug)]
pub struct Inputs {
    /// Of length 1 times the scale, `[heads, tokens, key]`
    pub queries: Tensor,
    /// Of length 1, `[heads, tokens, key]`
    pub keys: Tensor,
    /// `[heads, tokens, value]`
    pub values: Tensor,
    /// How much of a value is written, `[heads, tokens, 1]`.
    pub rates: Tensor,
    /// The logarithm of what stays of the matrix, at most 0, `[heads, tokens, 1]`.
    pub decays: Tensor,
}

impl Inputs {
    fn narrow(&self, at: usize, count: usize) -> Result<Self> {
        let piece = |x: &Tensor| x.narrow(1, at, count)?.contiguous();
        Ok(Self {
            queries: piece(&self.queries)?,
            keys: piece(&self.keys)?,
            values: piece(&self.values)?,
            rates: piece(&self.rates)?,
            decays: piece(&self.decays)?,
        })
    }

    /// What the queries read, `[heads, tokens, value]`, and the matrices behind the tokens; `matrices` are those before, `[heads, key, value]`.
    pub fn read(&self, matrices: &Tensor) -> Result<(Tensor, Tensor)> {
        match matrices.device().is_cpu() {
            true => in_place::read(self, matrices),
            false => self.read_chunks(matrices),
        }
    }

    fn read_chunks(&self, matrices: &Tensor) -> Result<(Tensor, Tensor)> {
        let tokens = self.keys.dim(1)?;
        let mut matrices = matrices.clone();
        let mut read = Vec::with_capacity(tokens.div_ceil(CHUNK));
        for at in (0..tokens).step_by(CHUNK) {
            let chunk = self.narrow(at, CHUNK.min(tokens - at))?;
            let (out, next) = chunk.read_chunk(&matrices)?;
            read.push(out);
            matrices = next;
        }
        Ok((Tensor::cat(&read, 1)?, matrices))
    }

    fn read_chunk(&self, matrices: &Tensor) -> Result<(Tensor, Tensor)> {
        let Self {
            queries,
            keys,
            values,
            rates,
            decays,
        } = self;
        let tokens = keys.dim(1)?;
        let lower = Tensor::tril2(tokens, DType::F32, keys.device())?;
        let below = (&lower - Tensor::eye(tokens, DType::F32, keys.device())?)?;
        // What stays of the matrix from the beginning of the chunk, and between any two of its tokens.
        let heads = keys.dim(0)?;
        let since = lower.broadcast_left(heads)?.contiguous()?.matmul(decays)?;
        let between = since.broadcast_sub(&since.t()?)?;
        // Later tokens do not count, and what would be of them may not be a number.
        let between = between.minimum(&between.zeros_like()?)?.exp()?;
        let kept = since.exp()?;
        let keys_t = keys.t()?.contiguous()?;

        // 1. what each token writes, if the matrix were empty, and what of the matrix it writes over
        let written = keys.broadcast_mul(rates)?;
        let system = written
            .matmul(&keys_t)?
            .mul(&between)?
            .broadcast_mul(&below)?;
        let width = values.dim(2)?;
        let wanted = [values.broadcast_mul(rates)?, written.broadcast_mul(&kept)?];
        let solved = solve(&system, &Tensor::cat(&wanted, 2)?)?;
        let own = solved.narrow(2, 0, width)?.contiguous()?;
        let over = solved.narrow(2, width, keys.dim(2)?)?.contiguous()?;
        let new = (own - over.matmul(matrices)?)?;

        // 2. what queries read: of the matrix, and of what the chunk has written until then
        let before = queries.broadcast_mul(&kept)?.matmul(matrices)?;
        let within = queries
            .matmul(&keys_t)?
            .mul(&between)?
            .broadcast_mul(&lower)?;
        let read = (before + within.matmul(&new)?)?;

        // 3. the matrix behind the chunk
        let last = since.narrow(1, tokens - 1, 1)?;
        let left = last.broadcast_sub(&since)?.exp()?;
        let weighted = keys.broadcast_mul(&left)?.t()?.contiguous()?;
        let matrices = (matrices.broadcast_mul(&last.exp()?)? + weighted.matmul(&new)?)?;
        Ok((read, matrices))
    }
}

/// `x` with `x + system x = wanted`, where `system` (`[heads, tokens, tokens]`) has numbers below the diagonal only; `wanted` is
/// `[heads, tokens, width]`.
fn solve(system: &Tensor, wanted: &Tensor) -> Result<Tensor> {
    let tokens = wanted.dim(1)?;
    let mut solved = wanted.narrow(1, 0, 1)?.contiguous()?;
    for i in 1..tokens {
        let row = system.narrow(1, i, 1)?.narrow(2, 0, i)?.contiguous()?;
        let next = (wanted.narrow(1, i, 1)? - row.matmul(&solved)?)?;
        solved = Tensor::cat(&[&solved, &next], 1)?;
    }
    Ok(solved)
}

/// Heads of `x` (`[tokens, heads, width]`) at length 1, f32, `[heads, tokens, width]`, each `times` times in a row.
pub fn at_length_one(x: &Tensor, times: usize) -> Result<Tensor> {
    const EPSILON: f64 = 1e-6;
    let x = x.to_dtype(DType::F32)?;
    let length = (x.sqr()?.sum_keepdim(2)? + EPSILON)?.sqrt()?;
    let (tokens, heads, width) = x.dims3()?;
    x.broadcast_div(&length)?
        .unsqueeze(2)?
        .broadcast_as((tokens, heads, times, width))?
        .reshape((tokens, heads * times, width))?
        .transpose(0, 1)?
        .contiguous()
}

/// `ln(1 + exp(x))`
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(shape: (usize, usize, usize), seed: u32, scale: f32, shift: f32) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * scale + shift
        };
        let values = (0..shape.0 * shape.1 * shape.2).map(|_| next());
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// Of 3 heads, keys of 8 numbers and values of so many.
    fn inputs(tokens: usize, width: usize, decay: f32) -> Inputs {
        let unit = |seed| {
            let x = numbers((3, tokens, 8), seed, 2.0, 0.1);
            x.broadcast_div(&x.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap())
                .unwrap()
        };
        Inputs {
            queries: unit(1),
            keys: unit(2),
            values: numbers((3, tokens, width), 3, 4.0, 0.0),
            rates: numbers((3, tokens, 1), 4, 0.9, 0.5),
            decays: numbers((3, tokens, 1), 5, decay, -decay / 2.0),
        }
    }

    /// Token by token, as the rule is written down.
    fn one_by_one(inputs: &Inputs, matrices: &Tensor) -> (Tensor, Tensor) {
        let mut matrices = matrices.clone();
        let mut read = Vec::new();
        for at in 0..inputs.keys.dim(1).unwrap() {
            let token = inputs.narrow(at, 1).unwrap();
            let column = token.keys.t().unwrap().contiguous().unwrap();
            matrices = matrices
                .broadcast_mul(&token.decays.exp().unwrap())
                .unwrap();
            let had = token.keys.matmul(&matrices).unwrap();
            let new = (&token.values - had).unwrap();
            let new = new.broadcast_mul(&token.rates).unwrap();
            matrices = (matrices + column.matmul(&new).unwrap()).unwrap();
            read.push(token.queries.matmul(&matrices).unwrap());
        }
        (Tensor::cat(&read, 1).unwrap(), matrices)
    }

    fn off(a: &Tensor, b: &Tensor) -> f32 {
        let off = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        off.to_scalar().unwrap()
    }

    #[test]
    fn both_ways_compute_what_the_rule_does_token_by_token() {
        for tokens in [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            for (width, decay) in [(5, 0.0), (32, 0.5), (70, 30.0)] {
                let inputs = inputs(tokens, width, decay);
                let before = numbers((3, 8, width), 9, 2.0, 0.0);
                let (wanted, wanted_matrices) = one_by_one(&inputs, &before);
                for way in [in_place::read, Inputs::read_chunks] {
                    let (read, matrices) = way(&inputs, &before).unwrap();
                    let differ = off(&read, &wanted).max(off(&matrices, &wanted_matrices));
                    let about = format!("{tokens} tokens, {width} columns, decay {decay}");
                    assert!(differ < 2e-5, "{about}: {differ}");
                }
            }
        }
    }

    #[test]
    fn on_the_cpu_nothing_depends_on_how_tokens_are_parted() {
        let (inputs, before) = (inputs(40, 33, 0.5), numbers((3, 8, 33), 9, 2.0, 0.0));
        let (whole, behind) = inputs.read(&before).unwrap();
        let (mut parts, mut matrices, mut at) = (Vec::new(), before, 0);
        for count in [1, 7, 30, 2] {
            let part = inputs.narrow(at, count).unwrap();
            let (read, next) = part.read(&matrices).unwrap();
            parts.push(read);
            (matrices, at) = (next, at + count);
        }
        let parts = Tensor::cat(&parts, 1).unwrap();
        assert_eq!((off(&parts, &whole), off(&matrices, &behind)), (0.0, 0.0));
    }

    #[test]
    fn matrices_of_another_shape_are_refused() {
        let error = inputs(2, 5, 0.5).read(&numbers((3, 5, 8), 9, 2.0, 0.0));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("3 of 8 x 5"), "{error}");
    }

    #[test]
    fn softplus_is_a_number_at_both_ends() {
        let x = Tensor::new(&[-200f32, -1.0, 0.0, 1.0, 200.0], &Device::Cpu).unwrap();
        let y = softplus(&x).unwrap().to_vec1::<f32>().unwrap();
        let wanted = [0.0, 0.313_261_7, 0.693_147_2, 1.313_261_7, 200.0];
        for (y, wanted) in y.iter().zip(wanted) {
            assert!((y - wanted).abs() < 1e-6, "{y} instead of {wanted}");
        }
    }
}
