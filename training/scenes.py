"""Rooms, objects and a driving robot in MuJoCo: renders camera frames and their ground truth, one run at a time."""

import io
import math
import os

os.environ.setdefault("MUJOCO_GL", "osmesa")

import mujoco
import numpy as np
from PIL import Image

from runs import COLORS, SHAPES, Run, model_pixels

RGB = np.array(
    [[0.85, 0.08, 0.08], [0.08, 0.6, 0.12], [0.1, 0.2, 0.9], [0.95, 0.85, 0.08], [0.6, 0.12, 0.7], [0.04, 0.04, 0.04]]
)
PER_SHAPE = 4  # geoms of each shape in the model; a run uses some and parks the rest below the floor
CAMERA_SIZE = (256, 192)
TRUTH_SIZE = (96, 72)
PATCHES = 12
FLOORS, WALLS = 10, 8
PARKED = -60.0
ABSENT = [0.0] * 10 + [0.5] + [1e3] * 3  # an object's truth in a frame while it is not in the room
Pose = tuple[float, float, float]  # x, y, yaw


def cone_mesh(sides: int = 20) -> str:
    """Vertices of a cone of base radius 1 and height 2, centred on the origin."""
    ring = [(math.cos(2 * math.pi * i / sides), math.sin(2 * math.pi * i / sides), -1.0) for i in range(sides)]
    return " ".join(f"{v:.4f}" for point in [*ring, (0.0, 0.0, 1.0)] for v in point)


def world_xml(rng: np.random.Generator, cone_sizes: list[tuple[float, float]]) -> str:
    """The one MuJoCo model that all runs of a process share: pools of objects, walls, floors and lights."""
    sky = 'type="skybox" builtin="gradient" rgb1=".8 .85 .9" rgb2=".6 .6 .65" width="32" height="32"'
    assets = [f'<texture name="sky" {sky}/>']
    for i, (r, h) in enumerate(cone_sizes):
        assets.append(f'<mesh name="cone{i}" vertex="{cone_mesh()}" scale="{r} {r} {h}"/>')
    for kind, number in (("floor", FLOORS), ("wall", WALLS)):
        for i in range(number):
            a, b = rng.uniform(0.75, 1.0), rng.uniform(0.55, 1.0)
            builtin = ("checker", "flat", "gradient")[i % 3]
            repeat = rng.integers(2, 9) if kind == "floor" else rng.integers(1, 6)
            assets.append(
                f'<texture name="{kind}{i}" type="2d" builtin="{builtin}" rgb1="{a} {a} {a}" rgb2="{b} {b} {b}" '
                'width="64" height="64"/>'
                f'<material name="{kind}{i}" texture="{kind}{i}" texrepeat="{repeat} {repeat}" specular="0.1"/>'
            )
    geoms = ['<geom name="floor" type="plane" size="8 8 .1" material="floor0"/>']
    geoms += [f'<geom name="wall{i}" type="box" size=".1 1 1.5" material="wall0"/>' for i in range(6)]
    for i in range(PER_SHAPE):
        geoms.append(f'<geom name="box{i}" type="box" size=".3 .3 .3"/>')
        geoms.append(f'<geom name="ball{i}" type="sphere" size=".3"/>')
        geoms.append(f'<geom name="cone{i}" type="mesh" mesh="cone{i}"/>')
        geoms.append(f'<geom name="pillar{i}" type="cylinder" size=".15 .6"/>')
    lights = [f'<light name="light{i}" pos="0 0 2.8" dir="0 0 -1" castshadow="true"/>' for i in range(2)]
    return (
        '<mujoco><visual><quality shadowsize="1024" offsamples="0"/><map znear="0.02"/></visual>'
        f"<asset>{''.join(assets)}</asset><worldbody>{''.join(lights)}{''.join(geoms)}"
        '<body name="robot" mocap="true"><camera name="camera" fovy="55"/></body></worldbody></mujoco>'
    )


def patch_owners(seen: np.ndarray, ids: list[int]) -> np.ndarray:
    """Which object, counted from 1, fills each of 12 x 12 patches; 0 for none, 255 if that is not certain. seen: geom ids
    of the pixels [72, 96]."""
    rows, columns = seen.shape
    blocks = seen.reshape(PATCHES, rows // PATCHES, PATCHES, columns // PATCHES)
    shares = np.stack([(blocks == geom).mean((1, 3)) for geom in ids])
    return np.where(shares.max(0) > 0.4, shares.argmax(0) + 1, np.where(shares.sum(0) < 0.03, 0, 255)).astype(np.uint8)


class Studio:
    """Renders runs. Holds one MuJoCo model and two renderers; every run rearranges the model in place."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.cones = [(r, r * self.rng.uniform(1.0, 1.3)) for r in np.linspace(0.26, 0.42, PER_SHAPE)]
        self.model = mujoco.MjModel.from_xml_string(world_xml(self.rng, self.cones))
        self.model.geom_sameframe[:] = 0  # or positions set later would be taken for the compiled ones
        self.data = mujoco.MjData(self.model)
        self.camera = mujoco.Renderer(self.model, CAMERA_SIZE[1], CAMERA_SIZE[0])
        self.truth = mujoco.Renderer(self.model, TRUTH_SIZE[1], TRUTH_SIZE[0])
        self.truth.enable_segmentation_rendering()

    def close(self) -> None:
        """Frees the renderers."""
        self.camera.close()
        self.truth.close()

    def tint(self, low: float, high: float) -> np.ndarray:
        """A pale colour, so that only objects are saturated."""
        value = self.rng.uniform(low, high)
        return np.clip(value * (1 + self.rng.uniform(-0.13, 0.13, 3)), 0, 1)

    def arrange(self, objects: tuple[int, int], kinds: list[int] | None = None) -> None:
        """Makes a new room: size, partition, materials, lights, objects and the robot's camera; `kinds` as in `place`."""
        rng, m = self.rng, self.model
        self.half = rng.uniform(2.3, 3.8, 2)
        hx, hy = self.half
        walls = [
            (hx + 0.1, 0, 0.1, hy + 0.2),
            (-hx - 0.1, 0, 0.1, hy + 0.2),
            (0, hy + 0.1, hx, 0.1),
            (0, -hy - 0.1, hx, 0.1),
        ]
        self.door = None
        if rng.random() < 0.4:
            at, gap, side = rng.uniform(-0.4, 0.4) * hx, rng.uniform(1.4, 1.9), rng.uniform(-0.4, 0.4) * hy
            low, high = side - gap / 2 + hy, hy - side - gap / 2
            walls += [(at, -hy + low / 2, 0.06, low / 2), (at, hy - high / 2, 0.06, high / 2)]
            self.door = (at, side - gap / 2, side + gap / 2)
        height = rng.uniform(1.1, 1.6)
        wall_tints = [self.tint(0.55, 0.98) for _ in range(2)]
        for i in range(6):
            g = m.geom(f"wall{i}")
            if i < len(walls):
                x, y, sx, sy = walls[i]
                g.pos, g.size = (x, y, height), (sx, sy, height)
                m.geom_rbound[g.id] = np.linalg.norm(g.size)
            else:
                g.pos = (0, 0, PARKED)
            material = m.material(f"wall{rng.integers(WALLS)}")
            material.rgba[:3] = wall_tints[rng.integers(2)]
            g.matid = material.id
        floor = m.material(f"floor{rng.integers(FLOORS)}")
        floor.rgba[:3] = self.tint(0.6, 1.0)
        m.geom("floor").matid = floor.id
        for i in range(2):
            light = m.light(f"light{i}")
            light.pos = (*rng.uniform(-0.7, 0.7, 2) * self.half, rng.uniform(2.2, 3.5))
            light.diffuse = np.full(3, rng.uniform(0.15, 0.5)) * (1 + rng.uniform(-0.1, 0.1, 3))
            light.ambient = np.full(3, rng.uniform(0.0, 0.15))
        m.vis.headlight.ambient[:] = rng.uniform(0.35, 0.55)
        m.vis.headlight.diffuse[:] = rng.uniform(0.2, 0.45)
        self.camera.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = rng.random() < 0.2
        self.place(int(rng.integers(objects[0], objects[1] + 1)), kinds)
        self.height, self.pitch = rng.uniform(0.45, 0.8), math.radians(rng.uniform(4, 16))
        m.camera("camera").fovy = rng.uniform(48, 60)

    def place(self, number: int, kinds: list[int] | None = None) -> None:
        """Puts objects of different colour-shape pairs on the floor, apart from one another and from the walls: of the given
        kinds, numbered shape by shape, or of any."""
        rng, m = self.rng, self.model
        for shape in SHAPES:
            for i in range(PER_SHAPE):
                m.geom(f"{shape}{i}").pos = (0, 0, PARKED)
        self.objects: list[tuple[int, int, int, float, float, float]] = []  # shape, color, geom id, x, y, radius
        free = {shape: list(rng.permutation(PER_SHAPE)) for shape in range(len(SHAPES))}
        pairs = rng.permutation(len(SHAPES) * len(COLORS)) if kinds is None else kinds
        for pair in pairs:
            shape, color = divmod(int(pair), len(COLORS))
            if len(self.objects) == number:
                break
            if not free[shape]:
                continue
            g = m.geom(f"{SHAPES[shape]}{free[shape][-1]}")
            size = rng.uniform(0.22, 0.36)
            if SHAPES[shape] == "box":
                g.size, rise, radius = (size, size, size), size, size * 1.25
            elif SHAPES[shape] == "ball":
                size *= 1.1
                g.size, rise, radius = (size, 0, 0), size, size
            elif SHAPES[shape] == "pillar":
                thin, tall = size * 0.5, rng.uniform(0.6, 0.8)
                g.size, rise, radius = (thin, tall, 0), tall, thin
            else:
                radius, half = self.cones[free[shape][-1]]
                rise = half / 2  # a mesh's frame lies at its centre of mass
            for _ in range(30):
                x, y = rng.uniform(-1, 1, 2) * (self.half - radius - 0.25)
                near_door = self.door is not None and abs(x - self.door[0]) < radius + 0.5
                if not near_door and all(math.hypot(x - o[3], y - o[4]) > radius + o[5] + 0.45 for o in self.objects):
                    break
            else:
                continue
            free[shape].pop()
            yaw = rng.uniform(0, 2 * math.pi)
            g.pos = (x, y, rise)
            if SHAPES[shape] != "cone":
                g.quat = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
                m.geom_rbound[g.id] = np.linalg.norm(g.size)
            g.rgba[:3] = np.clip(RGB[color] + rng.uniform(-0.05, 0.05, 3), 0, 1)
            self.objects.append((shape, color, g.id, x, y, radius))

    def clear(self, ax: float, ay: float, bx: float, by: float, skip: int = -1) -> bool:
        """Whether the straight way from a to b misses every object but `skip` and goes through the partition's door."""
        length = math.hypot(bx - ax, by - ay) + 1e-6
        for i, (_, _, _, x, y, radius) in enumerate(self.objects):
            share = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2
            share = min(max(share, 0), 1)
            if i != skip and math.hypot(ax + share * (bx - ax) - x, ay + share * (by - ay) - y) < radius + 0.3:
                return False
        if self.door is not None and (ax - self.door[0]) * (bx - self.door[0]) < 0:
            y = ay + (by - ay) * (self.door[0] - ax) / (bx - ax)
            return self.door[1] + 0.35 < y < self.door[2] - 0.35
        return abs(bx - self.door[0]) > 0.4 if self.door is not None else True

    def goal(self, x: float, y: float) -> tuple[float, float]:
        """A next point to drive to in a straight line: often just in front of an object, else anywhere free."""
        rng = self.rng
        for _ in range(40):
            if self.objects and rng.random() < 0.65:
                i = int(rng.integers(len(self.objects)))
                _, _, _, ox, oy, radius = self.objects[i]
                way = math.hypot(ox - x, oy - y)
                share = 1 - (radius + rng.uniform(0.35, 0.75)) / max(way, 1e-6)
                gx, gy = x + share * (ox - x), y + share * (oy - y)
                if share > 0.1 and self.clear(x, y, gx, gy, i):
                    return gx, gy
            else:
                gx, gy = rng.uniform(-1, 1, 2) * (self.half - 0.6)
                if self.clear(x, y, gx, gy):
                    return gx, gy
        return x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.1, 0.1)

    def drive(self, times: np.ndarray) -> list[Pose]:
        """Poses (x, y, yaw) at the given times of a robot that turns to a goal, drives there, and picks the next."""
        rng = self.rng
        for _ in range(200):
            x, y = rng.uniform(-1, 1, 2) * (self.half - 0.5)
            if self.clear(x, y, x, y):
                break
        yaw, speed, turn = rng.uniform(-math.pi, math.pi), rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.3)
        gx, gy = self.goal(x, y)
        now, step, pause, poses = 0.0, 0.05, 0.0, []
        for t in times:
            while now < t - 1e-9:
                dt = min(step, t - now)
                now += dt
                if pause > 0:
                    pause -= dt
                    continue
                way, error = math.hypot(gx - x, gy - y), 0.0
                if way < 0.12:
                    gx, gy = self.goal(x, y)
                    pause = rng.uniform(0, 0.6) if rng.random() < 0.3 else 0.0
                    continue
                error = math.remainder(math.atan2(gy - y, gx - x) - yaw, 2 * math.pi)
                yaw += float(np.clip(3 * error, -turn, turn)) * dt
                ahead = speed * max(0.0, 1 - abs(error) / 0.5) * min(1.0, 0.3 + way) * dt
                x, y = x + ahead * math.cos(yaw), y + ahead * math.sin(yaw)
            poses.append((x, y, yaw))
        return poses

    def run(self, times: np.ndarray, objects: tuple[int, int] = (3, 8), keep_jpegs: bool = False) -> Run:
        """Renders one new run at the given times."""
        self.arrange(objects)
        quality = int(self.rng.integers(70, 95))
        run = self.film(times, self.drive(times), quality)
        run.jpegs = run.jpegs if keep_jpegs else None
        return run

    def film(self, times: np.ndarray, poses: list[Pose], quality: int, present: np.ndarray | None = None) -> Run:
        """Renders the room from the given poses. present: which objects are there in each frame, bool [K, N]; all by default."""
        rng, m, d = self.rng, self.model, self.data
        ids = [o[2] for o in self.objects]
        places = m.geom_pos[ids].copy()
        columns = (np.arange(TRUTH_SIZE[0]) + 0.5) / TRUTH_SIZE[0]
        images, jpegs, patches, truth = [], [], [], []
        for k, (x, y, yaw) in enumerate(poses):
            there = np.ones(len(ids), bool) if present is None else present[k]
            m.geom_pos[ids] = np.where(there[:, None], places, (0, 0, PARKED))
            pitch, roll = self.pitch + rng.normal(0, 0.006), rng.normal(0, 0.006)
            forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
            left = np.array([-math.sin(yaw), math.cos(yaw), roll])
            left /= np.linalg.norm(left)
            up = np.cross(forward, left)
            d.mocap_pos[0] = (x, y, self.height)
            mujoco.mju_mat2Quat(d.mocap_quat[0], np.stack([-left, up, -forward], axis=1).ravel())
            mujoco.mj_kinematics(m, d)
            mujoco.mj_camlight(m, d)
            self.camera.update_scene(d, "camera")
            buffer = io.BytesIO()
            Image.fromarray(self.camera.render()).save(buffer, "JPEG", quality=quality)
            jpegs.append(buffer.getvalue())
            images.append(model_pixels(jpegs[-1]))
            self.truth.update_scene(d, "camera")
            seen = self.truth.render()[..., 0]
            rows = []
            patches.append(patch_owners(seen, ids))
            outlines = self.outlines_inside(np.array([x, y, self.height]), np.stack([forward, left, up]))
            for geom, (_, _, _, ox, oy, radius), inside, here in zip(ids, self.objects, outlines, there):
                if not here:
                    rows.append(ABSENT)
                    continue
                mask = seen == geom
                cells = mask.reshape(3, TRUTH_SIZE[1] // 3, 3, TRUTH_SIZE[0] // 3).sum((1, 3)).ravel() / mask.size
                total = mask.sum()
                centre = float((mask.sum(0) * columns).sum() / total) if total else 0.5
                ahead = (ox - x) * math.cos(yaw) + (oy - y) * math.sin(yaw)
                lateral = (oy - y) * math.cos(yaw) - (ox - x) * math.sin(yaw)
                rows.append([*cells, inside, centre, math.hypot(ox - x, oy - y) - radius, ahead - radius, lateral])
            truth.append((rows, self.wall_ahead(x, y, yaw)))
        m.geom_pos[ids] = places
        table = np.array([rows for rows, _ in truth], np.float32).reshape(len(images), len(ids), 14)
        return Run(
            np.stack(images), np.asarray(times, np.float32),
            np.array([o[0] for o in self.objects], np.int8), np.array([o[1] for o in self.objects], np.int8),
            table[..., :9], np.stack(patches), table[..., 9], table[..., 10], table[..., 11], table[..., 12],
            table[..., 13],
            np.array([wall for _, wall in truth], np.float32), jpegs,
            float(m.camera("camera").fovy[0]),
        )  # fmt: skip

    def outlines_inside(self, eye: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Per object the share of its outline that a camera at `eye` has inside its image, were nothing in front of it.
        axes: forward, left, up [3, 3]. A pillar is known by its sides alone, so its height does not count."""
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        high = math.tan(math.radians(float(self.model.camera("camera").fovy[0])) / 2)
        wide = high * CAMERA_SIZE[0] / CAMERA_SIZE[1]
        shares = []
        for shape, _, geom, ox, oy, radius in self.objects:
            size = self.model.geom_size[geom]
            top = {"box": 2 * size[2], "ball": 2 * size[0], "pillar": 2 * size[1]}.get(
                SHAPES[shape], 4 * self.data.geom_xpos[geom][2]
            )
            levels = np.linspace(0.05, 0.95, 7)
            widths = {"cone": 1 - levels, "ball": 2 * np.sqrt(levels * (1 - levels))}.get(SHAPES[shape], np.ones(7))
            ring = np.stack([np.cos(angles), np.sin(angles)], -1) * radius
            flat = ring[None] * widths[:, None, None] + np.array([ox, oy])
            points = np.concatenate([flat, np.broadcast_to((levels * top)[:, None, None], (7, 12, 1))], -1)
            depth, left, up = np.moveaxis((points - eye) @ axes.T, -1, 0)
            inside = (depth > 0.02) & (np.abs(left) < wide * depth)
            if SHAPES[shape] != "pillar":
                inside &= np.abs(up) < high * depth
            shares.append(inside.mean())
        return np.array(shares)

    def wall_ahead(self, x: float, y: float, yaw: float) -> float:
        """Distance to the next outer wall or partition along the heading."""
        cx, cy = math.cos(yaw), math.sin(yaw)
        way = min(
            (self.half[0] - x * np.sign(cx)) / max(abs(cx), 1e-6), (self.half[1] - y * np.sign(cy)) / max(abs(cy), 1e-6)
        )
        if self.door is not None and abs(cx) > 1e-6:
            there = (self.door[0] - x) / cx
            if there > 0 and not self.door[1] < y + there * cy < self.door[2]:
                way = min(way, there)
        return float(way)
