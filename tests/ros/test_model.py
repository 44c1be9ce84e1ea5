"""What `model` may be, and what the node says at its start of everything else that people give it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Start
from node_process import NodeProcess

MODEL = ROOT / "models" / "demo"
START_SECONDS = 10.0


def refusal(model: Path) -> str:
    """Starts a node on something that is no checkpoint, with backtraces asked for; what it wrote to stderr."""
    process = NodeProcess({"model": str(model)})
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
