//! What is known of the slots of a layer: attention, likeness, novelty, the length of values.

/// For each kept set a list by slot, empty where the policy does not ask for it.
#[derive(Debug)]
pub struct Findings {
    pub scores: Vec<Vec<f32>>,
    pub standing: Vec<Vec<f32>>,
    pub novelty: Vec<Vec<f32>>,
    pub value_norms: Vec<Vec<f32>>,
}

impl Findings {
    /// Nothing, of so many kept sets.
    pub fn none(sets: usize) -> Self {
        let nothing = || vec![Vec::new(); sets];
        Self {
            scores: nothing(),
            standing: nothing(),
            novelty: nothing(),
            value_norms: nothing(),
        }
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let scores = self.scores.iter_mut().chain(&mut self.standing);
        scores.chain(&mut self.novelty).chain(&mut self.value_norms)
    }

    /// The mean over layers that have the same tokens in the same slots.
    pub fn mean(layers: Vec<Self>) -> Option<Self> {
        let share = 1.0 / layers.len() as f32;
        let mut layers = layers.into_iter();
        let mut mean = layers.next()?;
        for mut layer in layers {
            for (sum, list) in mean.lists().zip(layer.lists()) {
                for (sum, x) in sum.iter_mut().zip(list) {
                    *sum += *x;
                }
            }
        }
        for list in mean.lists() {
            list.iter_mut().for_each(|x| *x *= share);
        }
        Some(mean)
    }
}
