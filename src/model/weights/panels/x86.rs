//! [`Lanes`] in the instructions of x86: AVX2, and AVX-512 with its products of bytes (VNNI).
//!
//! pulp has the instructions as safe methods of what proves that the processor has them. Two are missing there and called as the standard
//! library has them: the products of bytes, and the conversion of f16 in halves of a register.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, __m512i, _mm256_cvtph_ps, _mm512_dpbusd_epi32,
};

use pulp::cast;

use super::lanes::{Lanes, ROWS};

pulp::simd_type! {
    /// AVX2 and the conversion of f16, which every processor with AVX2 has.
    pub struct Avx2 {
        pub sse2: "sse2",
        pub avx: "avx",
        pub avx2: "avx2",
        pub f16c: "f16c",
    }

    /// AVX-512 with products of bytes.
    pub struct Vnni {
        pub sse2: "sse2",
        pub avx: "avx",
        pub avx2: "avx2",
        pub avx512f: "avx512f",
        pub avx512bw: "avx512bw",
        pub avx512vl: "avx512vl",
        pub avx512vnni: "avx512vnni",
    }
}

/// The four bytes of `x` at `4 i` as one number.
#[inline(always)]
fn four(x: &[i8; 16], i: usize) -> i32 {
    cast(x.as_chunks::<4>().0[i])
}

impl Lanes for Vnni {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const BIAS: i32 = 128;
    const TILE: usize = 8;

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> __m512i {
        cast(*from)
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: __m512i) -> __m512i {
        let mask = self.avx512f._mm512_set1_epi8(15);
        self.avx512f._mm512_and_si512(bytes, mask)
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: __m512i) -> __m512i {
        self.low_nibbles(self.avx512bw._mm512_srli_epi16::<4>(bytes))
    }

    #[inline(always)]
    fn with_upper(self, low: __m512i, upper: __m512i, from: usize, mask: u8) -> __m512i {
        // What comes from the byte beside is not in the mask.
        let count = |by: usize| self.sse2._mm_cvtsi32_si128(by as i32);
        let moved = match from {
            0..4 => self.avx512bw._mm512_sll_epi16(upper, count(4 - from)),
            _ => self.avx512bw._mm512_srl_epi16(upper, count(from - 4)),
        };
        let mask = self.avx512f._mm512_set1_epi8((mask << 4) as i8);
        let kept = self.avx512f._mm512_and_si512(moved, mask);
        self.avx512f._mm512_or_si512(low, kept)
    }

    #[inline(always)]
    fn dot_5(self, sums: __m512i, weights: [__m512i; 4], x: &[i8; 16]) -> __m512i {
        let mut sums = sums;
        for (i, weights) in weights.into_iter().enumerate() {
            let x = self.avx512f._mm512_set1_epi32(four(x, i));
            // SAFETY: `self` proves that the processor has the instruction.
            sums = unsafe { _mm512_dpbusd_epi32(sums, weights, x) };
        }
        sums
    }

    #[inline(always)]
    fn dot_6(self, sums: __m512i, weights: [__m512i; 4], x: &[i8; 16]) -> __m512i {
        self.dot_5(sums, weights, x)
    }

    #[inline(always)]
    fn dot_8(self, sums: __m512i, weights: [__m512i; 4], x: &[i8; 16]) -> __m512i {
        self.dot_5(sums, weights, x)
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        self.avx512f._mm512_set1_epi32(x)
    }

    #[inline(always)]
    fn signed(self, from: &[i8; ROWS]) -> __m512i {
        self.avx512f._mm512_cvtepi8_epi32(cast(*from))
    }

    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_add_epi32(a, b)
    }

    #[inline(always)]
    fn mul_ints(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_mullo_epi32(a, b)
    }

    #[inline(always)]
    fn floats(self, from: __m512i) -> __m512 {
        self.avx512f._mm512_cvtepi32_ps(from)
    }

    #[inline(always)]
    fn halves(self, from: &[u16; ROWS]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(cast(*from))
    }

    #[inline(always)]
    fn unsigned(self, from: &[u8; ROWS]) -> __m512 {
        self.floats(self.avx512f._mm512_cvtepu8_epi32(cast(*from)))
    }

    #[inline(always)]
    fn splat_float(self, x: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(x)
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_add_ps(a, b)
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }

    #[inline(always)]
    fn store(self, floats: __m512) -> [f32; ROWS] {
        cast(floats)
    }
}

/// Both halves of a register of 16 lanes.
type Two<T> = [T; 2];

impl Avx2 {
    /// `weights[i] * x`, neighbours added, as i16: at most 2 * 127 times the largest weight.
    #[inline(always)]
    fn pairs(self, weights: Two<__m256i>, x: &[i8; 16], i: usize) -> Two<__m256i> {
        let x = self.avx._mm256_set1_epi32(four(x, i));
        [
            self.avx2._mm256_maddubs_epi16(weights[0], x),
            self.avx2._mm256_maddubs_epi16(weights[1], x),
        ]
    }

    /// `sums` plus the neighbours of `pairs`.
    #[inline(always)]
    fn add_pairs(self, sums: Two<__m256i>, pairs: Two<__m256i>) -> Two<__m256i> {
        let ones = self.avx._mm256_set1_epi16(1);
        let mut sums = sums;
        for half in 0..2 {
            let fours = self.avx2._mm256_madd_epi16(pairs[half], ones);
            sums[half] = self.avx2._mm256_add_epi32(sums[half], fours);
        }
        sums
    }

    #[inline(always)]
    fn add_i16(self, a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        [
            self.avx2._mm256_add_epi16(a[0], b[0]),
            self.avx2._mm256_add_epi16(a[1], b[1]),
        ]
    }
}

impl Lanes for Avx2 {
    type Bytes = Two<__m256i>;
    type Ints = Two<__m256i>;
    type Floats = Two<__m256>;

    const BIAS: i32 = 0;
    const TILE: usize = 2;

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Two<__m256i> {
        cast(*from)
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Two<__m256i>) -> Two<__m256i> {
        let mask = self.avx._mm256_set1_epi8(15);
        [
            self.avx2._mm256_and_si256(bytes[0], mask),
            self.avx2._mm256_and_si256(bytes[1], mask),
        ]
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Two<__m256i>) -> Two<__m256i> {
        self.low_nibbles([
            self.avx2._mm256_srli_epi16::<4>(bytes[0]),
            self.avx2._mm256_srli_epi16::<4>(bytes[1]),
        ])
    }

    #[inline(always)]
    fn with_upper(
        self,
        low: Two<__m256i>,
        upper: Two<__m256i>,
        from: usize,
        mask: u8,
    ) -> Two<__m256i> {
        let mask = self.avx._mm256_set1_epi8((mask << 4) as i8);
        let mut out = low;
        for half in 0..2 {
            // What comes from the byte beside is not in the mask.
            let moved = match from {
                0..4 => {
                    let count = self.sse2._mm_cvtsi32_si128(4 - from as i32);
                    self.avx2._mm256_sll_epi16(upper[half], count)
                }
                _ => {
                    let count = self.sse2._mm_cvtsi32_si128(from as i32 - 4);
                    self.avx2._mm256_srl_epi16(upper[half], count)
                }
            };
            let kept = self.avx2._mm256_and_si256(moved, mask);
            out[half] = self.avx2._mm256_or_si256(low[half], kept);
        }
        out
    }

    #[inline(always)]
    fn dot_5(self, sums: Two<__m256i>, weights: [Two<__m256i>; 4], x: &[i8; 16]) -> Two<__m256i> {
        // 4 * 2 * 127 * 31 is within i16.
        let mut pairs = self.pairs(weights[0], x, 0);
        for (i, weights) in weights.into_iter().enumerate().skip(1) {
            pairs = self.add_i16(pairs, self.pairs(weights, x, i));
        }
        self.add_pairs(sums, pairs)
    }

    #[inline(always)]
    fn dot_6(self, sums: Two<__m256i>, weights: [Two<__m256i>; 4], x: &[i8; 16]) -> Two<__m256i> {
        let mut sums = sums;
        for i in [0, 2] {
            // 2 * 2 * 127 * 63 is within i16.
            let (a, b) = (
                self.pairs(weights[i], x, i),
                self.pairs(weights[i + 1], x, i + 1),
            );
            sums = self.add_pairs(sums, self.add_i16(a, b));
        }
        sums
    }

    #[inline(always)]
    fn dot_8(self, sums: Two<__m256i>, weights: [Two<__m256i>; 4], x: &[i8; 16]) -> Two<__m256i> {
        let sign = self.avx._mm256_set1_epi8(i8::MIN);
        let mut sums = sums;
        for (i, weights) in weights.into_iter().enumerate() {
            let x = self.avx._mm256_set1_epi32(four(x, i));
            let mut pairs = weights;
            for pairs in &mut pairs {
                // The magnitude times x with the weight's sign: 2 * 127 * 128 is within i16.
                let weight = self.avx2._mm256_xor_si256(*pairs, sign);
                let magnitude = self.avx2._mm256_abs_epi8(weight);
                let x = self.avx2._mm256_sign_epi8(x, weight);
                *pairs = self.avx2._mm256_maddubs_epi16(magnitude, x);
            }
            sums = self.add_pairs(sums, pairs);
        }
        sums
    }

    #[inline(always)]
    fn splat(self, x: i32) -> Two<__m256i> {
        [self.avx._mm256_set1_epi32(x); 2]
    }

    #[inline(always)]
    fn signed(self, from: &[i8; ROWS]) -> Two<__m256i> {
        let [low, high]: Two<i64> = cast(*from);
        let wide = |half: i64| -> __m128i { cast([half, 0]) };
        [
            self.avx2._mm256_cvtepi8_epi32(wide(low)),
            self.avx2._mm256_cvtepi8_epi32(wide(high)),
        ]
    }

    #[inline(always)]
    fn add_ints(self, a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        [
            self.avx2._mm256_add_epi32(a[0], b[0]),
            self.avx2._mm256_add_epi32(a[1], b[1]),
        ]
    }

    #[inline(always)]
    fn mul_ints(self, a: Two<__m256i>, b: Two<__m256i>) -> Two<__m256i> {
        [
            self.avx2._mm256_mullo_epi32(a[0], b[0]),
            self.avx2._mm256_mullo_epi32(a[1], b[1]),
        ]
    }

    #[inline(always)]
    fn floats(self, from: Two<__m256i>) -> Two<__m256> {
        [
            self.avx._mm256_cvtepi32_ps(from[0]),
            self.avx._mm256_cvtepi32_ps(from[1]),
        ]
    }

    #[inline(always)]
    fn halves(self, from: &[u16; ROWS]) -> Two<__m256> {
        let [low, high]: Two<__m128i> = cast(*from);
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)] }
    }

    #[inline(always)]
    fn unsigned(self, from: &[u8; ROWS]) -> Two<__m256> {
        let [low, high]: Two<i64> = cast(*from);
        let wide = |half: i64| -> __m128i { cast([half, 0]) };
        self.floats([
            self.avx2._mm256_cvtepu8_epi32(wide(low)),
            self.avx2._mm256_cvtepu8_epi32(wide(high)),
        ])
    }

    #[inline(always)]
    fn splat_float(self, x: f32) -> Two<__m256> {
        [self.avx._mm256_set1_ps(x); 2]
    }

    #[inline(always)]
    fn add(self, a: Two<__m256>, b: Two<__m256>) -> Two<__m256> {
        [
            self.avx._mm256_add_ps(a[0], b[0]),
            self.avx._mm256_add_ps(a[1], b[1]),
        ]
    }

    #[inline(always)]
    fn mul(self, a: Two<__m256>, b: Two<__m256>) -> Two<__m256> {
        [
            self.avx._mm256_mul_ps(a[0], b[0]),
            self.avx._mm256_mul_ps(a[1], b[1]),
        ]
    }

    #[inline(always)]
    fn store(self, floats: Two<__m256>) -> [f32; ROWS] {
        cast(floats)
    }
}
