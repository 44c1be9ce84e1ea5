"""Every counter and gauge of CacheStats, counted again from what the camera and the user did in the same run."""

import json
import time
from collections import Counter

import pictures
import pytest
from client import Client
from conftest import ROOT, Start
from inf_mllm.msg import CacheStats, Reasoning
from node_process import NodeProcess
from recount import Recount, Tokens
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool

MODEL = ROOT / "models" / "demo"
SYSTEM_PROMPT = "You are a mobile robot. Answer briefly."
BUDGET, SLACK, N_RECENT, LONGEST = 192, 24, 60, 12
PREFIX = 14
"""Tokens of the system prompt."""
STEP = 0.5
"""Seconds between the stamps of two frames; twice what frame_rate allows."""
RATE_WINDOW = 5.0
"""Seconds over which frames_per_second counts."""
QUESTIONS = [
    "What is the closest object?",
    "How many objects are in view?",
    "Where is the red ball?",
    "Should the robot stop?",
]

PARAMETERS = {
    "system_prompt": SYSTEM_PROMPT,
    "budget": BUDGET,
    "slack": SLACK,
    "n_recent": N_RECENT,
    "max_new_tokens": LONGEST,
    "frame_rate": 1 / (STEP / 2),
    "min_change": 0.002,
    "time_jump_threshold": 5.0,
}


def seconds(stamp: object) -> float:
    """Of a Time or a Duration."""
    return stamp.sec + stamp.nanosec * 1e-9


class Run:
    """What is done to a node, written down beside it, and checked after every step."""

    def __init__(self, process: NodeProcess, client: Client, policy: str, recent: int | None) -> None:
        config = json.loads((MODEL / "config.json").read_text())
        text, vision = config["text_config"], config["vision_config"]
        image_tokens = (vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2
        # Keys and values, f32.
        width = text["num_key_value_heads"] * text["head_dim"]
        self.bytes = 2 * 4 * text["num_hidden_layers"] * width * BUDGET
        self.process, self.client, self.policy = process, client, policy
        self.cache = Recount(Tokens(MODEL), image_tokens, SYSTEM_PROMPT, BUDGET, SLACK, recent, LONGEST)
        self.count: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        # Seconds between which each frame was used.
        self.used: list[tuple[float, float]] = []
        self.now, self.picture, self.paused = 100.0, 0, False
        self.asked = 0
        self.last_answer: Reasoning | None = None

    def image(self, new: bool = True) -> Image:
        """An image of now, of something new or of what the last one showed."""
        self.picture += new
        sec, rest = divmod(self.now, 1)
        return pictures.raw(sec=int(sec), nanosec=round(rest * 1e9), seed=self.picture)

    def send(self, image: Image) -> None:
        """Publishes an image and waits until it is counted."""
        self.count["received"] += 1
        self.client.publish(image)
        self.client.wait(lambda: self.client.stats[-1].frames_received == self.count["received"], "the image")

    def use(self, jumped: bool = False) -> None:
        """A frame that is to be used."""
        self.now += STEP
        sent, began = time.time(), time.monotonic()
        self.send(self.image())
        self.count["used"] += 1
        self.client.wait(lambda: self.client.stats[-1].frames_used == self.count["used"], "the frame")
        took, seen = time.monotonic() - began, time.time()
        self.used.append((sent, seen))
        self.cache.frame(self.now, jumped)
        stats = self.check()
        times = [stats.frame_wait_time, stats.conversion_time, stats.vision_time, stats.prefill_time]
        assert all(seconds(duration) > 0 for duration in times)
        assert sum(map(seconds, times)) < took
        # The stamps are of another time than the clock's.
        assert sent - self.now < seconds(stats.transport_time) < seen - self.now

    def skip(self, reason: str, image: Image) -> None:
        self.send(image)
        self.count[reason] += 1
        self.check()

    def reject(self, reason: str, **fields: object) -> None:
        image = self.image(new=False)
        for name, value in fields.items():
            setattr(image, name, value)
        self.send(image)
        self.rejected[reason] += 1
        self.client.wait(lambda: self.client.stats[-1].frames_rejected == self.rejected.total(), "the refusal")
        self.check()

    def ask(self) -> None:
        text = QUESTIONS[self.asked % len(QUESTIONS)]
        answer = self.client.ask(text)
        self.count["answered"] += 1
        self.asked += 1
        self.last_answer = answer
        self.cache.answer(text, answer)
        self.check()

    def ask_in_vain(self, text: str) -> None:
        assert self.client.ask(text).finish_reason == Reasoning.FINISH_ERROR
        self.count["failed"] += 1
        self.check()

    def reset(self) -> None:
        assert self.client.reset().success
        self.cache.reset()
        self.check()

    def pause(self, paused: bool) -> None:
        assert self.client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=paused)).success
        self.paused = paused
        self.check()

    def check(self) -> CacheStats:
        """Compares everything."""
        stats = self.client.fresh_stats()
        cache, count = self.cache, self.count
        exact = {
            "policy": self.policy,
            "budget": BUDGET,
            "used": len(cache.cached),
            "prefix": cache.prefix,
            "bytes": self.bytes,
            "tokens_seen": cache.seen,
            "tokens_evicted": cache.evicted,
            "compactions": cache.compactions,
            "frames_received": count["received"],
            "frames_used": count["used"],
            "frames_superseded": 0,
            "frames_rejected": self.rejected.total(),
            "frames_skipped_rate": count["rate"],
            "frames_skipped_unchanged": count["unchanged"],
            "frames_skipped_paused": count["paused"],
            "time_jumps": count["jumps"],
            "paused": self.paused,
            "instructions_received": count["answered"] + count["failed"],
            "instructions_answered": count["answered"],
            "instructions_failed": count["failed"],
        }
        assert {name: getattr(stats, name) for name in exact} == exact
        assert dict(zip(stats.reject_reasons, stats.reject_counts, strict=True)) == dict(self.rejected)
        assert stats.relevant == cache.relevant
        assert stats.recent == stats.used - stats.prefix - stats.relevant
        assert stats.header.frame_id == (pictures.FRAME_ID if count["used"] else "")
        assert abs(seconds(stats.header.stamp) - time.time()) < 2
        self.check_rate(stats)
        if self.policy in ("window", "streaming_llm"):
            # The others keep what their scores say; how many tokens that are is counted all the same.
            self.check_ages(stats)
        if self.last_answer is not None:
            decode = seconds(stats.decode_time) * self.last_answer.output_tokens
            assert 0 < decode < seconds(self.last_answer.latency)
        return stats

    def check_rate(self, stats: CacheStats) -> None:
        """Between the frames used surely and those used possibly within the window before the message."""
        since, slack = seconds(stats.header.stamp) - RATE_WINDOW, 0.2
        surely = sum(sent > since + slack for sent, _ in self.used)
        possibly = sum(seen > since - slack for _, seen in self.used)
        assert surely <= stats.frames_per_second * RATE_WINDOW + 1e-3
        assert stats.frames_per_second * RATE_WINDOW <= possibly + 1e-3

    def check_ages(self, stats: CacheStats) -> None:
        retained = self.cache.retained()
        ages = sorted(self.cache.clock[-1] - self.cache.clock[frame] for frame in retained) or [0.0]
        told = [stats.retained_age_min, stats.retained_age_median, stats.retained_age_max]
        assert told == pytest.approx([ages[0], ages[len(ages) // 2], ages[-1]], abs=1e-4)
        oldest = self.cache.stamps[retained[0]] if retained else 0.0
        assert seconds(stats.oldest_frame_stamp) == pytest.approx(oldest, abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "recent"),
    [
        ("window", None),
        ("streaming_llm", None),
        ("h2o", (BUDGET - SLACK - PREFIX) // 2),
        ("tova", 1),
        ("snapkv", 32),
        ("inf_mllm", N_RECENT),
        ("inf_mllm_plus", N_RECENT),
    ],
)
def test_every_number_is_what_a_second_count_gives(start: Start, policy: str, recent: int | None) -> None:
    process, client = start({**PARAMETERS, "policy": policy})
    run = Run(process, client, policy, recent)
    assert run.cache.prefix == PREFIX
    run.check()
    run.ask_in_vain("What is the closest object?")
    for step in range(24):
        run.use()
        if step % 3 == 1:
            run.ask()
        if step % 8 == 4:
            run.now += STEP / 8
            run.skip("rate", run.image())
            run.now -= STEP / 8
        if step % 8 == 6:
            run.now += STEP
            run.skip("unchanged", run.image(new=False))
    run.reject("encoding", encoding="bayer_rggb8")
    run.reject("step", step=10)
    run.reject("step", step=11)
    run.reject("length", data=b"")
    run.reject("size", width=0)
    run.now -= 3 * STEP
    run.reject("out_of_order")
    run.now += 3 * STEP
    run.pause(True)
    run.skip("paused", run.image())
    run.ask_in_vain("What is the closest object?")
    run.pause(False)
    run.use()
    assert run.cache.compactions > 2
    for jump in (1000.0, -500.0):
        run.now += jump
        run.reject("other_clock")
        run.count["jumps"] += 1
        run.use(jumped=True)
        run.use()
        run.ask()
    run.reset()
    for _ in range(3):
        run.use()
        run.ask()
