"""Makes bags of long simulated drives with questions about what was in view seconds to an hour before: `demo`, two minutes at ten
frames a second, `minutes`, five minutes, and `hour-N`, 66 minutes each. The same seed gives the same bytes on the same machine."""

import argparse
import filecmp
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from asked import DEMO_QUOTA, HOUR_QUOTA, MINUTES_QUOTA, Chooser
from bag import write_bag
from check_video import BANDS, DEMO_BANDS, problems, report
from dataset import SYSTEM_PROMPT
from journey import DEMO, HOUR, MINUTES, travel
from scenes import CAMERA_SIZE

RUNS = {
    "demo": (DEMO, DEMO_QUOTA, DEMO_BANDS),
    "minutes": (MINUTES, MINUTES_QUOTA, BANDS),
    "hour": (HOUR, HOUR_QUOTA, BANDS),
}
# demo: the first from here on for which every question of the quota is found; hour-N is drawn by 930,000 + N
DEMO_SEED, MINUTES_SEED, HOUR_SEED = 940_001, 920_001, 930_000


def make(out: Path, name: str, run: str, seed: int) -> None:
    """Drives, chooses the questions and writes bag, truth and, at last, instructions."""
    plan, quota, bands = RUNS[run]
    journey = travel(plan, seed)
    chooser = Chooser(journey, quota, np.random.default_rng([seed, 1]))
    folder, record = out / name, chooser.record
    write_bag(folder, journey.frames(), CAMERA_SIZE)
    np.savez_compressed(
        folder / "truth.npz",
        times=record.times,
        state=record.state,
        centre=record.centre.astype(np.float16),
        share=record.share.astype(np.float16),
        room=np.array(journey.rooms, np.int16),
    )
    content = {
        "bag": name,
        "system_prompt": SYSTEM_PROMPT,
        "aside": run != "demo",
        "resets": [0.0],
        "instructions": chooser.all(bands),
    }
    (folder / "instructions.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=120))


def compare(out: Path, name: str, run: str, seed: int) -> None:
    """Makes a bag once more and ends the program if a file of it differs."""
    with TemporaryDirectory() as folder:
        make(Path(folder), name, run, seed)
        for file in sorted((Path(folder) / name).iterdir()):
            if not filecmp.cmp(file, out / name / file.name, shallow=False):
                raise SystemExit(f"{name}: {file.name} differs")
    print(f"{name}: every byte is the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="which hours")
    parser.add_argument("--out", type=Path, default=Path("../bags"))
    parser.add_argument("--again", action="store_true", help="also make the bags that are there")
    parser.add_argument("--compare", action="store_true", help="make them elsewhere and compare them with those there")
    args = parser.parse_args()
    single = {"demo": DEMO_SEED, "minutes": MINUTES_SEED}
    hours = {f"hour-{n}": HOUR_SEED + n for n in args.seeds}
    seeds = {args.run: single[args.run]} if args.run in single else hours
    for name, seed in seeds.items():
        if args.compare:
            compare(args.out, name, args.run, seed)
        elif args.again or not (args.out / name / "instructions.yaml").exists():
            make(args.out, name, args.run, seed)
        for problem in problems(args.out / name):
            raise SystemExit(f"{name}: {problem}")
    report([args.out / name for name in seeds])


if __name__ == "__main__":
    main()
