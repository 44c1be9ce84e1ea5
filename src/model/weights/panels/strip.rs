//! Some rows of an input times some panels, in the instructions that the processor has.

use std::sync::OnceLock;

use super::input::{Group, Rounded};
use super::lanes::{Lanes, Portable, ROWS};
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::record::Record;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Vnni};

/// Instructions that the products are there in. They give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Whatever the program is compiled for.
    Portable,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Instructions {
    /// Those that this processor has, the fastest last.
    pub fn available() -> Vec<Self> {
        let known = [
            (Self::Portable, true),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Avx2::is_available()),
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, Vnni::is_available()),
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, Neon::is_available()),
        ];
        let there = known.iter().filter(|(_, is_available)| *is_available);
        there.map(|(instructions, _)| *instructions).collect()
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        let fastest = || Self::available().pop().unwrap_or(Self::Portable);
        *BEST.get_or_init(fastest)
    }
}

/// A part of a product.
pub struct Strip<'a, R> {
    pub x: &'a Rounded,
    /// Which rows of `x`.
    pub first: usize,
    /// The records of each panel one after the other.
    pub records: &'a [R],
    /// Records of a panel.
    pub panel: usize,
    /// For each row of `x` from `first` on, what its product with these panels comes to; the last panel may be cut.
    pub outs: Vec<&'a mut [f32]>,
}

impl<R: Record> Strip<'_, R> {
    pub fn run(self, instructions: Instructions) {
        match instructions {
            Instructions::Portable => self.with(Portable),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                if let Some(lanes) = Avx2::try_new() {
                    lanes.vectorize(Dispatched { strip: self, lanes });
                }
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni => {
                if let Some(lanes) = Vnni::try_new() {
                    lanes.vectorize(Dispatched { strip: self, lanes });
                }
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => {
                if let Some(lanes) = Neon::try_new() {
                    lanes.vectorize(Dispatched { strip: self, lanes });
                }
            }
        }
    }

    #[inline(always)]
    fn with<L: Lanes>(mut self, lanes: L) {
        let panels = self.records.chunks_exact(self.panel);
        for (at, panel) in panels.enumerate() {
            let mut row = 0;
            while row < self.outs.len() {
                let left = (self.outs.len() - row).min(L::TILE);
                row += match left {
                    8.. => self.tile::<L, 8>(lanes, panel, row, at),
                    4.. => self.tile::<L, 4>(lanes, panel, row, at),
                    2.. => self.tile::<L, 2>(lanes, panel, row, at),
                    _ => self.tile::<L, 1>(lanes, panel, row, at),
                };
            }
        }
    }

    /// `T` rows times one panel; returns `T`.
    #[inline(always)]
    fn tile<L: Lanes, const T: usize>(
        &mut self,
        lanes: L,
        panel: &[R],
        row: usize,
        at: usize,
    ) -> usize {
        let mut x: [&[Group]; T] = [&[]; T];
        for (t, x) in x.iter_mut().enumerate() {
            *x = &self.x.row(self.first + row + t)[..panel.len() * R::GROUPS];
        }
        let mut sums = [lanes.splat_float(0.0); T];
        for (i, record) in panel.iter().enumerate() {
            let head = record.head(lanes);
            for group in 0..R::GROUPS {
                let weights = record.unpack(lanes, head, group);
                for t in 0..T {
                    let x = &x[t][i * R::GROUPS + group];
                    sums[t] = R::add(lanes, &weights, x, sums[t]);
                }
            }
        }
        for t in 0..T {
            let out = &mut self.outs[row + t][at * ROWS..];
            let sums = lanes.store(sums[t]);
            match out.first_chunk_mut::<ROWS>() {
                Some(out) => *out = sums,
                None => out.copy_from_slice(&sums[..out.len()]),
            }
        }
        T
    }
}

/// A strip with what proves that its instructions are there.
struct Dispatched<'a, R, L> {
    strip: Strip<'a, R>,
    lanes: L,
}

impl<R: Record, L: Lanes> pulp::NullaryFnOnce for Dispatched<'_, R, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.strip.with(self.lanes);
    }
}
