"""A long drive through many rooms in which objects come and go: which kinds are where and when, and its frames.

Every kind of object has a part in the drive, drawn by its seed, so that there is something to remember from every distance:

- early: seen in the first minutes, then never again until the end: what an hour-long memory must hold;
- now and then: in some rooms, then away for minutes or half an hour;
- common: in many rooms, all the time;
- never: in no room, so that there are things that were not seen.

An object that leaves for long is there for a few seconds only, and on one side of the view (`glimpse`), so that it is certain
where it was when it was last seen. A former room has the objects it had, as far as they are about, or new ones.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from recollection import REST, Record
from runs import COLORS, SHAPES, Run
from scenes import CAMERA_SIZE, PARKED, Pose, Studio

SHAPE_KINDS = (2, 4, 6, 6)  # kinds of each shape that are ever seen, whichever shapes these are
OTHERS = 3  # kinds that come now and then, one of each of the rarest shapes
SIDES = {"left": (0.08, 0.27), "center": (0.42, 0.58), "right": (0.73, 0.92)}
SHORTEST, LONGEST = 1.0, 3.5  # seconds of a glimpse
LARGE = 0.04  # share of the image that an object in a glimpse should take, by its distance
NEVER = math.inf


@dataclass(frozen=True)
class Plan:
    """How long a drive is, how long the robot stays in a room, and how long kinds stay away. seconds: all in all. early:
    until when the early kinds are seen. stay: seconds in a room. common_kinds: how many there are. away: seconds that the
    others are away, one of these. rate: frames per second."""

    seconds: float
    early: float
    stay: tuple[float, float]
    common_kinds: int
    away: tuple[float, ...]
    rate: float = 2.0


HOUR = Plan(3960, 420, (40, 120), 5, (0, 200, 840, 2160))
MINUTES = Plan(300, 120, (20, 45), 5, (0, 60, 200))
DEMO = Plan(120, 60, (15, 30), 5, (0, 20, 60), rate=10.0)


@dataclass
class Room:
    """A room of the drive: its seed, the kinds that stand in it, and its number."""

    seed: int
    kinds: list[int]
    number: int


@dataclass
class Journey:
    """A drive's frames and what they show. rate: frames per second. rooms: the room's number for each frame [K]."""

    fovy: float
    rate: float
    runs: list[Run] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)

    def record(self) -> Record:
        """What was in view when."""
        return Record.of(self.runs, np.array(self.times))

    def frames(self) -> list[tuple[float, bytes, float]]:
        """(seconds, JPEG, vertical field of view) of every frame."""
        jpegs = [jpeg for run in self.runs for jpeg in run.jpegs]
        return [(t, jpeg, self.fovy) for t, jpeg in zip(self.times, jpegs)]

    def view(self, frame: int) -> tuple[Run, int]:
        """The run that a frame belongs to, and its number in it."""
        for run in self.runs:
            if frame < len(run.times):
                return run, frame
            frame -= len(run.times)
        raise IndexError(f"frame {frame} behind the end")


class Cast:
    """Which kinds are about when."""

    def __init__(self, plan: Plan, rng: np.random.Generator):
        self.plan, self.rng = plan, rng
        shapes = rng.permutation(len(SHAPES))  # the rarest first
        kinds = [
            (shape * len(COLORS) + rng.permutation(len(COLORS))[:number]).tolist()
            for shape, number in zip(shapes, SHAPE_KINDS)
        ]
        # The last ones of the rarer shapes come late, so that how many were seen so far does not tell the time.
        self.others = [shape.pop() for shape in kinds[:OTHERS]]
        rest = rng.permutation([kind for shape in kinds for kind in shape]).tolist()
        self.common: list[int] = []  # of different colors, so that none can be guessed
        for kind in rest:
            if len(self.common) < plan.common_kinds and all((kind - other) % len(COLORS) for other in self.common):
                self.common.append(kind)
        self.early = [kind for kind in rest if kind not in self.common]
        self.ready = dict.fromkeys(rest, 0.0)  # from when a kind is about
        for kind in self.others:
            self.ready[kind] = float(rng.uniform(0.1, 0.6) * plan.seconds)

    def about(self, now: float, kinds: list[int]) -> list[int]:
        """Which of the kinds may be seen now, in random order."""
        return [int(k) for k in self.rng.permutation(kinds) if self.ready[int(k)] <= now] if kinds else []

    def company(self, now: float) -> list[int]:
        """Kinds for a new room."""
        soon = now < self.plan.early
        early = self.about(now, self.early)[: int(self.rng.integers(3, 6))] if soon else []
        others = self.about(now, self.others)[: int(self.rng.integers(1, 4))]
        number = int(self.rng.integers(1, 3) if soon else self.rng.integers(3, 6))
        common = self.about(now, self.common)[: max(number, 3 - len(early) - len(others))]
        return [*early, *others, *common]

    def leave(self, now: float) -> dict[int, float]:
        """For each kind that is not common, from when it would be about again if it were seen now for the last time."""
        again = {}
        for kind in [*self.early, *self.others]:
            if kind in self.early:
                soon = now < 0.5 * self.plan.early and self.rng.random() < 0.3
                again[kind] = now if soon else NEVER
            else:
                again[kind] = now + float(self.rng.choice(self.plan.away))
        return again


def width(studio: Studio) -> float:
    """Half the width of what the camera sees at a distance of 1."""
    high = math.tan(math.radians(float(studio.model.camera("camera").fovy[0])) / 2)
    return high * CAMERA_SIZE[0] / CAMERA_SIZE[1]


def sides(studio: Studio, poses: list[Pose], thing: tuple) -> np.ndarray:
    """The side of the view on which an object would be, were nothing in front of it: index into SIDES, or -1 where it would not
    be well in view; [K]. thing: an entry of studio.objects."""
    wide = width(studio)
    high = wide * CAMERA_SIZE[1] / CAMERA_SIZE[0]
    shape, _, geom, ox, oy, radius = thing
    tall = (4 if SHAPES[shape] == "cone" else 2) * studio.model.geom_pos[geom][2]
    sine, cosine = math.sin(studio.pitch), math.cos(studio.pitch)
    found = np.full(len(poses), -1)
    everything, studio.objects = studio.objects, [thing]
    for k, (x, y, yaw) in enumerate(poses):
        ahead = (ox - x) * math.cos(yaw) + (oy - y) * math.sin(yaw)
        lateral = (oy - y) * math.cos(yaw) - (ox - x) * math.sin(yaw)
        if ahead < radius + 0.3 or 0.75 * radius / (wide * ahead) * min(1.0, tall / (2 * high * ahead)) < LARGE:
            continue
        if studio.door is not None and (x - studio.door[0]) * (ox - studio.door[0]) < 0:
            crossing = y + (oy - y) * (studio.door[0] - x) / (ox - x)
            if not studio.door[1] + radius < crossing < studio.door[2] - radius:
                continue
        column = 0.5 - lateral / (2 * wide * ahead)
        side = [s for s, (low, top) in enumerate(SIDES.values()) if low < column < top]
        forward = np.array([math.cos(yaw) * cosine, math.sin(yaw) * cosine, -sine])
        left = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
        axes = np.stack([forward, left, np.cross(forward, left)])
        if side and studio.outlines_inside(np.array([x, y, studio.height]), axes)[0] > 0.65:
            found[k] = side[0]
    studio.objects = everything
    return found


class Director:
    """Decides when in a visit to a room its objects are there, and where those stand that are there for a glimpse."""

    def __init__(self, rng: np.random.Generator, studio: Studio, rate: float):
        self.rng, self.studio, self.rate = rng, studio, rate
        self.given: Counter[int] = Counter()  # glimpses by side
        self.ends: list[int] = []  # of the glimpses of a visit

    def way_clear(self, poses: list[Pose], x: float, y: float, radius: float) -> bool:
        """Whether the robot keeps clear of an object on its way."""
        return all(math.hypot(px - x, py - y) > radius + 0.3 for px, py, _ in poses)

    def spot(self, i: int, poses: list[Pose], begin: int, end: int, side: int) -> bool:
        """Moves an object to where it is on the given side of the view in the frames begin to end, if there is such a place."""
        studio, rng = self.studio, self.rng
        shape, color, geom, _, _, radius = studio.objects[i]
        wide = width(studio)
        x, y, yaw = poses[(begin + end) // 2]
        for _ in range(6):
            ahead = rng.uniform(0.8, 2.6)
            lateral = (0.5 - rng.uniform(*list(SIDES.values())[side])) * 2 * wide * ahead
            ox = x + ahead * math.cos(yaw) - lateral * math.sin(yaw)
            oy = y + ahead * math.sin(yaw) + lateral * math.cos(yaw)
            others = [o for j, o in enumerate(studio.objects) if j != i]
            free = all(math.hypot(ox - o[3], oy - o[4]) > radius + o[5] + 0.3 for o in others)
            inside = (np.abs([ox, oy]) < studio.half - radius - 0.1).all()
            doorway = studio.door is None or abs(ox - studio.door[0]) > radius + 0.2
            moved = shape, color, geom, ox, oy, radius
            possible = inside and free and doorway and self.way_clear(poses[begin:end], ox, oy, radius)
            if possible and (sides(studio, poses[begin:end], moved) == side).all():
                studio.objects[i] = moved
                studio.model.geom_pos[geom][:2] = ox, oy
                return True
        return False

    def glimpse(self, things: list[int], poses: list[Pose]) -> tuple[int, int] | None:
        """Finds frames and places for one or two objects so that each stays on one side of the view; sides that were given
        less often come first."""
        rng = self.rng
        shortest, longest = round(SHORTEST * self.rate), round(LONGEST * self.rate)
        for attempt in range(90):
            wanted = sorted(range(len(SIDES)), key=lambda s: self.given[s] + rng.random())
            chosen = [wanted[0], wanted[int(rng.integers(1, 3))]][: len(things)]
            length = int(rng.integers(shortest, longest + 1)) if attempt < 60 else shortest
            begin = int(rng.integers(0, max(1, len(poses) - length)))
            if self.ends and rng.random() < 0.6:  # soon after another one: first this, then that
                begin = self.ends[-1] + int(rng.uniform(0.5, 6) * self.rate)
            if not 0 <= begin <= len(poses) - length:
                continue
            kept = list(self.studio.objects), self.studio.model.geom_pos.copy()
            if all(self.spot(i, poses, begin, begin + length, side) for i, side in zip(things, chosen)):
                self.given.update(chosen)
                self.ends.append(begin + length)
                return begin, begin + length
            self.studio.objects, self.studio.model.geom_pos[:] = kept
        return None

    def presence(self, poses: list[Pose], brief: list[int]) -> np.ndarray:
        """Which objects are there in each frame, bool [K, N]: the brief ones for a last glimpse, if there is one to be had,
        often two of different shapes together, and mostly from the beginning until some time before it, too; the others all
        the time."""
        objects, self.ends = self.studio.objects, []
        there = np.ones((len(poses), len(objects)), bool)
        there[:, brief] = False
        left = [int(i) for i in self.rng.permutation(brief)] if brief else []
        while left:
            i = left.pop()
            mates = [j for j in left if objects[j][0] != objects[i][0]]
            if mates and self.rng.random() < 0.7:
                found = self.glimpse([i, mates[0]], poses)
                if found:
                    self.enter(there, [i, mates[0]], poses, *found)
                    left.remove(mates[0])
                    continue
            found = self.glimpse([i], poses)
            if found:
                self.enter(there, [i], poses, *found)
        return there

    def enter(self, there: np.ndarray, things: list[int], poses: list[Pose], begin: int, end: int) -> None:
        """Lets objects be there for a glimpse and, mostly, before it."""
        for i in things:
            there[begin:end, i] = True
            gone = max(0, begin - int(self.rng.uniform(1.2, 4) * REST * self.rate))
            if self.rng.random() < 0.75 and self.way_clear(poses[:gone], *self.studio.objects[i][3:]):
                there[:gone, i] = True


def choose_room(rooms: list[Room], here: Room | None, cast: Cast, now: float, rng: np.random.Generator) -> Room:
    """The next room: a former one, with its objects as far as they are about or with new ones, or one never seen."""
    former = [room for room in rooms if room is not here]
    if len(former) > 2 and rng.random() < 0.25:
        room = former[rng.integers(len(former))]
        about = [k for k in room.kinds if cast.ready[k] <= now]
        if len(about) < 2 or rng.random() < 0.3:
            room.kinds = cast.company(now)
        return room
    rooms.append(Room(int(rng.integers(2**31)), cast.company(now), len(rooms)))
    return rooms[-1]


def travel(plan: Plan, seed: int) -> Journey:
    """Drives and films."""
    rng, studio = np.random.default_rng([seed, 0]), Studio(seed)
    height, pitch, fovy = rng.uniform(0.5, 0.75), math.radians(rng.uniform(6, 13)), rng.uniform(50, 58)
    quality = int(rng.integers(70, 80))
    cast, director, rooms, here = Cast(plan, rng), Director(rng, studio, plan.rate), [], None
    journey, total = Journey(float(fovy), plan.rate), int(plan.seconds * plan.rate)
    with tqdm(total=total, unit="frame") as progress:
        while len(journey.times) < total:
            now = len(journey.times) / plan.rate
            here = choose_room(rooms, here, cast, now, rng)
            frames = min(int(rng.uniform(*plan.stay) * plan.rate), total - len(journey.times))
            if total - len(journey.times) - frames < plan.stay[0] * plan.rate / 2:
                frames = total - len(journey.times)
            times = np.arange(frames) / plan.rate
            studio.rng = np.random.default_rng(here.seed)
            studio.arrange((len(here.kinds),) * 2, here.kinds)
            studio.height, studio.pitch, studio.model.camera("camera").fovy = height, pitch, fovy
            studio.rng = rng
            poses, there = visit(cast, director, times, now)
            journey.runs.append(studio.film(times, poses, quality, there))
            journey.times += (now + times).tolist()
            journey.rooms += [here.number] * frames
            progress.update(frames)
    studio.close()
    return journey


def visit(cast: Cast, director: Director, times: np.ndarray, now: float) -> tuple[list[Pose], np.ndarray]:
    """The robot's poses in a room, and which of its objects are there in each frame [K, N]: those that are not about leave
    the room, of the others the ones that leave for long are there briefly. Takes note of when they are about again. The robot
    drives to what is there all the time, if that is more than one object."""
    studio, end = director.studio, now + len(times) / director.rate
    for thing in studio.objects:
        if cast.ready[kind_of(thing)] > now:
            studio.model.geom_pos[thing[2]] = (0, 0, PARKED)
    studio.objects = [thing for thing in studio.objects if cast.ready[kind_of(thing)] <= now]
    again, kinds = cast.leave(end), [kind_of(thing) for thing in studio.objects]
    brief = [
        i for i, kind in enumerate(kinds)
        if again.get(kind, end) > end or (kind in cast.common and cast.rng.random() < 0.2)
    ]  # fmt: skip
    everything, staying = studio.objects, [thing for i, thing in enumerate(studio.objects) if i not in brief]
    studio.objects = staying if len(staying) > 1 else everything
    poses = studio.drive(times)
    studio.objects = everything
    there = director.presence(poses, brief)
    for i, kind in enumerate(kinds):
        if kind in again and there[:, i].any():
            cast.ready[kind] = again[kind]
    return poses, there


def kind_of(thing: tuple) -> int:
    """The kind of an entry of a studio's objects."""
    return thing[0] * len(COLORS) + thing[1]
