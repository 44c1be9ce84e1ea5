//! Arbitrary bytes into everything that parses input: an error or a result, never a panic.

use std::io::Cursor;
use std::sync::{Arc, OnceLock};

use image::{ImageFormat, RgbImage};
use inf_mllm::model::preprocess::picture::{to_rgb_image, Picture};
use inf_mllm::model::vision::{View, Vision};
use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::script::Script;
use inf_mllm::stream::{CameraImage, ImageData};
use proptest::prelude::*;

use crate::pictures::visions;
use crate::support::{load, root, tiny_dir};

const ENCODINGS: [&str; 14] = [
    "rgb8",
    "bgr8",
    "rgba8",
    "bgra8",
    "mono8",
    "yuv422",
    "uyvy",
    "yuv422_yuy2",
    "yuyv",
    "nv12",
    "nv21",
    "8UC1",
    "8UC3",
    "8UC4",
];

/// What is decoded goes on to the model: every family prepares it.
fn prepare(picture: &dyn Picture) {
    static VISIONS: OnceLock<Vec<(String, Arc<dyn Vision>)>> = OnceLock::new();
    for (name, vision) in VISIONS.get_or_init(visions) {
        for view in [View::Image { of: 1 }, View::Frame] {
            let prepared = vision.prepare(picture, view);
            assert_eq!(
                prepared.layout,
                vision.layout(picture.size(), view),
                "{name}"
            );
            assert!(prepared
                .tiles
                .iter()
                .all(|t| t.rgb.len() == 3 * t.width * t.height));
        }
    }
}

fn image(data: ImageData) -> CameraImage {
    CameraImage::recorded(0, "", data)
}

fn encoded(kind: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    RgbImage::from_fn(24, 17, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 77]))
        .write_to(&mut Cursor::new(&mut bytes), kind)
        .unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn raw_images_of_any_shape(
        encoding in prop_oneof![4 => prop::sample::select(ENCODINGS.to_vec()).prop_map(String::from), 1 => ".*"],
        width in prop_oneof![0u32..20, any::<u32>()],
        height in prop_oneof![0u32..20, any::<u32>()],
        step in prop_oneof![0u32..80, any::<u32>()],
        is_bigendian: bool,
        data in prop::collection::vec(any::<u8>(), 0..1600),
    ) {
        let image = image(ImageData::Raw { encoding, width, height, step, is_bigendian, data });
        prop_assert_eq!(image.check().is_ok(), image.picture().is_ok());
        if let Ok(picture) = image.picture() {
            let read = to_rgb_image(&picture).dimensions();
            // The height of two planes may count the rows of colours.
            prop_assert!(read == (width, height) || read == (width, height / 3 * 2), "{read:?}");
            prepare(&picture);
        }
    }

    #[test]
    fn damaged_compressed_images(
        kind in prop::sample::select(vec![ImageFormat::Jpeg, ImageFormat::Png]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = encoded(kind);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(picture) = image(ImageData::Compressed { format: "jpeg".to_string(), data: bytes }).picture() {
            prepare(&picture);
        }
    }

    #[test]
    fn arbitrary_compressed_images(data in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = image(ImageData::Compressed { format: String::new(), data }).picture();
    }

    #[test]
    fn arbitrary_scripts(text in "[\\[\\]{}a-z0-9:., \n-]{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script.yaml");
        std::fs::write(&file, text).unwrap();
        let _ = Script::load(&file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_bags(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        length in 0usize..60_000,
    ) {
        let mut bytes = std::fs::read(root().join("bags/demo/demo.mcap")).unwrap();
        bytes.truncate(length);
        if !bytes.is_empty() {
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bag.mcap"), bytes).unwrap();
        if let Ok(bag) = Bag::open(dir.path(), Some("/camera/image/compressed")) {
            let _ = bag.images().take(1000).filter(Result::is_ok).count();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_sqlite_bags(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bag.db3");
        crate::bags::write_sqlite_images(&file, 12);
        let mut bytes = std::fs::read(&file).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&file, bytes).unwrap();
        if let Ok(bag) = Bag::open(&file, None) {
            let _ = bag.images().take(1000).filter(Result::is_ok).count();
        }
    }
}

#[test]
fn any_user_text_is_tokenised_without_control_tokens_and_without_loss() {
    let model = load(&tiny_dir());
    let tokenizer = &model.tokenizer;
    let controls = [
        "<image>",
        "<|im_start|>",
        "<end_of_utterance>",
        "<global-img>",
    ];
    let control_ids = controls.map(|name| tokenizer.control(name).unwrap());
    proptest!(|(parts in prop::collection::vec(
        prop_oneof![3 => "\\PC{0,12}", 2 => prop::sample::select(controls.to_vec()).prop_map(String::from), 1 => "[<>|_a-z]{0,6}"],
        0..6,
    ))| {
        let text = parts.concat().replace('\u{FDD0}', "");
        let ids = tokenizer.encode(&tokenizer.guard(&text)).unwrap();
        prop_assert!(ids.iter().all(|id| !control_ids.contains(id)));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    });
}
