//! A tower on a stream of its own of the decoder's GPU: what it has made is handed over when it is there, so the decoder never waits
//! for it.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::working::Working;
use super::{
    FramePixels, FramePixelsError, ImageFeatures, Layout, Pixels, Prepared, TowerOutput, View,
    Vision,
};
use crate::model::device;
use crate::model::preprocess::picture::Picture;
use crate::model::preprocess::recipe::FrameRecipe;
use crate::model::ModelError;

/// A family's way from pictures to rows, of which the rows go to another stream.
pub struct Beside {
    vision: Arc<dyn Vision>,
    own: Device,
    home: Device,
}

impl Beside {
    /// A tower that works on `own`, and whose rows come to `home`; itself where the two are the same.
    pub fn of(vision: Box<dyn Vision>, own: &Device, home: &Device) -> Arc<dyn Vision> {
        match own.same_device(home) {
            true => vision.into(),
            false => Arc::new(Self {
                vision: vision.into(),
                own: own.clone(),
                home: home.clone(),
            }),
        }
    }
}

impl Vision for Beside {
    fn layout(&self, size: (usize, usize), view: View) -> Layout {
        self.vision.layout(size, view)
    }

    fn tokens(&self, layout: &Layout) -> usize {
        self.vision.tokens(layout)
    }

    fn markup(&self, layout: &Layout) -> String {
        self.vision.markup(layout)
    }

    fn working(&self, layout: &Layout) -> Working {
        self.vision.working(layout)
    }

    fn prepare(&self, picture: &dyn Picture, view: View) -> Prepared {
        self.vision.prepare(picture, view)
    }

    fn frame(&self, size: (usize, usize)) -> FrameRecipe<'_> {
        self.vision.frame(size)
    }

    fn pixels(&self, prepared: &Prepared) -> Result<Pixels> {
        self.vision.pixels(prepared)
    }

    fn with_frame_pixels(
        &self,
        asked: FramePixels,
    ) -> std::result::Result<Arc<dyn Vision>, FramePixelsError> {
        Ok(Arc::new(Self {
            vision: self.vision.with_frame_pixels(asked)?,
            own: self.own.clone(),
            home: self.home.clone(),
        }))
    }

    fn takes_pairs(&self) -> bool {
        self.vision.takes_pairs()
    }

    fn join(&self, first: &Pixels, second: &Pixels) -> Result<Pixels> {
        self.vision.join(first, second)
    }

    fn split(
        &self,
        tensors: &HashMap<String, Tensor>,
        view: View,
    ) -> std::result::Result<Vec<Pixels>, ModelError> {
        self.vision.split(tensors, view)
    }

    fn tower(&self, pixels: &Pixels) -> Result<TowerOutput> {
        self.vision.tower(pixels)
    }

    fn connect(&self, features: &TowerOutput, layout: &Layout) -> Result<ImageFeatures> {
        let ImageFeatures { rows, deep, grid } = self.vision.connect(features, layout)?;
        let (own, home) = (&self.own, &self.home);
        let handed = device::hand_over(own, home, || {
            let deep = deep.iter().map(|rows| rows.to_device(home));
            Ok((rows.to_device(home)?, deep.collect::<Result<_>>()?))
        });
        let (rows, deep) = handed?;
        Ok(ImageFeatures { rows, deep, grid })
    }
}
