//! What bags are written as.

use super::*;

#[test]
fn what_rosbag2_compressed_by_itself_is_read() {
    let dir = folder();
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 3).unwrap();
    let packed: Vec<_> = (0..9)
        .map(|i| (TOPIC, u64::from(i) * 100, zstd(&cdr(i))))
        .collect();
    write_mcap(
        &dir.path().join("message.mcap"),
        WriteOptions::new(),
        &packed,
    );
    write_sqlite(
        &dir.path().join("message.db3"),
        false,
        "sensor_msgs/msg/Image",
        &packed,
    );
    let plain: Vec<_> = (0..9).map(of_camera).collect();
    write_mcap(&dir.path().join("file.mcap"), WriteOptions::new(), &plain);
    write_sqlite(
        &dir.path().join("file.db3"),
        false,
        "sensor_msgs/msg/Image",
        &plain,
    );
    let all: Vec<i64> = (0..9).collect();
    for name in ["message.mcap", "message.db3"] {
        assert_eq!(numbers(&open(&dir.path().join(name))), all, "{name}");
    }
    for name in ["file.mcap", "file.db3"] {
        let bag = folder();
        let packed = zstd(&fs::read(dir.path().join(name)).unwrap());
        fs::write(bag.path().join(format!("{name}.zstd")), packed).unwrap();
        assert_eq!(numbers(&open(bag.path())), all, "{name}.zstd");
        // The metadata may have the name of before.
        write_metadata(bag.path(), &[name]);
        assert_eq!(numbers(&open(bag.path())), all, "{name}.zstd");
    }
}

#[test]
fn types_without_msg_and_both_byte_orders_are_read() {
    let dir = folder();
    let file = dir.path().join("a.mcap");
    let big = |i| {
        (
            TOPIC,
            u64::from(i) * 100,
            serialized::<BigEndian>(&image(i, "rgb8"), 0),
        )
    };
    let messages = [of_camera(0), big(1), of_camera(2)];
    write_mcap_of(
        "sensor_msgs/Image",
        "cdr",
        &file,
        WriteOptions::new(),
        &messages,
    );
    assert_eq!(numbers(&open(dir.path())), [0, 1, 2]);
    write_mcap_of(
        "sensor_msgs/Image",
        "ros1",
        &file,
        WriteOptions::new(),
        &messages,
    );
    let error = refused(dir.path(), None);
    assert!(
        error.contains("serialised as ros1, expected cdr"),
        "{error}"
    );
}

#[test]
fn bags_of_sqlite3_are_read_in_the_order_of_time_whatever_their_release() {
    for (first_release, message_type) in [
        (true, "sensor_msgs/Image"),
        (false, "sensor_msgs/msg/Image"),
    ] {
        let dir = folder();
        let mut messages: Vec<_> = (0..20).map(of_camera).collect();
        messages.swap(3, 11);
        messages.push(("/other", 50, cdr(77)));
        // A name with what has a meaning in a URI.
        let file = dir.path().join("bag of 100%?.db3");
        write_sqlite(&file, first_release, message_type, &messages);
        let bag = Bag::open(dir.path(), Some(TOPIC)).unwrap();
        assert_eq!(numbers(&bag), (0..20).collect::<Vec<_>>());
        assert_eq!(
            bag.images().nth(7).unwrap().unwrap().arrival_ns,
            700_000_000
        );
        let entries = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(entries, 1, "nothing is written beside the bag");
    }
    let dir = folder();
    let file = dir.path().join("no_bag.db3");
    Connection::open(&file)
        .unwrap()
        .execute_batch("CREATE TABLE t(x)")
        .unwrap();
    assert!(refused(&file, None).contains("no such table: topics"));
}

/// What a recorder that was killed has not yet written into the database itself.
#[test]
fn the_write_ahead_log_of_a_sqlite3_bag_is_part_of_it() {
    let dir = folder();
    let file = dir.path().join("a.db3");
    write_sqlite(&file, false, "sensor_msgs/msg/Image", &[of_camera(0)]);
    let database = Connection::open(&file).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database
        .pragma_update(None, "wal_autocheckpoint", 0)
        .unwrap();
    let insert = "INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?1, ?2)";
    database.execute(insert, (100_000_000, cdr(1))).unwrap();
    let killed = folder();
    for name in ["a.db3", "a.db3-wal"] {
        fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    assert_eq!(numbers(&open(killed.path())), [0, 1]);
}

#[test]
fn a_nanosecond_part_of_a_second_and_more_is_carried_over() {
    let dir = folder();
    let mut late = image(0, "rgb8");
    (late.header.sec, late.header.nanosec) = (99, 2_500_000_000);
    let message = (TOPIC, 0, serialized::<LittleEndian>(&late, 1));
    write_mcap(&dir.path().join("a.mcap"), WriteOptions::new(), &[message]);
    let image = open(dir.path()).images().next().unwrap().unwrap();
    assert_eq!(image.stamp_ns, 101_500_000_000);
}

/// The pictures come whole out of every storage.
#[test]
fn the_pixels_are_those_that_were_recorded() {
    let dir = folder();
    write_mcap(
        &dir.path().join("a.mcap"),
        WriteOptions::new(),
        &[of_camera(5)],
    );
    write_sqlite(
        &dir.path().join("a.db3"),
        false,
        "sensor_msgs/msg/Image",
        &[of_camera(5)],
    );
    for name in ["a.mcap", "a.db3"] {
        let read = open(&dir.path().join(name))
            .images()
            .next()
            .unwrap()
            .unwrap();
        let ImageData::Raw {
            data,
            step,
            encoding,
            ..
        } = read.data
        else {
            panic!("{name}: no raw image");
        };
        assert_eq!(
            (data, step, encoding.as_str()),
            (image(5, "rgb8").data, SIDE * 3, "rgb8")
        );
        assert_eq!(read.frame_id, "camera");
    }
}

#[test]
fn files_that_are_no_bag_are_named_for_what_they_are() {
    let dir = folder();
    let file = |name: &str, content: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let old = file("drive.bag", b"#ROSBAG V2.0\nE\0\0\0");
    for path in [old.as_path(), dir.path()] {
        let error = refused(path, None);
        assert!(error.contains("drive.bag is a ROS 1 bag"), "{error}");
        assert!(error.contains("rosbags-convert --src"), "{error}");
    }
    let empty = file("empty.mcap", b"");
    assert!(refused(&empty, None).contains("empty.mcap: is empty"));
    let other = file("other.mcap", b"something else than a bag");
    assert!(refused(&other, None).contains("is neither mcap nor sqlite3"));
    assert!(refused(&dir.path().join("none"), None).contains("none"));
    assert!(refused(folder().path(), None).contains("no file in it ends with .mcap, .db3"));
}
