//! The order in which messages are played, and files that end anywhere or are damaged.

use proptest::prelude::*;

use super::*;

#[test]
fn split_files_play_in_the_order_of_the_metadata_and_without_it_by_start_time() {
    let dir = folder();
    let names: Vec<String> = (0..12).map(|i| format!("bag_{i}.mcap")).collect();
    for (i, name) in (0..).zip(&names) {
        let messages: Vec<_> = (3 * i..3 * i + 3).map(of_camera).collect();
        write_mcap(&dir.path().join(name), WriteOptions::new(), &messages);
    }
    let all: Vec<i64> = (0..36).collect();
    assert_eq!(numbers(&open(dir.path())), all);
    let listed: Vec<&str> = names.iter().map(String::as_str).collect();
    write_metadata(dir.path(), &listed);
    assert_eq!(numbers(&open(dir.path())), all);
    assert_eq!(open(dir.path()).count(), 36);
    assert_eq!(numbers(&open(&dir.path().join("metadata.yaml"))), all);
    // One that is lost takes nothing else with it.
    fs::remove_file(dir.path().join("bag_3.mcap")).unwrap();
    let left: Vec<i64> = (0..36).filter(|i| !(9..12).contains(i)).collect();
    assert_eq!(numbers(&open(dir.path())), left);
}

/// As when the clock of the recorder is set while it records.
#[test]
fn the_order_of_the_metadata_holds_where_the_clock_was_set_back() {
    let dir = folder();
    let at = |log_ms: u64, i: u32| (TOPIC, log_ms, cdr(i));
    write_mcap(
        &dir.path().join("b.mcap"),
        WriteOptions::new(),
        &[at(9000, 0), at(9100, 1)],
    );
    write_mcap(
        &dir.path().join("a.mcap"),
        WriteOptions::new(),
        &[at(100, 2), at(200, 3)],
    );
    assert_eq!(numbers(&open(dir.path())), [2, 3, 0, 1]);
    write_metadata(dir.path(), &["b.mcap", "a.mcap"]);
    assert_eq!(numbers(&open(dir.path())), [0, 1, 2, 3]);
}

fn compressions() -> impl Strategy<Value = Option<Compression>> {
    prop::sample::select(vec![None, Some(Compression::Zstd), Some(Compression::Lz4)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the order in the files, their chunks, and which of their indexes were written.
    #[test]
    fn messages_play_in_the_order_of_their_recording_within_and_across_files(
        order in Just((0..40u32).collect::<Vec<_>>()).prop_shuffle(),
        split in 1usize..39,
        compression in compressions(),
        chunked: bool,
        indexed: bool,
        summary: bool,
        listed: bool,
    ) {
        let dir = folder();
        let options = || {
            small_chunks()
                .compression(compression)
                .use_chunks(chunked)
                .emit_message_indexes(indexed)
                .emit_summary_records(summary)
                .repeat_channels(summary)
        };
        let messages: Vec<_> = order.iter().map(|&i| of_camera(i)).collect();
        write_mcap(&dir.path().join("a.mcap"), options(), &messages[..split]);
        write_mcap(&dir.path().join("b.mcap"), options(), &messages[split..]);
        // Files whose times overlap are merged; the ends make sure that they do.
        write_mcap(&dir.path().join("c.mcap"), options(), &[(TOPIC, 0, cdr(0)), (TOPIC, 3900, cdr(39))]);
        if listed {
            write_metadata(dir.path(), &["c.mcap", "a.mcap", "b.mcap"]);
        }
        let mut expected: Vec<i64> = (0..40).chain([0, 39]).collect();
        expected.sort_unstable();
        let bag = open(dir.path());
        prop_assert_eq!(numbers(&bag), expected);
        let first = bag.images().next().unwrap().unwrap();
        prop_assert_eq!(first.arrival_ns, 0);
    }

    /// A recorder that is killed leaves a file that ends anywhere.
    #[test]
    fn of_a_file_that_was_not_closed_every_whole_message_is_used(
        compression in compressions(),
        chunked: bool,
        cut in 200usize..16_000,
    ) {
        let dir = folder();
        let file = dir.path().join("a.mcap");
        let options = || small_chunks().compression(compression).use_chunks(chunked);
        let messages: Vec<_> = (0..30).map(of_camera).collect();
        write_mcap(&file, options(), &messages);
        let whole = fs::read(&file).unwrap();
        let length = cut.min(whole.len() - 1);
        let left = &whole[..length];
        fs::write(&file, left).unwrap();
        // Without compression, those are whole whose last bytes are there.
        let there = |(_, _, data): &Message<'_>| left.windows(data.len()).any(|part| part == data);
        let count = messages.iter().filter(|message| there(message)).count();
        let used = Bag::open(&file, Some(TOPIC)).map_or(0, |bag| {
            let numbers = numbers(&bag);
            assert_eq!(numbers, (0..numbers.len() as i64).collect::<Vec<_>>());
            numbers.len()
        });
        match compression.filter(|_| chunked) {
            None => prop_assert_eq!(used, count),
            Some(_) => prop_assert!(used >= count),
        }
    }
}

#[test]
fn a_message_that_is_none_is_an_error_of_its_own_and_reading_goes_on() {
    let dir = folder();
    let mut messages: Vec<_> = (0..9).map(of_camera).collect();
    messages[4].2.truncate(40);
    messages[6].2 = vec![7; 3];
    write_mcap(&dir.path().join("a.mcap"), small_chunks(), &messages);
    let bag = open(dir.path());
    let read: Vec<_> = bag
        .images()
        .map(|image| image.ok().map(|image| number(&image)))
        .collect();
    let expected = [0, 1, 2, 3, -1, 5, -1, 7, 8].map(|i| (i >= 0).then_some(i));
    assert_eq!(read, expected);
    let error = bag.images().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("a.mcap") && error.contains(TOPIC), "{error}");
}

/// What a file claims costs nothing: only what is there is read.
#[test]
fn lengths_that_are_not_true_are_errors() {
    let dir = folder();
    let file = dir.path().join("a.mcap");
    for compression in [None, Some(Compression::Zstd), Some(Compression::Lz4)] {
        let messages: Vec<_> = (0..6).map(of_camera).collect();
        write_mcap(&file, small_chunks().compression(compression), &messages);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len().min(900) {
            let mut damaged = whole.clone();
            let end = (at + 8).min(damaged.len());
            damaged[at..end].fill(0xFF);
            fs::write(&file, &damaged).unwrap();
            if let Ok(bag) = Bag::open(&file, Some(TOPIC)) {
                assert!(bag.images().filter(Result::is_ok).count() <= 6);
            }
        }
    }
}
