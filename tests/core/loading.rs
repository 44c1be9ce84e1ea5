//! How much memory loading takes: the weights, and little more for a moment.

use std::env;
use std::path::Path;
use std::process::Command;

use candle_core::DType;
use inf_mllm::model::weights::Quantization;
use safetensors::Dtype;

#[path = "../../examples/load_speed/checkpoint.rs"]
mod checkpoint;

use checkpoint::Form;

const PATH: &str = "INF_MLLM_TEST_LOAD";
const WAY: &str = "INF_MLLM_TEST_WAY";

/// Type of the arithmetic, what becomes of matrices, bytes for 256 numbers of the largest matrix.
const WAYS: [(DType, Quantization, u64); 4] = [
    (DType::F32, Quantization::Auto, 1024),
    (DType::BF16, Quantization::None, 1024),
    (DType::F32, Quantization::Q8_0, 272),
    (DType::F32, Quantization::Q4K, 144),
];

/// Loads in a process of its own, whose peak is that of the loading.
#[test]
#[ignore = "what the test below runs"]
fn load_and_print_the_peak() {
    let (Ok(path), Ok(way)) = (env::var(PATH), env::var(WAY)) else {
        return;
    };
    let (dtype, quantization, _) = WAYS[way.parse::<usize>().unwrap()];
    let before = checkpoint::peak_memory().unwrap();
    let decoder = checkpoint::load(Path::new(&path), quantization, dtype).unwrap();
    let peak = checkpoint::peak_memory().unwrap() - before;
    println!("\nweights {} peak {peak}", decoder.weight_bytes());
}

#[test]
fn the_peak_is_the_weights_and_little_more() {
    let dir = tempfile::tempdir().unwrap();
    // The largest matrix has 16384 x 1024.
    checkpoint::write(dir.path(), 128 << 20, Form::Floats(Dtype::BF16)).unwrap();
    check_peak(dir.path());
}

#[test]
fn the_peak_of_packed_matrices_is_no_higher() {
    let dir = tempfile::tempdir().unwrap();
    // So large that what threads and allocator hold at a time, which differs from run to run, is little of it.
    checkpoint::write(dir.path(), 256 << 20, Form::Awq).unwrap();
    check_peak(dir.path());
}

fn check_peak(dir: &Path) {
    let numbers = 16384 * 1024;
    for (way, (dtype, quantization, bytes)) in WAYS.iter().enumerate() {
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "loading::load_and_print_the_peak",
                "--ignored",
                "--nocapture",
            ])
            .envs([(PATH, dir.as_os_str()), (WAY, way.to_string().as_ref())])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with("weights "));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        let words = line.split(' ').collect::<Vec<_>>();
        let (weights, peak) = (
            words[1].parse::<u64>().unwrap(),
            words[3].parse::<u64>().unwrap(),
        );
        let one = match quantization {
            // Nothing but the weights.
            Quantization::Auto | Quantization::None => 0,
            _ => numbers * bytes / 256,
        };
        assert!(
            peak <= weights + weights / 10 + one,
            "{dtype:?}, {quantization}: {peak} bytes at most for {weights} of weights"
        );
    }
}
