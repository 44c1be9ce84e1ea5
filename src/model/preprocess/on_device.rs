//! Frames in the memory of a GPU: three bytes a pixel are uploaded, and resized and normalised there.
//!
//! Resizing is done in the whole numbers of `resample`, so that the bytes are those of the CPU.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{bail, DType, Device, Result, Tensor};

use super::picture::{Picture, PlanarRow};
use super::recipe::{FrameRecipe, Patches};
use super::resample::{Axis, Filter, Plan, Resizer};
use crate::gpu::{Element, Gpu, Launch};

/// Threads of a block, as in kernels/frames.cu.
const THREADS: usize = 256;

/// Tables remembered, as of the resizer's plans: two steps each of two cameras.
const TABLES: usize = 4;

/// A picture in the memory of a device, `[height, width, 3]`, u8.
#[derive(Debug, Clone)]
pub struct DevicePicture(Tensor);

impl DevicePicture {
    /// Width and height, pixels.
    pub fn size(&self) -> Result<(usize, usize)> {
        let (height, width, _) = self.0.dims3()?;
        Ok((width, height))
    }

    /// Its packed bytes, on the host.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.0.flatten_all()?.to_vec1()
    }
}

/// The weights of a pass, `[made, 2 + most]`, on the device.
#[derive(Debug)]
struct Taps {
    table: Tensor,
    most: usize,
    bits: u32,
}

impl Taps {
    fn new(axis: &Axis, device: &Device) -> Result<Self> {
        let most = axis.taps.iter().map(|taps| taps.count).max().unwrap_or(0);
        let mut table = Vec::with_capacity(axis.taps.len() * (2 + most));
        for taps in &axis.taps {
            let head = [taps.start as u32, taps.count as u32];
            let weights = taps.weights[..taps.count].iter();
            table.extend(head.into_iter().chain(weights.map(|&weight| weight as u32)));
            table.resize(table.len() + most - taps.count, 0);
        }
        Ok(Self {
            table: Tensor::from_vec(table, (axis.taps.len(), 2 + most), device)?,
            most,
            bits: axis.bits,
        })
    }
}

/// Between two sizes (width, height) with a filter.
type Between = (Filter, (usize, usize), (usize, usize));

#[derive(Debug)]
struct Tables {
    across: Taps,
    down: Taps,
}

/// Makes the tower's input of pictures on a device, and remembers the weights of the sizes last used there.
#[derive(Debug)]
pub struct FrameKernels {
    gpu: Arc<dyn Gpu>,
    device: Device,
    tables: Mutex<Vec<(Between, Arc<Tables>)>>,
}

impl FrameKernels {
    /// `gpu` runs kernels on the memory of `device`.
    pub fn new(gpu: Arc<dyn Gpu>, device: &Device) -> Self {
        Self {
            gpu,
            device: device.clone(),
            tables: Mutex::default(),
        }
    }

    /// The picture at the size that the tower takes.
    pub fn resized(&self, picture: &dyn Picture, recipe: &FrameRecipe) -> Result<DevicePicture> {
        let mut picture = self.uploaded(picture)?;
        if let Some(colour) = recipe.square {
            picture = self.in_square(&picture, colour)?;
        }
        for &size in &recipe.sizes {
            picture = self.resize(&picture, recipe.resizer, size)?;
        }
        Ok(picture)
    }

    /// What the tower takes of such a picture: `[1, 3, height, width]`, or `[patches, values]`.
    pub fn values(&self, picture: &DevicePicture, recipe: &FrameRecipe) -> Result<Tensor> {
        let (width, height) = picture.size()?;
        let (patch, shape) = match recipe.patches {
            None => {
                let whole = Patches {
                    side: 0,
                    merge: 1,
                    frames: 1,
                };
                ((whole, height, width), vec![1, 3, height, width])
            }
            Some(patches) => {
                let Patches {
                    side,
                    merge,
                    frames,
                } = patches;
                let squares = side * merge;
                if squares == 0 || width % squares != 0 || height % squares != 0 {
                    bail!("a picture of {width} x {height} pixels does not consist of squares of {squares}");
                }
                let count = width * height / (side * side);
                let shape = vec![count, 3 * frames * side * side];
                ((patches, side, side), shape)
            }
        };
        let (Patches { merge, frames, .. }, patch_height, patch_width) = patch;
        let out = Tensor::zeros(shape, recipe.dtype, &self.device)?;
        let normalisation = &recipe.normalisation;
        let mut launch = launch("frame_values", width, height)
            .tensor(&picture.0)?
            .int(width)
            .int(patch_height)
            .int(patch_width)
            .int(merge)
            .int(frames)
            .float(normalisation.scale());
        for value in [normalisation.mean(), normalisation.std()].concat() {
            launch = launch.float(value);
        }
        let element = Element::of(recipe.dtype)?;
        self.run(launch.tensor(&out)?.int(element.code))?;
        Ok(out)
    }

    fn picture(&self, (width, height): (usize, usize)) -> Result<DevicePicture> {
        let bytes = Tensor::zeros((height, width, 3), DType::U8, &self.device)?;
        Ok(DevicePicture(bytes))
    }

    fn uploaded(&self, picture: &dyn Picture) -> Result<DevicePicture> {
        let (width, height) = picture.size();
        let uploaded = self.picture((width, height))?;
        self.gpu.upload(&uploaded.0, &mut |bytes| {
            let mut row = PlanarRow::new(width);
            for (y, bytes) in bytes.chunks_exact_mut(3 * width).enumerate() {
                picture.read_row(y, &mut row);
                let packed = row.packed(width);
                bytes
                    .iter_mut()
                    .zip(packed)
                    .for_each(|(to, from)| *to = from);
            }
        })?;
        Ok(uploaded)
    }

    fn in_square(&self, picture: &DevicePicture, colour: [u8; 3]) -> Result<DevicePicture> {
        let (width, height) = picture.size()?;
        let side = width.max(height);
        let out = self.picture((side, side))?;
        let mut launch = launch("frame_square", side, side)
            .tensor(&picture.0)?
            .int(width)
            .int(height);
        for value in colour {
            launch = launch.int(value.into());
        }
        self.run(launch.tensor(&out.0)?)?;
        Ok(out)
    }

    fn resize(
        &self,
        picture: &DevicePicture,
        resizer: &Resizer,
        to: (usize, usize),
    ) -> Result<DevicePicture> {
        let from = picture.size()?;
        if from == to {
            return Ok(picture.clone());
        }
        let tables = self.tables(resizer, from, to)?;
        let mut picture = picture.clone();
        if from.0 != to.0 {
            let Taps { table, most, bits } = &tables.across;
            let out = self.picture((to.0, from.1))?;
            let launch = launch("resize_across", to.0, from.1)
                .tensor(&picture.0)?
                .int(from.0)
                .tensor(table)?
                .int(*most)
                .int(*bits as usize)
                .int(to.0);
            self.run(launch.tensor(&out.0)?)?;
            picture = out;
        }
        if from.1 != to.1 {
            let Taps { table, most, bits } = &tables.down;
            let out = self.picture(to)?;
            let launch = launch("resize_down", 3 * to.0, to.1)
                .tensor(&picture.0)?
                .int(to.0)
                .tensor(table)?
                .int(*most)
                .int(*bits as usize);
            self.run(launch.tensor(&out.0)?)?;
            picture = out;
        }
        Ok(picture)
    }

    fn tables(
        &self,
        resizer: &Resizer,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Result<Arc<Tables>> {
        let between = (resizer.filter(), from, to);
        // Tables stay usable whatever happened to another thread.
        let mut known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tables)) = known.iter().find(|(known, _)| *known == between) {
            return Ok(tables.clone());
        }
        let plan: Arc<Plan> = resizer.whole_plan(from, to);
        let tables = Arc::new(Tables {
            across: Taps::new(&plan.across, &self.device)?,
            down: Taps::new(&plan.down, &self.device)?,
        });
        if known.len() == TABLES {
            known.remove(0);
        }
        known.push((between, tables.clone()));
        Ok(tables)
    }

    fn run(&self, launch: Launch) -> Result<()> {
        // Safety: this file launches the kernels of kernels/frames.cu with the arguments that they ask for, on tensors of these sizes.
        unsafe { self.gpu.launch(launch) }
    }
}

/// A launch with a thread for each of `across` in each of `down` rows.
fn launch(kernel: &str, across: usize, down: usize) -> Launch {
    let blocks = across.div_ceil(THREADS) as u32;
    Launch::new(kernel, [blocks, down as u32, 1], THREADS as u32)
}
