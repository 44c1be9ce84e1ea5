//! Camera messages as drivers and transports really send them: what is taken, what is refused and by which name, and that every picture
//! that is taken is prepared within bounds.
//!
//! - this file: sides, formats and bits, and preparation by every family
//! - `jpeg`: JPEGs that are cut off, padded, without tables, to be turned
//! - `raw`: raw images whose fields are used differently

mod jpeg;
mod raw;

use std::cell::Cell;
use std::fs;
use std::io::Cursor;
use std::sync::Arc;

use image::{ImageBuffer, ImageFormat, Luma, RgbImage};
use inf_mllm::model::preprocess::picture::{to_rgb_image, Picture, PlanarRow, MAX_SIDE};
use inf_mllm::model::vision::{View, Vision};
use inf_mllm::stream::{CameraImage, FrameError, ImageData};
use proptest::prelude::*;

use crate::support::{demo_dir, golden, load, tiny_dir};

fn compressed(format: &str, data: &[u8]) -> CameraImage {
    let (format, data) = (format.to_string(), data.to_vec());
    CameraImage::recorded(0, "", ImageData::Compressed { format, data })
}

fn raw(encoding: &str, (width, height): (u32, u32), step: u32, data: &[u8]) -> CameraImage {
    let data = ImageData::Raw {
        encoding: encoding.to_string(),
        width,
        height,
        step,
        is_bigendian: false,
        data: data.to_vec(),
    };
    CameraImage::recorded(0, "", data)
}

fn rgb(image: &CameraImage) -> RgbImage {
    to_rgb_image(&image.picture().unwrap())
}

fn jpeg(name: &str) -> Vec<u8> {
    fs::read(golden("camera").join(name)).unwrap()
}

/// A picture that no two blocks of are alike.
fn colourful(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([
            (x * 7 % 256) as u8,
            (y * 5 % 256) as u8,
            (x * y % 251) as u8,
        ])
    })
}

fn encoded(picture: &RgbImage, kind: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = Cursor::new(&mut bytes);
    picture.write_to(&mut out, kind).unwrap();
    bytes
}

#[test]
fn pictures_of_more_than_eight_bits_are_refused_as_such() {
    let depth: ImageBuffer<Luma<u16>, Vec<u16>> =
        ImageBuffer::from_fn(32, 24, |x, y| Luma([(400 + x * 40 + y) as u16]));
    let mut png = Vec::new();
    depth
        .write_to(&mut Cursor::new(&mut png), ImageFormat::Png)
        .unwrap();
    let image = compressed("16UC1; png compressed ", &png);
    let refused = image.check().unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("png of 16 bits a channel"), "{said}");
    assert!(said.contains("16UC1; png compressed"), "{said}");
    assert_eq!(refused.reason(), "encoding");
    assert_eq!(image.picture().unwrap_err(), refused);

    let mut twelve = jpeg("baseline.jpg");
    let frame = twelve
        .windows(2)
        .position(|pair| pair == [0xFF, 0xC0])
        .unwrap();
    twelve[frame + 4] = 12;
    let said = compressed("jpeg", &twelve).check().unwrap_err().to_string();
    assert!(said.contains("jpeg of 12 bits a channel"), "{said}");
}

#[test]
fn formats_that_are_not_read_are_refused_by_name() {
    let depth = [
        &[0; 12],
        encoded(&colourful(8, 8), ImageFormat::Png).as_slice(),
    ]
    .concat();
    for (data, name) in [
        (b"RIFF\x10\0\0\0WEBPVP8 ".as_slice(), "WebP"),
        (b"GIF89a", "Gif"),
        (b"II*\0\x08\0\0\0", "Tiff"),
        (b"BM\x36\0\0\0", "Bmp"),
        (b"qoif\0\0\0\x08", "Qoi"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "Avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"\xFF\x0A\xFA\x1F", "JPEG XL"),
        (b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x01\x67\x42\0\x0A", "H.264"),
        (b"\0\0\x01\x40\x01\x0C", "H.265"),
        (depth.as_slice(), "compressedDepth"),
        (
            b"nothing that is known",
            "21 bytes without a known beginning",
        ),
    ] {
        let refused = compressed("what it says", data).check().unwrap_err();
        assert_eq!(refused.reason(), "format");
        let said = refused.to_string();
        assert!(said.contains(name), "{said}, expected {name}");
        assert!(said.contains("what it says"), "{said}");
    }
}

/// A PNG of nothing but a header.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn sides_are_checked_before_anything_is_decoded() {
    let long = |width: u32, height: u32| {
        let mut bytes = jpeg("baseline.jpg");
        let frame = bytes
            .windows(2)
            .position(|pair| pair == [0xFF, 0xC0])
            .unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&(height as u16).to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&(width as u16).to_be_bytes());
        bytes
    };
    for (width, height) in [(15_000_000, 1), (1, 16_385), (201, 1), (0, 8), (7000, 7000)] {
        let mut images = vec![
            compressed("png", &png_header(width, height)),
            raw("mono8", (width, height), width, &[]),
        ];
        if width < 1 << 16 {
            images.push(compressed("jpeg", &long(width, height)));
        }
        for image in images {
            let refused = image.check().unwrap_err();
            assert_eq!(refused, FrameError::Size { width, height });
            assert_eq!(image.picture().unwrap_err(), refused);
        }
    }
    let ends = raw("mono8", (200, 1), 200, &[7; 200]);
    assert_eq!(rgb(&ends).dimensions(), (200, 1));
    let longest = MAX_SIDE as u32;
    assert!(
        raw("mono8", (longest, 82), longest, &vec![0; MAX_SIDE * 82])
            .check()
            .is_ok()
    );
}

/// A grey picture of any size that takes no memory and counts what is read of it.
struct Endless {
    size: (usize, usize),
    rows: Cell<usize>,
}

impl Picture for Endless {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn read_row(&self, _: usize, row: &mut PlanarRow) {
        self.rows.set(self.rows.get() + 1);
        for plane in [&mut row.red, &mut row.green, &mut row.blue] {
            plane[..self.size.0].fill(128);
        }
    }
}

/// One model of each family, and the demo.
pub fn visions() -> Vec<(String, Arc<dyn Vision>)> {
    let names = [
        "idefics3",
        "llava",
        "llava_next",
        "llava_onevision",
        "internvl",
        "lfm2_vl",
        "lfm2_5_vl",
    ];
    let qwen = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"];
    let families = names.iter().chain(&qwen);
    let dirs = families.map(|name| golden("families").join(name));
    let dirs = dirs.chain([tiny_dir(), demo_dir()]);
    dirs.map(|dir| (dir.display().to_string(), load(&dir).vision))
        .collect()
}

/// The most bytes of pixels that one of the tests' models is given: its largest grid of tiles.
const MOST_BYTES: usize = 1 << 22;

#[test]
fn a_picture_of_any_size_is_prepared_by_every_family_within_bounds() {
    let visions = visions();
    let log_uniform = |max: f64| (0.0..=max.ln()).prop_map(|log| log.exp().round() as usize);
    let sizes = prop_oneof![
        (log_uniform(16_384.0), log_uniform(16_384.0)),
        log_uniform(15_000_000.0).prop_map(|long| (long, 1)),
        log_uniform(15_000_000.0).prop_map(|long| (1, long)),
    ];
    proptest!(ProptestConfig::with_cases(24), |(size in sizes, of in 1usize..3)| {
        for (name, vision) in &visions {
            for view in [View::Image { of }, View::Frame] {
                let picture = Endless { size, rows: Cell::new(0) };
                let prepared = vision.prepare(&picture, view);
                let about = format!("{name}, {size:?}, {view:?}");
                // The whole of it and its tiles are two readings.
                prop_assert!(picture.rows.get() <= 2 * size.1.min(MAX_SIDE), "{about}");
                let bytes: usize = prepared.tiles.iter().map(|tile| tile.rgb.len()).sum();
                prop_assert!(bytes <= MOST_BYTES, "{about}: {bytes} bytes");
                let tokens = vision.pixels(&prepared).unwrap().layout;
                prop_assert_eq!(tokens, prepared.layout);
            }
        }
    });
}

/// Pictures that the published processor refuses (`smart_resize`: more than 200 times as long as wide) keep to the most pixels of the
/// configuration.
#[test]
fn a_line_takes_no_more_tokens_than_the_qwen_families_largest_picture() {
    for (name, most_pixels, square) in [
        ("qwen2_vl", [1260, 1260], 6),
        ("qwen2_5_vl", [1260, 1260], 6),
        // Of frames half of what a whole video may have.
        ("qwen3_vl", [1920, 9600], 8),
    ] {
        let vision = load(&golden("families").join(name)).vision;
        for size in [(15_000_000, 1), (1, 15_000_000), (201, 1), (16_384, 40)] {
            let views = [View::Image { of: 1 }, View::Frame].into_iter();
            for (view, pixels) in views.zip(most_pixels) {
                let tokens = vision.tokens(&vision.layout(size, view));
                let most = pixels / (square * square);
                assert!((1..=most).contains(&tokens), "{name}, {size:?}: {tokens}");
            }
        }
    }
}
