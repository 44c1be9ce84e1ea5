//! [`Lanes`] in the instructions of aarch64: NEON, which every such processor has.

use std::arch::aarch64::{float32x4_t, int32x4_t, int8x16_t, uint16x8_t, uint8x16_t};

use super::lanes::{Lanes, ROWS};

pulp::simd_type! {
    /// NEON.
    pub struct Neon {
        pub neon: "neon",
    }
}

/// The four registers that hold 16 lanes.
type Four<T> = [T; 4];

/// `$value` for each of the four registers.
macro_rules! each {
    ($i:ident => $value:expr) => {{
        let [a, b, c, d] = [0, 1, 2, 3];
        [
            {
                let $i = a;
                $value
            },
            {
                let $i = b;
                $value
            },
            {
                let $i = c;
                $value
            },
            {
                let $i = d;
                $value
            },
        ]
    }};
}

impl Neon {
    /// `sums` plus the products of signed bytes with `x`; of two neighbours they are within 16 bits.
    #[inline(always)]
    fn dot(
        self,
        sums: Four<int32x4_t>,
        weights: [Four<int8x16_t>; 4],
        x: &[i8; 16],
    ) -> Four<int32x4_t> {
        let mut sums = sums;
        for (weights, &x) in weights.into_iter().zip(x.as_chunks::<4>().0) {
            let x = self
                .neon
                .vreinterpretq_s8_s32(self.neon.vdupq_n_s32(pulp::cast(x)));
            for i in 0..4 {
                let low = self
                    .neon
                    .vmull_s8(self.neon.vget_low_s8(weights[i]), self.neon.vget_low_s8(x));
                let high = self.neon.vmull_high_s8(weights[i], x);
                sums[i] = self
                    .neon
                    .vpadalq_s16(sums[i], self.neon.vpaddq_s16(low, high));
            }
        }
        sums
    }
}

impl Lanes for Neon {
    type Bytes = Four<uint8x16_t>;
    type Ints = Four<int32x4_t>;
    type Floats = Four<float32x4_t>;

    const BIAS: i32 = 0;
    const TILE: usize = 2;

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Four<uint8x16_t> {
        pulp::cast(*from)
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Four<uint8x16_t>) -> Four<uint8x16_t> {
        each!(i => self.neon.vandq_u8(bytes[i], self.neon.vdupq_n_u8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Four<uint8x16_t>) -> Four<uint8x16_t> {
        each!(i => self.neon.vshrq_n_u8::<4>(bytes[i]))
    }

    #[inline(always)]
    fn with_upper(
        self,
        low: Four<uint8x16_t>,
        upper: Four<uint8x16_t>,
        from: usize,
        mask: u8,
    ) -> Four<uint8x16_t> {
        // To the left, or by less than nothing to the right.
        let by = self.neon.vdupq_n_s8(4 - from as i8);
        let mask = self.neon.vdupq_n_u8(mask << 4);
        each!(i => self.neon.vorrq_u8(low[i], self.neon.vandq_u8(self.neon.vshlq_u8(upper[i], by), mask)))
    }

    #[inline(always)]
    fn dot_5(
        self,
        sums: Four<int32x4_t>,
        weights: [Four<uint8x16_t>; 4],
        x: &[i8; 16],
    ) -> Four<int32x4_t> {
        self.dot(
            sums,
            each!(k => each!(i => self.neon.vreinterpretq_s8_u8(weights[k][i]))),
            x,
        )
    }

    #[inline(always)]
    fn dot_6(
        self,
        sums: Four<int32x4_t>,
        weights: [Four<uint8x16_t>; 4],
        x: &[i8; 16],
    ) -> Four<int32x4_t> {
        self.dot_5(sums, weights, x)
    }

    #[inline(always)]
    fn dot_8(
        self,
        sums: Four<int32x4_t>,
        weights: [Four<uint8x16_t>; 4],
        x: &[i8; 16],
    ) -> Four<int32x4_t> {
        let sign = self.neon.vdupq_n_u8(0x80);
        let signed = each!(k => each!(i => self.neon.vreinterpretq_s8_u8(self.neon.veorq_u8(weights[k][i], sign))));
        self.dot(sums, signed, x)
    }

    #[inline(always)]
    fn splat(self, x: i32) -> Four<int32x4_t> {
        [self.neon.vdupq_n_s32(x); 4]
    }

    #[inline(always)]
    fn signed(self, from: &[i8; ROWS]) -> Four<int32x4_t> {
        let bytes: int8x16_t = pulp::cast(*from);
        let (low, high) = (
            self.neon.vmovl_s8(self.neon.vget_low_s8(bytes)),
            self.neon.vmovl_high_s8(bytes),
        );
        [
            self.neon.vmovl_s16(self.neon.vget_low_s16(low)),
            self.neon.vmovl_high_s16(low),
            self.neon.vmovl_s16(self.neon.vget_low_s16(high)),
            self.neon.vmovl_high_s16(high),
        ]
    }

    #[inline(always)]
    fn add_ints(self, a: Four<int32x4_t>, b: Four<int32x4_t>) -> Four<int32x4_t> {
        each!(i => self.neon.vaddq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul_ints(self, a: Four<int32x4_t>, b: Four<int32x4_t>) -> Four<int32x4_t> {
        each!(i => self.neon.vmulq_s32(a[i], b[i]))
    }

    #[inline(always)]
    fn floats(self, from: Four<int32x4_t>) -> Four<float32x4_t> {
        each!(i => self.neon.vcvtq_f32_s32(from[i]))
    }

    #[inline(always)]
    fn halves(self, from: &[u16; ROWS]) -> Four<float32x4_t> {
        // Exponent and fraction to their places, then by the powers of two that the exponents count from apart: exact for finite numbers.
        let [low, high]: [uint16x8_t; 2] = pulp::cast(*from);
        let wide = [
            self.neon.vmovl_u16(self.neon.vget_low_u16(low)),
            self.neon.vmovl_high_u16(low),
            self.neon.vmovl_u16(self.neon.vget_low_u16(high)),
            self.neon.vmovl_high_u16(high),
        ];
        let apart = self
            .neon
            .vdupq_n_f32(f32::from_bits((127 + 127 - 15) << 23));
        each!(i => {
            let magnitude = self.neon.vshlq_n_u32::<13>(self.neon.vandq_u32(wide[i], self.neon.vdupq_n_u32(0x7fff)));
            let magnitude = self.neon.vmulq_f32(self.neon.vreinterpretq_f32_u32(magnitude), apart);
            let sign = self.neon.vshlq_n_u32::<16>(self.neon.vandq_u32(wide[i], self.neon.vdupq_n_u32(0x8000)));
            self.neon.vreinterpretq_f32_u32(self.neon.vorrq_u32(self.neon.vreinterpretq_u32_f32(magnitude), sign))
        })
    }

    #[inline(always)]
    fn unsigned(self, from: &[u8; ROWS]) -> Four<float32x4_t> {
        let bytes: uint8x16_t = pulp::cast(*from);
        let (low, high) = (
            self.neon.vmovl_u8(self.neon.vget_low_u8(bytes)),
            self.neon.vmovl_high_u8(bytes),
        );
        [
            self.neon
                .vcvtq_f32_u32(self.neon.vmovl_u16(self.neon.vget_low_u16(low))),
            self.neon.vcvtq_f32_u32(self.neon.vmovl_high_u16(low)),
            self.neon
                .vcvtq_f32_u32(self.neon.vmovl_u16(self.neon.vget_low_u16(high))),
            self.neon.vcvtq_f32_u32(self.neon.vmovl_high_u16(high)),
        ]
    }

    #[inline(always)]
    fn splat_float(self, x: f32) -> Four<float32x4_t> {
        [self.neon.vdupq_n_f32(x); 4]
    }

    #[inline(always)]
    fn add(self, a: Four<float32x4_t>, b: Four<float32x4_t>) -> Four<float32x4_t> {
        each!(i => self.neon.vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Four<float32x4_t>, b: Four<float32x4_t>) -> Four<float32x4_t> {
        each!(i => self.neon.vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn store(self, floats: Four<float32x4_t>) -> [f32; ROWS] {
        pulp::cast(floats)
    }
}
