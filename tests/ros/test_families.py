"""The node runs a checkpoint of every multimodal family as it is published: frames, evictions, an answer, and what it says of it."""

import json
from collections.abc import Sequence

import pictures
import pytest
from client import Client
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning
from node_process import NodeProcess
from sensor_msgs.msg import Image

GOLDEN = ROOT / "tests" / "golden"
FAMILIES = GOLDEN / "families"
MULTIMODAL = sorted(path.parent.name for path in FAMILIES.glob("*/preprocessor_config.json"))
GGUF = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Decoder and projector as llama.cpp's converter writes them."""
LIMITS = {name: {"frame_max_pixels": 1920} for name in ("qwen3_vl", "qwen3_5", "cosmos3_omni", "cosmos3_edge")}
"""Of tiny checkpoints, whose video processors make frames of more tokens than fit, and of GGUF files of one, whose frames are as large as published ones."""
FRAMES = 12
SAME = {"system_prompt": "", "max_new_tokens": 6}
BUDGET = 96
"""Tokens: enough for two frames of any of them, too few for all."""
GGUF_BUDGET = 900
"""The same of GGUF files, which do not say that frames of the tiny checkpoints are smaller than published."""


def test_every_kind_of_checkpoint_is_there() -> None:
    kinds = {json.loads((FAMILIES / name / "config.json").read_text())["model_type"] for name in MULTIMODAL}
    assert kinds >= {
        "idefics3",
        "llava",
        "llava_next",
        "llava_onevision",
        "internvl",
        "lfm2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
        "cosmos3_omni",
        "cosmos3_edge",
    }


@pytest.mark.parametrize("family", MULTIMODAL)
def test_the_node_runs_a_published_checkpoint(family: str, start: Start) -> None:
    parameters = {"model": str(FAMILIES / family), "budget": BUDGET, "image_transport": "compressed"}
    started = start(parameters | SAME | LIMITS.get(family, {}), compressed=True)
    runs(*started, [frame.data for frame in pictures.demo_frames()[:FRAMES]])


@pytest.mark.parametrize("family", GGUF)
def test_the_node_runs_gguf_files(family: str, start: Start) -> None:
    limits = LIMITS.get(family)
    parameters = {"budget": BUDGET if limits else GGUF_BUDGET, "frames_per_group": 1}
    started = start({"model": str(GOLDEN / "gguf" / family)} | parameters | SAME | (limits or {}))
    runs(*started, [pictures.raw(sec=sec) for sec in range(1, FRAMES + 1)])


def runs(process: NodeProcess, client: Client, frames: Sequence[Image | bytes]) -> None:
    """Frames until some are evicted, and an answer."""
    for frame in frames:
        client.show(frame)
    answer = client.ask("What is in view?")
    assert answer.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH), answer.error
    assert 1 <= answer.output_tokens <= 6
    assert answer.frames_seen == FRAMES
    assert answer.vision_tokens > 0
    stats = client.fresh_stats()
    assert stats.frames_used == FRAMES
    assert stats.tokens_evicted > 0
    assert stats.used <= stats.budget
    for told in ("family ", "expected memory ", "complete              yes"):
        assert told in process.log, process.log
