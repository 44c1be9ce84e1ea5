//! Frames resized and normalised in the GPU's kernels, run on the CPU: the values, the gate's decisions and the answers are those of the
//! CPU's own way.

use std::fs;

use image::{Rgb, RgbImage};
use inf_mllm::cache::parameter::Value as Parameter;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::threads::thread_pool;
use inf_mllm::model::vision::frames::FrameEncoder;
use inf_mllm::model::vision::View;
use inf_mllm::stream::{Session, SessionConfig, Taken};
use serde_json::{json, Value};

use crate::steps::kernels;
use crate::support::{golden, instruction, load, picture, tiny_config, tiny_dir};
use crate::variants::copy_of;

const FAMILIES: [&str; 12] = [
    "idefics3",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "internvl3_5",
    "lfm2_vl",
    "lfm2_5_vl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
];

/// Odd ones, tiny ones, a camera's, and one whose square is too large for a device.
const SIZES: [(u32, u32); 9] = [
    (1, 1),
    (2, 3),
    (24, 24),
    (37, 5),
    (5, 38),
    (301, 203),
    (640, 480),
    (96, 1500),
    (5000, 20),
];

fn noise((width, height): (u32, u32), grey: bool) -> RgbImage {
    let mut state = 7u32;
    RgbImage::from_fn(width, height, |x, _| {
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Edges from one end of the scale to the other are where filters overshoot.
            match x / 7 % 3 {
                0 => (state >> 24) as u8,
                1 => 255,
                _ => 0,
            }
        };
        match grey {
            true => Rgb([byte(); 3]),
            false => Rgb([byte(), byte(), byte()]),
        }
    })
}

fn compare(name: &str, model: &Mllm, sizes: &[(u32, u32)]) {
    let device = model.device();
    let encoder = FrameEncoder::new(model.vision.clone(), Some(kernels()), device);
    for &size in sizes {
        for grey in [false, size == SIZES[3]] {
            let picture = noise(size, grey);
            let prepared = model.vision.prepare(&picture, View::Frame);
            let want = model.vision.pixels(&prepared).unwrap();
            let look = encoder.look(&picture, true).unwrap();
            assert_eq!(look.prepared.layout, prepared.layout, "{name}, {size:?}");
            assert_eq!(look.prepared.tiles, prepared.tiles, "{name}, {size:?}");
            let got = encoder.pixels(&look).unwrap();
            assert_eq!(got.layout, want.layout, "{name}, {size:?}");
            let [got, want] = [&got.values, &want.values];
            assert_eq!(got.dims(), want.dims(), "{name}, {size:?}");
            let [got, want] = [got, want].map(|x| x.flatten_all().unwrap());
            let [got, want] = [got, want].map(|x| x.to_vec1::<f32>().unwrap());
            // A compiler may round a product and a sum at once.
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, f32::max);
            assert!(off < 1e-5, "{name}, {size:?}: {off}");
        }
    }
    // What nobody wants to see stays where it is.
    let look = encoder.look(&noise(SIZES[0], false), false).unwrap();
    assert!(look.prepared.tiles.is_empty());
}

#[test]
fn every_family_gets_the_values_that_the_cpu_makes() {
    for name in FAMILIES {
        compare(name, &load(&golden("families").join(name)), &SIZES);
    }
    // Longer than pictures may be: some of its pixels are left out.
    compare("smolvlm", &load(&tiny_dir()), &[(20_000, 90)]);
}

/// As SigLIP's processor has it, and as LLaVA-1.5's own.
#[test]
fn processors_that_stretch_or_pad_are_followed() {
    for pads in [false, true] {
        let copy = copy_of(&golden("families/llava"));
        let file = copy.path().join("preprocessor_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["size"] = json!({"height": 28, "width": 28});
        config["do_center_crop"] = json!(false);
        config["do_pad"] = json!(pads);
        config["resample"] = json!(2);
        fs::write(&file, config.to_string()).unwrap();
        compare(
            if pads { "padded" } else { "stretched" },
            &load(copy.path()),
            &SIZES,
        );
    }
}

fn session(config: &SessionConfig, in_kernels: bool) -> Session {
    let model = load(&config.model_dir);
    let pool = thread_pool(1, &Checkpoint::open(&config.model_dir).unwrap()).unwrap();
    let gpu = in_kernels.then(kernels);
    Session::with_kernels(model, pool, config.clone(), gpu).unwrap()
}

#[test]
fn the_gate_compares_what_lies_on_the_device() {
    let mut config = tiny_config();
    let colours = [[9, 9, 9], [9, 9, 9], [10, 9, 9], [200, 9, 9], [200, 9, 9]];
    let taken = |session: &mut Session, from: i64| {
        let frames = (from..).zip(colours);
        let frames = frames.map(|(i, colour)| picture(i * 100, colour));
        let taken = frames.map(|frame| session.push_frame(&frame).unwrap());
        taken.collect::<Vec<_>>()
    };
    config.gate.min_change = 0.01;
    let [mut plain, mut in_kernels] = [false, true].map(|on| session(&config, on));
    let expected = taken(&mut plain, 0);
    assert_eq!(expected.iter().filter(|&&t| t == Taken::Used).count(), 2);
    assert_eq!(taken(&mut in_kernels, 0), expected);

    // Where pictures were not compared, the first that is has nothing to be compared with.
    config.gate.min_change = 0.0;
    let mut later = session(&config, true);
    assert_eq!(taken(&mut later, 0), [Taken::Used; 5]);
    later
        .set_parameter("min_change", Parameter::Number(0.01))
        .unwrap();
    assert_eq!(
        later.push_frame(&picture(600, [200, 9, 9])).unwrap(),
        Taken::Used
    );
    let again = later.push_frame(&picture(700, [200, 9, 9])).unwrap();
    assert!(matches!(again, Taken::Skipped(_)));
}

#[test]
fn a_question_about_frames_from_the_kernels_gets_the_same_answer() {
    let config = tiny_config();
    let [plain, in_kernels] = [false, true].map(|on| {
        let mut session = session(&config, on);
        for i in 0..6 {
            let colour = [(i * 40) as u8, 90, 200];
            session.push_frame(&picture(i * 100, colour)).unwrap();
        }
        let asked = instruction("a", "What is in view?");
        let answer = session.ask(&asked, &|| false, &mut |_| ());
        assert_eq!(answer.error, None);
        (answer.token_ids, session.usage().tokens_seen)
    });
    assert_eq!(in_kernels, plain);
}
