//! JPEGs as bad links, drivers and tools leave them.

use super::*;

const END: [u8; 2] = [0xFF, 0xD9];

fn decoded(data: &[u8]) -> Result<RgbImage, FrameError> {
    let image = compressed("jpeg", data);
    let picture = image.picture().map(|picture| to_rgb_image(&picture));
    picture
}

/// A JPEG's segments in front of its first scan: marker, and the whole of it.
fn segments(jpeg: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = vec![(jpeg[1], jpeg[..2].to_vec())];
    let mut at = 2;
    while found.last().unwrap().0 != 0xDA {
        let length = 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        found.push((jpeg[at + 1], jpeg[at..at + length].to_vec()));
        at += length;
    }
    found
}

/// The largest difference of two pictures, grey levels.
fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let levels = a.as_raw().iter().zip(b.as_raw());
    levels.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

const CODED: [&str; 6] = [
    "baseline.jpg",
    "restart.jpg",
    "progressive.jpg",
    "progressive_restart.jpg",
    "grey.jpg",
    "cmyk.jpg",
];

#[test]
fn a_jpeg_whose_data_stops_before_the_picture_does_is_refused_however_it_is_coded() {
    for name in CODED {
        let whole = jpeg(name);
        assert_eq!(whole[whole.len() - 2..], END);
        let data = whole.len() - 2;
        for percent in (5..100).step_by(5) {
            let cut = &whole[..data * percent / 100];
            let padded = [cut, &[0; 4000]].concat();
            let ended = [cut, &END].concat();
            for (what, cut) in [("cut", cut), ("padded", &padded), ("ended", &ended)] {
                let image = compressed("jpeg", cut);
                let refused = image.picture().map(|_| ());
                assert!(
                    matches!(refused, Err(FrameError::Corrupt(_))),
                    "{name} at {percent} %, {what}: {refused:?}"
                );
            }
        }
    }
}

/// Whatever lacks at the end, either it is refused or nothing of the picture lacks.
#[test]
fn a_jpeg_that_is_taken_is_the_whole_picture_wherever_it_was_cut() {
    for name in ["baseline.jpg", "restart.jpg", "grey.jpg", "progressive.jpg"] {
        let whole = jpeg(name);
        let picture = decoded(&whole).unwrap();
        for length in 2..whole.len() {
            if let Ok(taken) = decoded(&whole[..length]) {
                assert_eq!(
                    difference(&taken, &picture),
                    0,
                    "{name} cut to {length} bytes"
                );
            }
        }
    }
}

#[test]
fn a_jpeg_that_only_lacks_its_end_marker_or_is_padded_is_taken() {
    for name in CODED {
        let whole = jpeg(name);
        let picture = decoded(&whole).unwrap();
        let data = &whole[..whole.len() - 2];
        let padded = |with: u8, by: usize| [data, &vec![with; by]].concat();
        for (what, bytes) in [
            ("no end marker", data.to_vec()),
            ("half an end marker", padded(0xFF, 1)),
            ("zeros in its place", padded(0, 4096)),
            ("ones in its place", padded(0xFF, 100)),
            ("zeros behind it", [whole.as_slice(), &[0; 4096]].concat()),
            (
                "a second picture behind it",
                [whole.as_slice(), &whole].concat(),
            ),
        ] {
            let taken = decoded(&bytes).unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            assert_eq!(difference(&taken, &picture), 0, "{name}, {what}");
        }
    }
}

#[test]
fn bytes_between_a_jpegs_segments_are_left_out() {
    let whole = jpeg("baseline.jpg");
    let mut filled = Vec::new();
    for (_, segment) in segments(&whole) {
        filled.extend(segment);
        // A JPEG is known by what its first segment begins with.
        if filled.len() > 2 {
            filled.extend([0; 20]);
        }
    }
    // Behind the scan's header its data begins at once.
    filled.truncate(filled.len() - 20);
    let headers: usize = segments(&whole).iter().map(|(_, s)| s.len()).sum();
    filled.extend(&whole[headers..]);
    assert_eq!(
        difference(&decoded(&filled).unwrap(), &decoded(&whole).unwrap()),
        0
    );
}

/// The encoder of `image` writes the standard tables, so that its pictures can do without.
#[test]
fn a_jpeg_without_huffman_tables_has_the_standard_ones() {
    const DHT: u8 = 0xC4;
    const APP0: u8 = 0xE0;
    let whole = encoded(&colourful(96, 80), ImageFormat::Jpeg);
    let all = segments(&whole);
    assert!(all.iter().any(|(marker, _)| *marker == DHT));
    let headers: usize = all.iter().map(|(_, segment)| segment.len()).sum();
    for left_out in [vec![DHT], vec![DHT, APP0]] {
        let kept = all.iter().filter(|(marker, _)| !left_out.contains(marker));
        let mut bytes: Vec<u8> = kept.flat_map(|(_, segment)| segment.clone()).collect();
        bytes.extend(&whole[headers..]);
        assert_eq!(
            difference(&decoded(&bytes).unwrap(), &decoded(&whole).unwrap()),
            0
        );
        let cut = bytes.len() * 3 / 4;
        assert!(decoded(&bytes[..cut]).is_err());
    }
}

#[test]
fn a_jpeg_with_more_scans_than_an_encoder_writes_is_refused() {
    let whole = jpeg("progressive.jpg");
    let headers: usize = segments(&whole).iter().map(|(_, s)| s.len()).sum();
    let rest = &whole[headers..whole.len() - 2];
    let scan = segments(&whole).pop().unwrap().1;
    let mut bytes = whole[..headers].to_vec();
    bytes.extend(rest);
    for _ in 0..40 {
        bytes.extend(&scan);
        bytes.extend([0x55; 8]);
    }
    bytes.extend(END);
    let refused = decoded(&bytes).unwrap_err().to_string();
    assert!(refused.contains("more than 32 scans"), "{refused}");
}

#[test]
fn a_picture_is_turned_as_its_exif_orientation_says() {
    let turned = decoded(&jpeg("turned.jpg")).unwrap();
    assert_eq!(turned.dimensions(), (48, 64));
    let (top, bottom) = (turned.get_pixel(24, 8), turned.get_pixel(24, 56));
    assert!(top[0] > 180 && top[2] < 60, "{top:?} above, expected red");
    assert!(
        bottom[2] > 180 && bottom[0] < 60,
        "{bottom:?} below, expected blue"
    );
}
