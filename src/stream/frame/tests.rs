use std::io::Cursor;

use image::ImageFormat;

use super::*;
use crate::model::preprocess::picture::to_rgb_image;

fn rgb(image: &CameraImage) -> Vec<u8> {
    to_rgb_image(&image.picture().unwrap()).into_raw()
}

fn raw(encoding: &str, width: u32, height: u32, step: u32, data: Vec<u8>) -> CameraImage {
    let data = ImageData::Raw {
        encoding: encoding.to_string(),
        width,
        height,
        step,
        is_bigendian: false,
        data,
    };
    CameraImage::recorded(0, "", data)
}

#[test]
fn every_packed_encoding_gives_rgb_and_row_padding_is_dropped() {
    let padded = raw("rgb8", 1, 2, 5, vec![1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
    assert_eq!(rgb(&padded), [1, 2, 3, 4, 5, 6]);
    for (encoding, pixel) in [
        ("rgb8", vec![1, 2, 3]),
        ("bgr8", vec![3, 2, 1]),
        ("rgba8", vec![1, 2, 3, 99]),
        ("bgra8", vec![3, 2, 1, 99]),
    ] {
        let step = pixel.len() as u32 * 2;
        assert_eq!(
            rgb(&raw(encoding, 2, 1, step, pixel.repeat(2))),
            [1, 2, 3, 1, 2, 3],
            "{encoding}"
        );
    }
    assert_eq!(rgb(&raw("mono8", 2, 1, 2, vec![7, 9])), [7, 7, 7, 9, 9, 9]);
}

/// Video levels of BT.601: black is Y 16, white Y 235, and pure red, green and blue are (81, 90, 240), (145, 54, 34)
/// and (41, 240, 110) in Y, U, V (ITU-R BT.601-7).
#[test]
fn every_yuv_layout_gives_the_colours_of_bt601() {
    for ([y, u, v], wanted) in [
        ([16, 128, 128], [0, 0, 0]),
        ([235, 128, 128], [255, 255, 255]),
        ([81, 90, 240], [255, 0, 0]),
        ([145, 54, 34], [0, 255, 0]),
        ([41, 240, 110], [0, 0, 255]),
    ] {
        for (encoding, height, data) in [
            ("yuv422", 1, vec![u, y, v, y]),
            ("uyvy", 1, vec![u, y, v, y]),
            ("yuv422_yuy2", 1, vec![y, u, y, v]),
            ("yuyv", 1, vec![y, u, y, v]),
            ("nv12", 2, vec![y, y, y, y, u, v]),
        ] {
            let step = if encoding == "nv12" { 2 } else { 4 };
            let got = rgb(&raw(encoding, 2, height, step, data));
            for (got, wanted) in got.iter().zip(wanted.iter().cycle()) {
                assert!(
                    got.abs_diff(*wanted) <= 1,
                    "{encoding} of {y} {u} {v}: {got} for {wanted}"
                );
            }
        }
    }
}

#[test]
fn nv12_takes_the_colour_of_the_right_block_and_the_luma_of_each_pixel() {
    // Two blocks side by side, rows padded to 6 bytes: grey, then red with four different lumas.
    let data = [
        [50, 60, 81, 91, 0, 0],
        [70, 80, 101, 111, 0, 0],
        [128, 128, 90, 240, 0, 0],
    ]
    .concat();
    let got = rgb(&raw("nv12", 4, 2, 6, data));
    let red: Vec<u8> = got.iter().step_by(3).copied().collect();
    let blue: Vec<u8> = got.iter().skip(2).step_by(3).copied().collect();
    assert!(
        red[0] < red[1] && red[4] < red[5] && red[1] < red[4],
        "{red:?}"
    );
    assert_eq!(red[..2], blue[..2]);
    assert!(
        red[2] >= 254 && blue[2] == 0 && blue[2] < blue[7],
        "{red:?} {blue:?}"
    );
}

#[test]
fn shared_colour_needs_whole_pairs() {
    for (encoding, width, height) in [
        ("yuv422", 3, 2),
        ("yuyv", 1, 1),
        ("nv12", 2, 3),
        ("nv12", 3, 2),
    ] {
        let image = raw(encoding, width, height, 8, vec![0; 64]);
        assert!(
            matches!(image.check(), Err(FrameError::Odd { .. })),
            "{encoding}"
        );
    }
}

#[test]
fn a_raw_image_must_hold_what_its_fields_promise() {
    assert!(matches!(
        raw("rgb16", 1, 1, 6, vec![0; 6]).check(),
        Err(FrameError::Encoding(_))
    ));
    assert!(matches!(
        raw("rgb8", 0, 1, 0, vec![]).check(),
        Err(FrameError::Size { .. })
    ));
    assert!(matches!(
        raw("rgb8", 10_000, 10_000, 30_000, vec![0; 10]).check(),
        Err(FrameError::Size { .. })
    ));
    assert!(matches!(
        raw("rgb8", 2, 1, 5, vec![0; 5]).check(),
        Err(FrameError::Step { .. })
    ));
    for length in [0, 5] {
        assert!(matches!(
            raw("rgb8", 2, 1, 6, vec![0; length]).check(),
            Err(FrameError::Length { .. })
        ));
    }
    // What a driver leaves behind the rows is not looked at.
    assert!(raw("rgb8", 2, 1, 6, vec![0; 7]).check().is_ok());
}

#[test]
fn a_damaged_jpeg_is_refused_and_a_whole_one_is_not() {
    let mut jpeg = Vec::new();
    RgbImage::from_pixel(16, 16, image::Rgb([200, 30, 30]))
        .write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg)
        .unwrap();
    let compressed = |data: Vec<u8>| {
        let format = "jpeg".to_string();
        CameraImage::recorded(0, "", ImageData::Compressed { format, data })
    };
    let whole = rgb(&compressed(jpeg.clone()));
    assert!(whole.chunks_exact(3).all(|p| p[0] > 180 && p[1] < 60));
    assert!(compressed(jpeg[..jpeg.len() / 2].to_vec())
        .picture()
        .is_err());
    assert!(compressed(Vec::new()).check().is_err());
    assert!(compressed(b"GIF89a".to_vec()).check().is_err());
}
