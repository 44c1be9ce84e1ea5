//! The topic that is taken of a bag, and the command line on bags that hold nothing to use.

use std::process::{Command, Output};

use super::*;
use crate::support::tiny_dir;

#[test]
fn a_topic_with_colours_is_chosen_and_without_one_that_can_be_used_all_are_listed() {
    let dir = folder();
    let of = |topic, encoding| {
        move |i| {
            (
                topic,
                u64::from(i) * 100,
                serialized::<LittleEndian>(&image(i, encoding), 1),
            )
        }
    };
    let mut messages: Vec<Message<'_>> = (0..4).map(of("/depth/image", "16UC1")).collect();
    let file = dir.path().join("a.mcap");
    write_mcap(&file, WriteOptions::new(), &messages);
    let error = refused(dir.path(), None);
    for word in ["/depth/image", "16UC1", "expected rgb8"] {
        assert!(error.contains(word), "{error}, expected {word}");
    }
    messages.extend((0..4).map(of("/a_infra/image", "mono8")));
    write_mcap(&file, WriteOptions::new(), &messages);
    assert_eq!(open(dir.path()).topic(), "/a_infra/image");
    messages.extend((0..4).map(of("/z_color/image", "rgb8")));
    write_mcap(&file, WriteOptions::new(), &messages);
    assert_eq!(open(dir.path()).topic(), "/z_color/image");
    // What a node makes of a camera's images is no camera, though its names come first.
    for topic in ["/a/evidence_image", "/a/evidence_image/compressed"] {
        messages.extend((0..4).map(of(topic, "rgb8")));
    }
    write_mcap(&file, WriteOptions::new(), &messages);
    assert_eq!(open(dir.path()).topic(), "/z_color/image");
    assert_eq!(
        Bag::open(dir.path(), Some("/depth/image")).unwrap().count(),
        4
    );

    let error = refused(dir.path(), Some("/camera"));
    for word in [
        "no topic /camera",
        "/depth/image (sensor_msgs/msg/Image, 4 messages)",
        "/z_color/image",
    ] {
        assert!(error.contains(word), "{error}, expected {word}");
    }
    write_mcap_of(
        "std_msgs/msg/String",
        "cdr",
        &file,
        WriteOptions::new(),
        &messages,
    );
    let error = refused(dir.path(), None);
    assert!(
        error.contains("/z_color/image (std_msgs/msg/String)"),
        "{error}"
    );
    let error = refused(dir.path(), Some("/depth/image"));
    assert!(
        error.contains("type is std_msgs/msg/String, expected sensor_msgs/msg/Image"),
        "{error}"
    );
}

fn replay(bag: &Path, more: &[&str]) -> Output {
    let dir = folder();
    let script = dir.path().join("script.yaml");
    fs::write(
        &script,
        "instructions: [{id: a, at: 0.25, text: What is in view?}]",
    )
    .unwrap();
    Command::new(env!("CARGO_BIN_EXE_inf_mllm"))
        .arg("replay")
        .args(["--bag".as_ref(), bag.as_os_str()])
        .args(["--instructions".as_ref(), script.as_os_str()])
        .args(["--model".as_ref(), tiny_dir().as_os_str()])
        .args(["--out".as_ref(), dir.path().join("out.jsonl").as_os_str()])
        .args(["--budget", "200"])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn replay_counts_what_cannot_be_used_and_fails_where_nothing_can() {
    let dir = folder();
    let mut messages: Vec<_> = (0..6).map(of_camera).collect();
    messages[2].2.truncate(50);
    let file = dir.path().join("a.mcap");
    write_mcap(&file, WriteOptions::new(), &messages);
    let output = replay(dir.path(), &[]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        printed.contains("5 frames (1 rejected, 0 skipped)"),
        "{printed}"
    );
    // The script knows no true answers, so none is said to be wrong.
    assert!(printed.contains("1 answers, 0 errors"), "{printed}");
    assert!(!printed.contains('%'), "{printed}");

    let depth = |i| {
        (
            "/depth",
            u64::from(i) * 100,
            serialized::<LittleEndian>(&image(i, "16UC1"), 1),
        )
    };
    write_mcap(
        &file,
        WriteOptions::new(),
        &(0..3).map(depth).collect::<Vec<_>>(),
    );
    for (more, words) in [
        (vec![], ["no topic has images that can be used", "/depth"]),
        (
            vec!["--topic", "/depth"],
            [
                "no frame was used: of 3 images of /depth",
                "3 were rejected (encoding: 3)",
            ],
        ),
        (vec!["--topic", "/color"], ["no topic /color", "/depth"]),
    ] {
        let output = replay(dir.path(), &more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{more:?}");
        for word in words {
            assert!(error.contains(word), "{error}, expected {word}");
        }
    }
}

/// The camera and the number of each image.
fn cameras(bag: &Bag) -> Vec<(usize, i64)> {
    let images = bag.images().map(|image| image.unwrap());
    images.map(|image| (image.camera, number(&image))).collect()
}

#[test]
fn several_cameras_play_in_the_order_of_their_recording_within_and_across_files() {
    let dir = folder();
    let at = |topic, i: u32| (topic, u64::from(i) * 100, cdr(i));
    // The second camera begins while the first file is written, and is all that there is in the last one.
    let files = [
        (
            "a.mcap",
            vec![
                at("/front", 0),
                at("/front", 2),
                at("/rear", 1),
                at("/other", 1),
            ],
        ),
        ("b.mcap", vec![at("/rear", 3), at("/front", 4)]),
        ("c.mcap", vec![at("/rear", 5)]),
    ];
    for (name, messages) in &files {
        write_mcap(&dir.path().join(name), WriteOptions::new(), messages);
    }
    let all = [(1, 0), (0, 1), (1, 2), (0, 3), (1, 4), (0, 5)];
    let topics = ["/rear", "/front"];
    for listed in [false, true] {
        if listed {
            write_metadata(dir.path(), &files.each_ref().map(|(name, _)| *name));
        }
        let bag = Bag::of_cameras(dir.path(), &topics).unwrap();
        assert_eq!(cameras(&bag), all);
        assert_eq!((bag.topic().as_str(), bag.count()), ("/rear, /front", 6));
    }
    let error = Bag::of_cameras(dir.path(), &["/rear", "/top"])
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("no topic /top, expected one of: /front"),
        "{error}"
    );
}
