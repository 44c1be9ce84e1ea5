"""An executable with the feature cuda starts anywhere, and says what keeps it from the GPU."""

import re
from pathlib import Path

import pytest
from stand_in_runs import FAMILIES, LIBRARIES, generate, random_checkpoint, run

MODEL = FAMILIES / "idefics3"


def test_without_a_driver_it_answers_on_the_cpu_and_says_why(tmp_path: Path) -> None:
    auto = run(tmp_path / "log", *generate(MODEL), libraries="")
    cpu = run(tmp_path / "log", *generate(MODEL, "--device", "cpu"), libraries="")
    assert (auto.code, cpu.code) == (0, 0), auto.errors + cpu.errors
    assert auto.said == cpu.said
    assert "no usable GPU, running on the CPU: no NVIDIA driver: libcuda.so.1: cannot open" in auto.errors
    assert "GPU" not in cpu.errors
    cuda = run(tmp_path / "log", *generate(MODEL, "--device", "cuda"), libraries="")
    assert cuda.code != 0
    assert "device cuda cannot be used: no NVIDIA driver: libcuda.so.1: cannot open" in cuda.errors


@pytest.mark.parametrize("missing", ["libcudart.so.13", "libcublas.so.13", "libcurand.so.10"])
def test_a_library_of_the_toolkit_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    for library in LIBRARIES.iterdir():
        if library.name != missing:
            (tmp_path / library.name).symlink_to(library)
    ran = run(tmp_path / "log", *generate(MODEL, "--device", "cuda"), libraries=str(tmp_path))
    assert ran.code != 0
    assert f"device cuda cannot be used: {missing}: cannot open" in ran.errors
    assert "the runtime libraries of CUDA 13.0 are needed" in ran.errors


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_with_a_driver_it_runs_on_the_gpu(tmp_path: Path, device: str) -> None:
    ran = run(tmp_path / "log", *generate(MODEL, "--device", device))
    assert ran.code == 0, ran.errors
    assert "no usable GPU" not in ran.errors
    calls = {name for event in ran.events for name in event["calls"]}
    assert {"cuMemAllocAsync", "kernel:cublasGemmStridedBatchedEx"} <= calls


def test_on_the_cpu_the_driver_is_not_asked(tmp_path: Path) -> None:
    ran = run(tmp_path / "log", *generate(MODEL, "--device", "cpu"))
    assert ran.code == 0, ran.errors
    calls = {name for event in ran.events for name in event["calls"]}
    assert calls <= {"__cudaRegisterFatBinary"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"STAND_IN_INIT": "100"}, "the NVIDIA driver finds no GPU"),
        ({"STAND_IN_INIT": "803"}, "cannot be initialised: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"STAND_IN_DRIVER": "12080"}, "knows CUDA up to 12.8, this executable was built with 13.0"),
        (
            {"STAND_IN_CAPABILITY": "86"},
            r"the GPU \(stand-in 0\) has compute capability 8.6, this executable is compiled for 9.0: .*CUDA_COMPUTE_CAP=86",
        ),
    ],
    ids=["no GPU", "driver not loaded", "old driver", "other GPU"],
)
def test_what_keeps_it_from_the_gpu_is_said(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    cuda = run(tmp_path / "log", *generate(MODEL, "--device", "cuda"), **settings)
    assert cuda.code != 0
    assert re.search(f"device cuda cannot be used: .*{said}", cuda.errors), cuda.errors
    auto = run(tmp_path / "log", *generate(MODEL), **settings)
    assert auto.code == 0, auto.errors
    assert re.search(f"running on the CPU: .*{said}", auto.errors), auto.errors


def test_weights_that_do_not_fit_are_told_with_their_size_and_what_is_free(tmp_path: Path) -> None:
    ran = run(tmp_path / "log", *generate(MODEL, "--device", "cuda"), STAND_IN_MEMORY="200000")
    assert ran.code != 0
    said = r"the weights \([\d.]+ MB in the files\) do not fit into the memory of cuda:0, of which [\d.]+ MB of 0\.2 MB are free"
    assert re.search(said, ran.errors), ran.errors


def test_a_budget_that_does_not_fit_is_refused_with_one_that_does(tmp_path: Path) -> None:
    memory = {"STAND_IN_MEMORY": "1200000000"}
    args = generate(random_checkpoint("SmolVLM-500M-Instruct"), "--device", "cuda", "--policy", "inf_mllm", "--budget")
    refused = run(tmp_path / "log", *args, "8192", **memory)
    assert refused.code != 0
    said = r"a budget of 8192 slots takes [\d.]+ MB of the GPU's memory, of which [\d.]+ MB of 1\.2 GB are free, expected at most (\d+)"
    fits = re.search(said, refused.errors)
    assert fits, refused.errors
    taken = run(tmp_path / "log", *args, fits[1], **memory)
    assert taken.code == 0, taken.errors
