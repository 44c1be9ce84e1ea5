//! Raw images as drivers fill them in.

use super::*;

#[test]
fn a_raw_buffer_longer_than_its_rows_is_taken_without_its_tail() {
    for (encoding, step, rows) in [
        ("rgb8", 6, 2),
        ("mono8", 2, 2),
        ("yuv422", 4, 2),
        ("nv12", 2, 3),
    ] {
        let data: Vec<u8> = (0..step * rows).map(|i| 100 + i as u8).collect();
        let exact = raw(encoding, (2, 2), step, &data);
        let paged = [data.as_slice(), &[9; 4096]].concat();
        let longer = raw(encoding, (2, 2), step, &paged);
        assert_eq!(rgb(&longer), rgb(&exact), "{encoding}");
    }
}

#[test]
fn types_of_opencv_are_taken_in_its_order_of_colours() {
    for (unnamed, named, channels) in [
        ("8UC3", "bgr8", 3),
        ("8UC4", "bgra8", 4),
        ("8UC1", "mono8", 1),
    ] {
        let data: Vec<u8> = (0..4 * channels).map(|i| 20 * i as u8).collect();
        let image = |encoding| raw(encoding, (2, 2), 2 * channels, &data);
        assert_eq!(rgb(&image(unnamed)), rgb(&image(named)), "{unnamed}");
    }
}

/// A picture in the planes of nv12, rows of so many bytes: Y, then U and V.
fn planes(width: u32, height: u32, stride: u32) -> Vec<u8> {
    let mut data = Vec::new();
    for y in 0..height + height / 2 {
        let level = |x: u32| match y < height {
            true => 40 + 9 * x + 5 * y,
            false => 90 + 11 * x + 3 * (y - height),
        };
        data.extend((0..stride).map(|x| if x < width { level(x) as u8 } else { 0 }));
    }
    data
}

#[test]
fn two_planes_are_understood_however_the_driver_counts_their_rows() {
    let (width, height) = (8, 12);
    let data = planes(width, height, width);
    let padded = planes(width, height, 12);
    let narrow = planes(width, height, 10);
    let doubled = [data.as_slice(), &[0; 48]].concat();
    for encoding in ["nv12", "nv21"] {
        let expected = rgb(&raw(encoding, (width, height), width, &data));
        for (what, fields_height, step, data) in [
            ("rows with padding", height, 12, &padded),
            ("the step counts all planes", height, width * 3 / 2, &data),
            (
                "the step counts all planes with padding",
                height,
                18,
                &padded,
            ),
            ("the step is two bytes a pixel", height, 2 * width, &doubled),
            (
                "the height counts the rows of colours",
                height * 3 / 2,
                width,
                &data,
            ),
            ("the same with padding", height * 3 / 2, 10, &narrow),
        ] {
            let image = raw(encoding, (width, fields_height), step, data);
            assert_eq!(rgb(&image), expected, "{encoding}: {what}");
        }
    }
    let (nv12, nv21) = (
        raw("nv12", (2, 2), 2, &[81, 81, 81, 81, 90, 240]),
        raw("nv21", (2, 2), 2, &[81, 81, 81, 81, 240, 90]),
    );
    assert_eq!(rgb(&nv12), rgb(&nv21));
    assert!(rgb(&nv21).pixels().all(|p| p[0] > 250 && p[2] < 5), "red");
}
