//! What the cache must know of the decoder, and what positions turn by in it.

use candle_core::{DType, Device};

use super::axes::Axes;
use super::config::Plan;
use super::rope::{Rope, RopeAxes};
use super::rotary::RotaryTable;

/// What the cache must know of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope: Rope,
    /// Longest input the model was made for, tokens.
    pub max_positions: usize,
}

/// What ranks turn by.
#[derive(Debug)]
pub enum Rotary {
    /// Positions have one axis: the same tables for all kept sets.
    ByRank {
        /// While nothing has been evicted: a token's position is its rank in time.
        plain: RotaryTable,
        /// Afterwards, if the policy sets the recent tokens apart from the relevant ones.
        apart: Option<RotaryTable>,
    },
    /// Positions have three axes: each kept set has a table of its own.
    BySet,
}

impl CacheShape {
    /// What ranks turn by under `plan`.
    pub(super) fn rotary(&self, plan: &Plan, dtype: DType, device: &Device) -> Rotary {
        if self.rope.axes != RopeAxes::One {
            return Rotary::BySet;
        }
        let table = |positions: Vec<usize>| {
            RotaryTable::new(&self.rope, self.head_dim, &positions, dtype, device)
        };
        Rotary::ByRank {
            plain: table((0..plan.budget).collect()),
            apart: plan.border().map(|border| {
                let apart = (border..plan.budget).map(|rank| rank + plan.gap);
                table((0..border).chain(apart).collect())
            }),
        }
    }

    /// What the tables of kept sets are put together from, where they have their own.
    pub(super) fn axes(&self, plan: &Plan) -> Option<Axes> {
        match self.rope.axes {
            RopeAxes::One => None,
            RopeAxes::Sections(_) | RopeAxes::Interleaved(_) => {
                Some(Axes::new(&self.rope, self.head_dim, plan.gap))
            }
        }
    }
}
