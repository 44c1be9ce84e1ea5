//! Resizing of RGB bytes as Pillow does it, which the published image processors rely on.
//!
//! Separable convolution, across first and then down, in fixed point with a rounding to whole grey levels after each pass.
//! Pillow's results to the bit where it runs the passes in this order (Pillow 13 swaps them for some sizes), else within one grey
//! level. The byte resizers of the Rust libraries that were tried are up to three grey levels off.

/// The filters that image processors name.
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
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Fractional bits of a weight: what 32-bit sums of bytes leave room for.
const BITS: u32 = 22;

/// Which input pixels make an output pixel, and with what weights.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weights = (start..end)
                .map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
                .collect::<Vec<_>>();
            // Multiplied by reciprocals, as Pillow does: the last bit decides some roundings.
            let norm = 1.0 / weights.iter().sum::<f64>();
            Taps {
                start,
                weights: weights
                    .iter()
                    .map(|w| (w * norm * f64::from(1 << BITS)).round() as i32)
                    .collect(),
            }
        })
        .collect()
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Resizes `rgb` (rows of `width` pixels of three bytes) to `to_width` x `to_height`.
pub fn resize(
    rgb: &[u8],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    let across = if width == to_width {
        rgb.to_vec()
    } else {
        resize_rows(rgb, width, to_width, filter)
    };
    if height == to_height {
        across
    } else {
        resize_columns(&across, to_width, height, to_height, filter)
    }
}

fn resize_rows(rgb: &[u8], width: usize, to: usize, filter: Filter) -> Vec<u8> {
    let taps = taps(width, to, filter);
    let mut out = Vec::with_capacity(rgb.len() / width * to);
    for row in rgb.chunks_exact(width * 3) {
        for tap in &taps {
            let mut sums = [1 << (BITS - 1); 3];
            for (pixel, weight) in row[tap.start * 3..].chunks_exact(3).zip(&tap.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

fn resize_columns(rgb: &[u8], width: usize, height: usize, to: usize, filter: Filter) -> Vec<u8> {
    let row = width * 3;
    let mut out = Vec::with_capacity(row * to);
    let mut sums = vec![0i32; row];
    for tap in taps(height, to, filter) {
        sums.fill(1 << (BITS - 1));
        for (line, weight) in rgb[tap.start * row..].chunks_exact(row).zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_at_any_size() {
        let flat = [10u8, 200, 77].repeat(20 * 14);
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for size in [(5, 3), (40, 28), (40, 5), (20, 14)] {
                let out = resize(&flat, (20, 14), size, filter);
                assert_eq!(out, [10u8, 200, 77].repeat(size.0 * size.1));
            }
        }
    }

    #[test]
    fn halving_with_a_triangle_weighs_four_pixels() {
        let row: Vec<u8> = [0u8, 0, 80, 0, 0, 0, 0, 0]
            .iter()
            .flat_map(|&v| [v; 3])
            .collect();
        // The second output pixel is centred between inputs 2 and 3; its triangle of width 4 weighs 1, 3, 3, 1.
        let out = resize(&row, (8, 1), (4, 1), Filter::Bilinear);
        assert_eq!([out[0], out[3], out[6]], [11, 30, 0]);
    }
}
