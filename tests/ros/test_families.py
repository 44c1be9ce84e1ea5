"""The node runs a checkpoint of every multimodal family as it is published: frames, evictions, an answer, and what it says of it."""

import json

import pictures
import pytest
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning

FAMILIES = ROOT / "tests" / "golden" / "families"
MULTIMODAL = sorted(path.parent.name for path in FAMILIES.glob("*/preprocessor_config.json"))
FRAMES = 12
BUDGET = 96
"""Tokens: enough for two frames of any of them, too few for all."""


def test_every_kind_of_checkpoint_is_there() -> None:
    kinds = {json.loads((FAMILIES / name / "config.json").read_text())["model_type"] for name in MULTIMODAL}
    assert kinds >= {"idefics3", "llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl"}


@pytest.mark.parametrize("family", MULTIMODAL)
def test_the_node_runs_a_published_checkpoint(family: str, start: Start) -> None:
    directory = FAMILIES / family
    process, client = start(
        {
            "model": str(directory),
            "budget": BUDGET,
            "system_prompt": "",
            "image_transport": "compressed",
            "max_new_tokens": 6,
        },
        compressed=True,
    )
    for frame in pictures.demo_frames()[:FRAMES]:
        client.show(frame.data)
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
