//! What a chunk, a picture and a cache take in memory: as much as is said of them, to what the program's own allocations come to.
//!
//! In a binary of its own: the allocator counts for the whole process, so that everything is one test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device};
use image::{Rgb, RgbImage};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::working::Chunk;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::vision::View;
use inf_mllm::model::weights::Quantization;

/// The system's allocator, and how much it has given.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        System.alloc(layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        System.alloc_zeroed(layout)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        System.dealloc(at, layout);
    }
}

/// What there was more at most while `work` was done than before, bytes.
fn most<T>(work: impl FnOnce() -> T) -> usize {
    let before = LIVE.load(Relaxed);
    MOST.store(before, Relaxed);
    work();
    MOST.load(Relaxed) - before
}

fn family(name: &str) -> PathBuf {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    golden.join("families").join(name)
}

/// Of each kind of layers one, and blocks beside floats.
const DECODERS: [(&str, Quantization); 7] = [
    ("llama", Quantization::None),
    ("llama", Quantization::Q8_0),
    ("qwen3", Quantization::None),
    ("gpt_neox", Quantization::None),
    ("lfm2_vl", Quantization::None),
    ("qwen3_5", Quantization::None),
    ("cosmos3_edge", Quantization::None),
];

/// What is noted of a token beside its numbers: id, mark, place, position, and where rows of products lie.
const NOTED: usize = 400;

#[test]
fn memory_is_what_is_said() {
    for (name, quantization) in DECODERS {
        check_chunks(name, quantization);
    }
    for policy in PolicyKind::ALL {
        check_cache(policy);
    }
    for name in [
        "idefics3",
        "llava",
        "internvl",
        "lfm2_vl",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "cosmos3_edge",
    ] {
        check_frame(name);
    }
}

fn check_chunks(name: &str, quantization: Quantization) {
    let device = Device::Cpu;
    let model = TextModel::load(&family(name), quantization, Precision::F32, &device).unwrap();
    let longest = model.shape.max_positions.min(512);
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: longest,
        ..CacheConfig::default()
    };
    let taken = |tokens: usize| {
        let mut cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &device).unwrap();
        let taken = most(|| {
            let ids = (0..tokens as u32).map(|id| id % 16).collect::<Vec<_>>();
            let x = model.decoder.embed(&ids).unwrap();
            model
                .decoder
                .append(&x, &vec![Mark::default(); tokens], &mut cache)
                .unwrap();
        });
        let chunk = Chunk {
            tokens,
            slots: tokens,
            dtype: DType::F32,
            in_panels: quantization != Quantization::None,
            waiting: 0,
        };
        (
            taken,
            model.config.working_bytes(&model.shape, &chunk) as usize,
        )
    };
    // What is made once, such as the room of a library's products, is there then.
    taken(longest);
    let ((few, said_of_few), (many, said_of_many)) = (taken(longest / 2), taken(longest));
    let (more, said) = (many - few, said_of_many - said_of_few);
    let tokens = longest - longest / 2;
    assert!(
        (said..said + tokens * NOTED).contains(&more),
        "{name}, {quantization}: {} bytes for a token, said to be {}",
        more / tokens,
        said / tokens
    );
}

fn check_cache(policy: PolicyKind) {
    let device = Device::Cpu;
    for name in ["llama", "qwen2_vl"] {
        let model =
            TextModel::load(&family(name), Quantization::None, Precision::F32, &device).unwrap();
        let config = CacheConfig {
            policy,
            budget: model.shape.max_positions / 2,
            ..CacheConfig::default()
        };
        let before = LIVE.load(Relaxed);
        let cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &device).unwrap();
        let taken = LIVE.load(Relaxed) - before;
        let beside = model.shape.beside_bytes(&config, DType::F32).unwrap() as usize;
        let said = cache.usage().bytes + beside;
        assert!(
            taken.abs_diff(said) < said / 20,
            "{name}, {policy}: {taken} bytes, said to be {said}"
        );
    }
}

fn check_frame(name: &str) {
    let checkpoint = Checkpoint::open(&family(name)).unwrap();
    let model = Mllm::load(
        &checkpoint,
        Quantization::None,
        Precision::F32,
        &Device::Cpu,
    )
    .unwrap();
    let picture = RgbImage::from_fn(640, 480, |x, y| Rgb([x as u8, y as u8, 7]));
    let prepared = model.vision.prepare(&picture, View::Frame);
    let work = || {
        let pixels = model.vision.pixels(&prepared).unwrap();
        model.vision.encode(&pixels).unwrap()
    };
    most(work);
    let taken = most(work);
    let said = model.vision.working(&prepared.layout).bytes as usize;
    // Of towers this small much is lists of rows; two frames that are taken together are there one by one, too.
    assert!(
        (taken / 2..2 * taken).contains(&said),
        "{name}: {taken} bytes for a frame, said to be {said}"
    );
}
