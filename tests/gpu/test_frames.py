"""What a frame asks of the driver."""

from pathlib import Path

from stand_in_runs import Run, replay

WIDTH, HEIGHT = 256, 192
"""Of the bag's pictures, pixels."""


def frames_only(folder: Path, repeat: int) -> tuple[Run, int]:
    """A replay of the demo bag without a question, and how many of its frames were used."""
    questions = folder / "none.yaml"
    questions.write_text("instructions: []\n")
    ran, lines = replay(folder, questions, "--repeat", str(repeat))
    assert ran.code == 0, ran.errors
    return ran, lines[-1]["summary"]["frames"]


def total(ran: Run, name: str) -> tuple[int, int]:
    """Calls, and bytes."""
    calls = [event["calls"].get(name, [0, 0]) for event in ran.events]
    return sum(count for count, _ in calls), sum(size for _, size in calls)


def test_a_frame_is_uploaded_as_three_bytes_a_pixel_and_becomes_values_on_the_gpu(tmp_path: Path) -> None:
    once, frames = frames_only(tmp_path, 1)
    twice, both = frames_only(tmp_path, 2)
    assert both == 2 * frames > 0
    for kernel, each in (("resize_across", 2), ("resize_down", 2), ("frame_values", 1)):
        assert total(twice, f"kernel:{kernel}")[0] == each * both
    uploaded = total(twice, "cuMemcpyHtoDAsync_v2")[1] - total(once, "cuMemcpyHtoDAsync_v2")[1]
    per_frame = uploaded / frames
    picture = 3 * WIDTH * HEIGHT
    # Beside it: ids, and the cache's numbers.
    assert picture <= per_frame < picture + 20_000, per_frame
    # The tower has a stream of its own, and hands over what it has made.
    assert total(twice, "cuStreamWaitEvent")[0] - total(once, "cuStreamWaitEvent")[0] == frames
