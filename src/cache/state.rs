//! What decoder layers remember that keep no keys: a state of constant size, which every token changes.
//!
//! Eviction takes keys, and nothing of a state. No state is written in place: a new one takes the place of the one before, so that a mark
//! costs no copy, and the way back to it is exact.

use candle_core::{bail, DType, Device, Result, Tensor};

/// What the cache must know of the layers that keep a state in the place of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateShape {
    /// How many there are.
    pub layers: usize,
    /// The newest inputs of a causal convolution, which the next outputs need: how many, and of how many channels.
    pub inputs: [usize; 2],
    /// What linear attention remembers, a matrix for each head: heads, rows and columns; zeros where there is none. In f32, whatever the
    /// activations are.
    pub matrices: [usize; 3],
}

impl StateShape {
    /// That of decoders whose every layer keeps keys.
    pub const NONE: Self = Self {
        layers: 0,
        inputs: [0, 0],
        matrices: [0, 0, 0],
    };

    /// Memory of all states, bytes; `dtype` is the type of the activations.
    pub fn bytes(&self, dtype: DType) -> u64 {
        let [inputs, channels] = self.inputs.map(|size| size as u64);
        let inputs = inputs.saturating_mul(channels);
        let inputs = inputs.saturating_mul(dtype.size_in_bytes() as u64);
        let matrices = self.matrices.iter();
        let matrices = matrices.fold(1, |product: u64, &size| product.saturating_mul(size as u64));
        let matrices = matrices.saturating_mul(DType::F32.size_in_bytes() as u64);
        let state = inputs.saturating_add(matrices);
        state.saturating_mul(self.layers as u64)
    }
}

/// The state of one layer.
#[derive(Debug, Clone)]
pub struct LayerState {
    /// The newest inputs of the convolution, the oldest of them first, `[inputs, channels]`; zeros before the stream.
    inputs: Tensor,
    /// `[heads, rows, columns]`, f32; zeros before the stream.
    matrices: Option<Tensor>,
}

impl LayerState {
    /// Takes the next inputs of the convolution, `[tokens, channels]`. Returns them behind those before, `[inputs + tokens, channels]`: all
    /// that their outputs need.
    pub fn push(&mut self, x: &Tensor) -> Result<Tensor> {
        let (inputs, channels) = self.inputs.dims2()?;
        if x.dims2()?.1 != channels {
            bail!(
                "inputs of shape {:?}, expected {channels} channels",
                x.dims()
            );
        }
        let all = Tensor::cat(&[&self.inputs, x], 0)?;
        // A part of the chunk would keep all of it in memory.
        self.inputs = all.narrow(0, x.dim(0)?, inputs)?.force_contiguous()?;
        Ok(all)
    }

    /// The newest inputs of the convolution, `[inputs, channels]`.
    pub fn inputs(&self) -> &Tensor {
        &self.inputs
    }

    /// What linear attention remembers, `[heads, rows, columns]`, f32, if the layer is one of it.
    pub fn matrices(&self) -> Option<&Tensor> {
        self.matrices.as_ref()
    }

    /// Takes what it remembers behind the next tokens.
    pub fn replace_matrices(&mut self, matrices: Tensor) -> Result<()> {
        let before = self.matrices.as_ref().map(Tensor::shape);
        if before != Some(matrices.shape()) {
            bail!(
                "matrices of shape {:?}, expected {before:?}",
                matrices.shape()
            );
        }
        self.matrices = Some(matrices);
        Ok(())
    }
}

/// The states of all layers that have one, and what marks want back.
#[derive(Debug)]
pub struct States {
    /// Before the stream.
    empty: LayerState,
    layers: Vec<LayerState>,
    /// From the outermost to the innermost.
    marks: Vec<Vec<LayerState>>,
}

impl States {
    pub fn new(shape: &StateShape, dtype: DType, device: &Device) -> Result<Self> {
        // A GPU allocates nothing of no size.
        let [inputs, channels] = shape.inputs.map(|size| size.max(1));
        let empty = LayerState {
            inputs: Tensor::zeros((inputs, channels), dtype, device)?,
            matrices: match shape.matrices.contains(&0) {
                true => None,
                false => Some(Tensor::zeros(&shape.matrices, DType::F32, device)?),
            },
        };
        Ok(Self {
            layers: vec![empty.clone(); shape.layers],
            empty,
            marks: Vec::new(),
        })
    }

    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    pub fn layer(&mut self, layer: usize) -> &mut LayerState {
        &mut self.layers[layer]
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.fill(self.empty.clone());
    }

    /// Sets a mark, within those that are set.
    pub fn mark(&mut self) {
        self.marks.push(self.layers.clone());
    }

    /// Goes back to the innermost mark, which stays set.
    pub fn put_back(&mut self) {
        if let Some(mark) = self.marks.last() {
            self.layers.clone_from(mark);
        }
    }

    /// Forgets the innermost mark.
    pub fn let_go(&mut self) {
        self.marks.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: StateShape = StateShape {
        layers: 2,
        inputs: [2, 3],
        matrices: [4, 2, 5],
    };

    fn states() -> States {
        States::new(&SHAPE, DType::F32, &Device::Cpu).unwrap()
    }

    fn inputs(states: &States, layer: usize) -> Vec<Vec<f32>> {
        states.layers()[layer].inputs().to_vec2().unwrap()
    }

    /// Rows `from..from + count`, each of its own number.
    fn rows(from: usize, count: usize) -> Tensor {
        let numbers = (from..from + count).flat_map(|row| [row as f32; 3]);
        let numbers = numbers.collect::<Vec<_>>();
        Tensor::from_vec(numbers, (count, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_convolution_sees_the_same_inputs_whatever_the_chunks() {
        let (mut whole, mut pieces) = (states(), states());
        let all = whole.layer(0).push(&rows(1, 5)).unwrap();
        let all = all.to_vec2::<f32>().unwrap();
        assert_eq!(all[..2], [[0.0; 3]; 2]);
        let mut at = 0;
        for count in [1, 3, 1] {
            let seen = pieces.layer(0).push(&rows(1 + at, count)).unwrap();
            assert_eq!(seen.to_vec2::<f32>().unwrap(), all[at..at + 2 + count]);
            at += count;
        }
        assert_eq!(inputs(&pieces, 0), inputs(&whole, 0));
        assert_eq!(inputs(&pieces, 0), [[4.0; 3], [5.0; 3]]);
        // The other layer has seen nothing.
        assert_eq!(inputs(&pieces, 1), [[0.0; 3]; 2]);
    }

    #[test]
    fn marks_within_marks_are_gone_back_to_one_by_one() {
        let mut states = states();
        let push = |states: &mut States, from| {
            states.layer(1).push(&rows(from, 3)).unwrap();
        };
        push(&mut states, 1);
        let outer = inputs(&states, 1);
        states.mark();
        push(&mut states, 10);
        let inner = inputs(&states, 1);
        states.mark();
        push(&mut states, 20);
        states.put_back();
        assert_eq!(inputs(&states, 1), inner);
        push(&mut states, 30);
        states.put_back();
        assert_eq!(inputs(&states, 1), inner);
        states.let_go();
        states.put_back();
        assert_eq!(inputs(&states, 1), outer);
        states.let_go();
        states.put_back();
        assert_eq!(inputs(&states, 1), outer);
        states.clear();
        assert_eq!(inputs(&states, 1), [[0.0; 3]; 2]);
    }

    #[test]
    fn matrices_are_gone_back_to_as_inputs_are_and_keep_their_shape() {
        let mut states = states();
        let sum = |states: &States| {
            let matrices = states.layers()[0].matrices().unwrap();
            matrices.sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let ones = Tensor::ones(&SHAPE.matrices, DType::F32, &Device::Cpu).unwrap();
        states.mark();
        states.layer(0).replace_matrices(ones).unwrap();
        assert_eq!(sum(&states), 40.0);
        states.put_back();
        assert_eq!(sum(&states), 0.0);
        let other = Tensor::ones((4, 5, 2), DType::F32, &Device::Cpu).unwrap();
        let error = states.layer(0).replace_matrices(other).unwrap_err();
        assert!(error.to_string().contains("[4, 5, 2]"), "{error}");
    }

    #[test]
    fn inputs_of_other_channels_are_refused() {
        let x = Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap();
        let error = states().layer(0).push(&x).unwrap_err();
        assert!(error.to_string().contains("expected 3 channels"), "{error}");
    }

    #[test]
    fn bytes_are_those_of_the_tensors() {
        let states = states();
        let sum =
            |count: fn(&LayerState) -> usize| states.layers().iter().map(count).sum::<usize>();
        let inputs = sum(|layer| layer.inputs().elem_count()) as u64;
        let matrices = sum(|layer| layer.matrices().unwrap().elem_count()) as u64;
        assert_eq!(SHAPE.bytes(DType::F32), (inputs + matrices) * 4);
        assert_eq!(SHAPE.bytes(DType::BF16), inputs * 2 + matrices * 4);
    }
}
