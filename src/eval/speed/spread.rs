//! Medians and what surrounds them.

use serde::Serialize;

/// How values lie; all zero of none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    pub count: usize,
    pub median: f64,
    pub mean: f64,
    pub p10: f64,
    pub p90: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values = values.into_iter().collect::<Vec<_>>();
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else {
            return Self::default();
        };
        // Between two values in proportion, as numpy's percentile has it.
        let at = |share: f64| {
            let place = share * last as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            values[low] + (values[high] - values[low]) * place.fract()
        };
        Self {
            count: values.len(),
            median: at(0.5),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p10: at(0.1),
            p90: at(0.9),
            min: values[0],
            max: values[last],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_values() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0, 10.0]);
        assert_eq!((spread.count, spread.median, spread.mean), (5, 3.0, 4.0));
        assert_eq!((spread.min, spread.max), (1.0, 10.0));
        assert!((spread.p10 - 1.4).abs() < 1e-12 && (spread.p90 - 7.6).abs() < 1e-12);
        assert_eq!(Spread::of([2.0, 4.0]).median, 3.0);
        assert_eq!(Spread::of([]), Spread::default());
    }
}
