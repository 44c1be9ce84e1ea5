//! The filters that image processors name, and their weights.

/// A filter, of values that lie in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
    Lanczos,
}

impl Filter {
    /// Half width of the filter, input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        if x >= self.support() {
            return 0.0;
        }
        match self {
            Self::Bilinear => 1.0 - x,
            // Cubic convolution with a = -1/2 (Keys, 1981).
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }

    /// Of `from` values in a row that become `to` those that make the `i`-th: the first of them, and their weights, whose sum is 1.
    pub fn weights(self, from: usize, to: usize, i: usize) -> (usize, Vec<f64>) {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights = (start..end)
            .map(|x| self.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
            .collect::<Vec<_>>();
        let sum = weights.iter().sum::<f64>();
        let weights = weights.iter().map(|weight| weight / sum);
        (start, weights.collect())
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}
