//! What all layers of a cache share: the slot counts, the policy, and what positions turn by.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::attention::Kernel;
use super::axes::Axes;
use super::plan::Plan;
use super::policy::Policy;
use super::rotary::RotaryTable;
use super::shape::CacheShape;
use super::turns::TurnTables;
use crate::gpu::Gpu;

/// What all layers share.
#[derive(Debug)]
pub struct Shared {
    pub plan: Plan,
    pub policy: Box<dyn Policy>,
    pub rotary: Rotary,
    pub kernel: Kernel,
    /// What runs the kernels of the device, if there are such.
    pub gpu: Option<Arc<dyn Gpu>>,
    pub protect_boundaries: usize,
    /// What each camera is sure of, as a share of 1; empty: nothing.
    pub camera_shares: Vec<f64>,
}

/// What ranks turn by.
#[derive(Debug)]
pub enum Rotary {
    /// Positions have one axis: the same tables for all kept sets.
    ByRank {
        /// While nothing has been evicted: a token's position is its rank in time.
        plain: RotaryTable,
        /// Afterwards, if the policy sets the recent tokens apart from the relevant ones.
        apart: Option<Box<RotaryTable>>,
    },
    /// Positions have three axes: each kept set has a table of its own, in the layer's store, or all of them lie in the memory of a GPU.
    BySet(Option<TurnTables>),
}

impl Rotary {
    /// What ranks turn by under `plan`.
    pub fn new(shape: &CacheShape, plan: &Plan, dtype: DType, device: &Device) -> Self {
        if shape.has_axes() {
            return Self::BySet(None);
        }
        let table = |positions: Vec<usize>| {
            RotaryTable::new(&shape.rope, shape.head_dim, &positions, dtype, device)
        };
        Self::ByRank {
            plain: table((0..plan.budget).collect()),
            apart: plan.border().map(|border| {
                let apart = (border..plan.budget).map(|rank| rank + plan.gap);
                Box::new(table((0..border).chain(apart).collect()))
            }),
        }
    }

    /// The table that all kept sets share, if they do, of which some tokens were kept by value (`relevant`) or none.
    pub fn shared(&self, relevant: bool) -> Option<&RotaryTable> {
        match self {
            Self::ByRank {
                apart: Some(apart), ..
            } if relevant => Some(apart),
            Self::ByRank { plain, .. } => Some(plain),
            Self::BySet(_) => None,
        }
    }

    /// The tables of all kept sets, where they lie in the memory of a GPU.
    pub fn on_gpu(&self) -> Option<&TurnTables> {
        match self {
            Self::BySet(tables) => tables.as_ref(),
            Self::ByRank { .. } => None,
        }
    }
}

/// What the tables of kept sets are put together from, where they have their own.
pub fn axes(shape: &CacheShape, plan: &Plan) -> Option<Axes> {
    let axes = || Axes::new(&shape.rope, shape.head_dim, plan.gap);
    shape.has_axes().then(axes)
}
