//! `inf_mllm bench`: what it says of speed, at a shape made for tests.

use serde_json::Value;

use crate::commands::{failed, run, succeeded};

fn decode(more: &[&str]) -> Value {
    let args = [
        "bench", "decode", "--shape", "tiny", "--device", "cpu", "--json",
    ];
    serde_json::from_str(&succeeded(&run(&[&args, more].concat()))).unwrap()
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

/// Weights that a token of the shape `tiny` reads: layers, norms and output layer, but one row of the embeddings.
fn numbers_read() -> [usize; 2] {
    let (hidden, inner, vocabulary, layers) = (256, 512, 1024, 3);
    let matrices = 2 * hidden * hidden + 2 * hidden * 128 + 3 * hidden * inner;
    let norms = (2 * layers + 1) * hidden;
    [layers * matrices + vocabulary * hidden + hidden, norms]
}

#[test]
fn a_token_is_measured_against_the_bytes_that_it_reads() {
    let [matrices, norms] = numbers_read();
    for (kind, bytes) in [
        ("f32", matrices * 4),
        // On the CPU bf16 is computed in f32.
        ("bf16", matrices * 4),
        ("q8_0", matrices / 32 * 34),
        // In panels the scales and minima of 32 weights have a byte each, not 6 bits.
        ("q4_k", matrices / 256 * 148),
    ] {
        let told = decode(&[
            "--weights",
            kind,
            "--fill",
            "100",
            "--tokens",
            "40",
            "--budget",
            "128",
        ]);
        let read = number(&told, "/read/weights") as usize;
        assert_eq!(read, bytes + 4 * norms, "{kind}");
        assert_eq!(number(&told, "/tokens"), 40.0);
        assert_eq!(told["weights"], kind);
        // 100 + 16 tokens before the clock starts, 40 with it, 128 slots of which a compaction frees 16: at tokens 13 and 29.
        assert_eq!(number(&told, "/compactions/count"), 2.0, "{kind}");
        // Keys and values of 3 layers, 2 heads of 64, f32, at 112 to 127 tokens.
        let token = 3 * 2 * 128 * 4;
        let slots = number(&told, "/read/cache") as usize / token;
        assert!((112..=127).contains(&slots), "{slots} slots");
        let floor = number(&told, "/floor_ms");
        let expected = (number(&told, "/read/weights") + number(&told, "/read/cache"))
            / number(&told, "/copy/gb_per_s")
            * 1e-6;
        assert!((floor / expected - 1.0).abs() < 1e-9);
        let over = number(&told, "/ms/median") / floor;
        assert!((number(&told, "/over_floor") / over - 1.0).abs() < 1e-9);
        assert!(number(&told, "/memory/after") > 1e6);
    }
}

#[test]
fn the_first_and_the_last_tokens_are_compared_once_the_cache_is_full() {
    let told = decode(&["--fill", "16", "--tokens", "300", "--budget", "128"]);
    assert_eq!(number(&told, "/window"), 150.0);
    assert_eq!(number(&told, "/first/count"), 150.0);
    let flatness = number(&told, "/last/mean") / number(&told, "/first/mean");
    assert!((number(&told, "/flatness") / flatness - 1.0).abs() < 1e-9);
}

#[test]
fn decoding_ends_when_its_time_is_up() {
    let told = decode(&["--fill", "8", "--tokens", "100000000", "--seconds", "1"]);
    let tokens = number(&told, "/tokens");
    assert!(tokens > 0.0 && tokens < 1e8 && number(&told, "/asked") == 1e8);
}

#[test]
fn frames_go_into_the_cache_beside_tokens_that_are_due() {
    let args = [
        "bench", "frames", "--shape", "tiny", "--device", "cpu", "--size", "64x64",
    ];
    let more = [
        "--json",
        "--budget",
        "256",
        "--seconds",
        "1",
        "--tokens-per-second",
        "30",
    ];
    let told: Value = serde_json::from_str(&succeeded(&run(&[&args[..], &more].concat()))).unwrap();
    // 8 x 8 patches, of which 2 x 2 become one token.
    assert_eq!(number(&told, "/tokens_per_frame"), 16.0);
    assert!(number(&told, "/frames") > 0.0);
    let rate = number(&told, "/tokens_per_s");
    assert!(rate > 0.0 && rate < 32.0, "{rate}");
    let seconds = number(&told, "/seconds");
    let frames = number(&told, "/frames") / seconds;
    assert!((number(&told, "/frames_per_s") / frames - 1.0).abs() < 1e-9);
}

#[test]
fn the_table_names_the_model_and_its_floor() {
    let args = ["bench", "decode", "--shape", "tiny", "--device", "cpu"];
    let more = ["--weights", "q8_0", "--fill", "8", "--tokens", "4"];
    let table = succeeded(&run(&[&args[..], &more].concat()));
    for part in [
        "tiny, weights q8_0, computed in f32",
        "times that were taken",
        "flatness",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn what_cannot_be_measured_is_told() {
    let decode = |more: &[&str]| {
        let args = ["bench", "decode", "--device", "cpu"];
        failed(&run(&[&args, more].concat()))
    };
    let error = decode(&["--shape", "SmolVLM-5B"]);
    assert!(
        error.contains("SmolVLM-5B") && error.contains("SmolVLM2-2.2B"),
        "{error}"
    );
    let error = decode(&["--shape", "tiny", "--weights", "q3"]);
    assert!(
        error.contains("q3 is unknown") && error.contains("q4_k"),
        "{error}"
    );
    let error = decode(&["--shape", "tiny", "--weights", "f32", "--dtype", "bf16"]);
    assert!(error.contains("--dtype"), "{error}");
    let error = decode(&["--shape", "tiny", "--tokens", "0"]);
    assert!(error.contains("tokens is 0"), "{error}");
    let error = decode(&["--shape", "tiny", "--budget", "999999"]);
    assert!(error.contains("budget is 999999"), "{error}");
    let error = failed(&run(&[
        "bench", "frames", "--shape", "tiny", "--size", "0x5",
    ]));
    assert!(error.contains("0x5 is no size"), "{error}");
}
