"""What `model` may be, and what the node says at its start of everything else that people give it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
from conftest import ROOT, START_SECONDS, Start
from node_process import NodeProcess

MODEL = ROOT / "models" / "demo"


def refusal(model: Path, **parameters: str) -> str:
    """Starts a node on something that is no checkpoint, with backtraces asked for; what it wrote to stderr."""
    process = NodeProcess({"model": str(model), **parameters})
    status = process.wait_end(START_SECONDS)
    assert status is not None and status > 0, process.log
    for word in ("panicked", "stack backtrace", "Some("):
        assert word not in process.log, process.log
    return process.log


def git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6650136\n"
    (folder / "model.safetensors").write_text(pointer)


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def bitsandbytes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.none.at.all }}")


def link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/4d7a")


def bias_that_is_not_there(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_bias"] = True
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (git_lfs_pointer, ["model.safetensors", "git lfs pull"]),
        (pickle, ["pytorch_model.bin", "never loaded", "save_pretrained"]),
        (bitsandbytes, ["quantization_config is bitsandbytes with 4 bits", "q4_k"]),
        (broken_template, ["chat_template.jinja", "undefined"]),
        (link_to_nothing, ["model.safetensors is a link to ../../blobs/4d7a"]),
        (bias_that_is_not_there, ["q_proj.bias", "missing"]),
    ],
)
def test_what_is_no_checkpoint_is_named_in_the_report_and_by_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], words: list[str]
) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    folder = shutil.copytree(MODEL, tmp_path / "model")
    damage(folder)
    lines = refusal(folder).splitlines()
    report = [line for line in lines if "PROBLEM" in line]
    errors = [line for line in lines if "ERROR" in line]
    assert report and errors, lines
    for word in words:
        assert any(word in line for line in report), report
        assert any(word in line for line in errors), errors


@pytest.mark.usefixtures("domain")
def test_the_file_of_a_decoder_is_taken_as_a_model_and_its_tower_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "decoder.GGUF"
    shutil.copy(ROOT / "tests" / "golden" / "gguf" / "llama.gguf", file)
    log = refusal(file)
    assert f"{file}: a decoder alone" in log
    assert "mmproj" in log


def test_a_home_and_the_root_of_a_hub_cache(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path / "hub" / "models--org--demo"
    shutil.copytree(MODEL, root / "snapshots" / "0a1b")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0a1b")
    process, _ = start({"model": "~/hub/models--org--demo", "dtype": "f16"})
    # What a frame takes in the stream, and the type that was asked for.
    assert "19 tokens (9 of the image; 21 where it begins a turn)" in process.log
    assert "f16 on cpu" in process.log


HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
COMMIT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which HF_HOME names to the node."""
    for name in HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    cache = tmp_path / "huggingface" / "hub"
    cache.mkdir(parents=True)
    return cache


def download(hub: Path, model: Path) -> Path:
    """Puts a model into the cache as org/model, laid out as `hf download` leaves it; the folder of its files."""
    root = hub / "models--org--model"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(model.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_name_on_the_hub_is_taken_from_the_cache_and_answers(hub: Path, start: Start) -> None:
    snapshot = download(hub, MODEL)
    process, client = start({"model": "org/model"})
    assert str(snapshot) in process.log
    client.show(pictures.raw(sec=1))
    answer = client.ask("What do you see?")
    assert not answer.error and answer.text, answer


@pytest.mark.usefixtures("domain")
def test_a_name_that_is_not_in_the_cache_is_told_with_the_command_that_downloads_it(hub: Path) -> None:
    log = refusal(Path("org/absent"))
    for word in ("org/absent", f"in the hub's cache {hub} (HF_HOME)", "`hf download org/absent`"):
        assert word in log, log
    assert list(hub.iterdir()) == []


@pytest.mark.usefixtures("domain")
def test_a_download_that_was_not_finished_is_told_with_what_is_missing(hub: Path) -> None:
    snapshot = download(hub, MODEL)
    for name in ("model.safetensors", "tokenizer.json"):
        (snapshot / name).unlink()
    (hub / "models--org--model" / "blobs" / "4d7a.incomplete").write_bytes(bytes(1_500_000))
    log = refusal(Path("org/model"))
    for word in ("model.safetensors, tokenizer.json are missing", "1.5 MB", "`hf download org/model` goes on with it"):
        assert word in log, log


def quantisations(folder: Path) -> Path:
    """A folder with two decoders and no tower, which text alone could use."""
    folder.mkdir()
    for name in ("llama", "qwen3"):
        shutil.copy(ROOT / "tests" / "golden" / "gguf" / f"{name}.gguf", folder)
    return folder


@pytest.mark.usefixtures("domain")
def test_several_decoders_in_one_place_are_listed_and_the_chosen_one_is_taken(tmp_path: Path) -> None:
    folder = quantisations(tmp_path / "models")
    log = refusal(folder)
    for word in ("llama.gguf (llama, 0.2 MB, ", "qwen3.gguf (qwen3, 0.2 MB, ", "model_file"):
        assert word in log, log
    log = refusal(folder, model_file="qwen3.gguf")
    assert f"{folder}/qwen3.gguf: a decoder alone" in log
    for name in ("../models/qwen3.gguf", str(MODEL / "model.safetensors")):
        log = refusal(folder, model_file=name)
        assert "model_file is" in log and f"the name of a file within {folder}" in log, log


def test_weights_that_are_chosen_by_name_answer(start: Start, tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    _, client = start({"model": str(folder), "model_file": "model.fp16.safetensors"})
    client.show(pictures.raw(sec=1))
    answer = client.ask("What do you see?")
    assert not answer.error and answer.text, answer
