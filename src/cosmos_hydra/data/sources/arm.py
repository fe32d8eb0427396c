"""Draw a three-joint robot arm with a gripper, a table and a cube, through a pinhole camera.

World axes in metres: x right, y away from the front view, z up; the arm stands at the origin.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 3
LINKS_M = (0.42, 0.38, 0.16)  # upper arm, forearm, hand
BASE_HEIGHT_M = 0.12
CUBE_M = 0.1
Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "wall": (206, 214, 222),
    "floor": (150, 140, 128),
    "table": (186, 152, 112),
    "base": (70, 74, 82),
    "arm": (240, 128, 32),
    "hand": (90, 96, 106),
    "joint": (44, 48, 56),
}
CUBE_COLOURS: tuple[Colour, ...] = ((196, 40, 44), (226, 72, 70), (164, 28, 34))


@dataclass(frozen=True)
class View:
    """A camera: where it stands, what it looks at, and the words for it."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    caption: str


VIEWS = {
    "front": View((0.0, -2.1, 0.75), (0.0, 0.0, 0.5), "from the front"),
    "left": View((-1.7, -1.2, 0.8), (0.05, 0.0, 0.47), "from the left"),
    "right": View((1.6, -1.3, 1.0), (0.1, 0.0, 0.45), "from the right"),
    "above": View((0.25, -1.15, 1.9), (0.1, 0.0, 0.35), "from above"),
}
MOTIONS = {
    "wave": "waves its hand",
    "reach": "reaches out and draws back",
    "lift": "lifts a red cube",
    "turn": "turns from side to side",
}


def joint_angles(motion: str, phase: float) -> tuple[float, float, float, float]:
    """Return yaw of the base and pitch of the three links (from vertical), radians.

    `phase` grows by 2 pi a cycle.
    """
    swing, rise = np.sin(phase), 0.5 - 0.5 * np.cos(phase)
    poses = {
        "wave": (0.2, 0.35, 0.1 + 0.75 * swing, 0.3 + 1.1 * swing),
        "reach": (0.0, 0.1 + 0.75 * rise, 1.9 - 0.5 * rise, 2.2 - 0.6 * rise),
        "lift": (0.0, 0.95 - 0.75 * rise, 2.05 - 0.55 * rise, np.pi),
        "turn": (1.15 * swing, 0.45, 1.55, 2.4),
    }
    return poses[motion]


def _joints(angles: tuple[float, float, float, float]) -> np.ndarray:
    """Return base, shoulder, elbow, wrist and fingertip, [5, 3] metres."""
    yaw, *pitches = angles
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    points = [np.zeros(3), np.array([0.0, 0.0, BASE_HEIGHT_M])]
    for length, pitch in zip(LINKS_M, pitches, strict=True):
        step = length * (np.sin(pitch) * forward + np.cos(pitch) * np.array([0.0, 0.0, 1.0]))
        points.append(points[-1] + step)
    return np.array(points)


class _Camera:
    def __init__(self, view: View, height: int, width: int) -> None:
        self.eye = np.array(view.eye_m)
        ahead = np.array(view.target_m) - self.eye
        self.ahead = ahead / np.linalg.norm(ahead)
        right = np.cross(self.ahead, [0.0, 0.0, 1.0])
        self.right = right / np.linalg.norm(right)
        self.up = np.cross(self.right, self.ahead)
        self.focal_px, self.centre = 1.55 * height, (width / 2, height / 2)

    def project(self, points_m: np.ndarray) -> tuple[list[tuple[float, float]], np.ndarray]:
        """Return picture positions and pixels per metre at each point."""
        offset = points_m - self.eye
        scale = self.focal_px / np.maximum(offset @ self.ahead, 0.05)
        x = self.centre[0] + scale * (offset @ self.right)
        y = self.centre[1] - scale * (offset @ self.up)
        return list(zip(x.tolist(), y.tolist(), strict=True)), scale


def render(
    motion: str,
    view: str,
    *,
    num_frames: int,
    fps: float,
    height: int,
    width: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return uint8 [num_frames, height, width, 3]."""
    start = generator.uniform(0, 2 * np.pi)
    cycles_per_s = generator.uniform(0.3, 0.36)
    yaw = generator.uniform(-0.05, 0.05)
    size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    camera = _Camera(VIEWS[view], size[1], size[0])
    background = _background(camera, size)
    # the cube rests where the hand is at the lowest point of a lift
    low = _joints(_turned(joint_angles("lift", 0.0), yaw))[-1]
    rest_m = np.array([low[0], low[1], CUBE_M / 2])
    frames = []
    for index in range(num_frames):
        phase = start + 2 * np.pi * cycles_per_s * index / fps
        joints_m = _joints(_turned(joint_angles(motion, phase), yaw))
        cube_m = rest_m
        if motion == "lift":
            cube_m = joints_m[-1] - np.array([0.0, 0.0, CUBE_M / 2])
            cube_m[2] = max(cube_m[2], CUBE_M / 2)
        picture = background.copy()
        _draw(ImageDraw.Draw(picture), camera, joints_m, cube_m)
        frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BOX)))
    return np.stack(frames)


def _turned(
    angles: tuple[float, float, float, float], yaw: float
) -> tuple[float, float, float, float]:
    return (angles[0] + yaw, *angles[1:])


def _background(camera: _Camera, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, COLOURS["wall"])
    draw = ImageDraw.Draw(picture)
    floor = np.array([[-6, 1.6, -0.7], [6, 1.6, -0.7], [6, -1, -0.7], [-6, -1, -0.7]])
    draw.polygon(camera.project(floor)[0], fill=COLOURS["floor"])
    table = np.array([[-0.75, 0.6, 0], [1.0, 0.6, 0], [1.0, -0.6, 0], [-0.75, -0.6, 0]])
    draw.polygon(camera.project(table)[0], fill=COLOURS["table"])
    return picture


def _draw(
    draw: ImageDraw.ImageDraw, camera: _Camera, joints_m: np.ndarray, cube_m: np.ndarray
) -> None:
    cube_first = np.linalg.norm(cube_m - camera.eye) > np.linalg.norm(joints_m[-1] - camera.eye)
    if cube_first:
        _draw_cube(draw, camera, cube_m)
    places, scales = camera.project(joints_m)
    widths_m = (0.2, 0.14, 0.12, 0.09)
    colours = [COLOURS[part] for part in ("base", "arm", "arm", "hand")]
    for index, (width_m, colour) in enumerate(zip(widths_m, colours, strict=True)):
        radius = width_m * scales[index] / 2
        draw.line([places[index], places[index + 1]], fill=colour, width=round(2 * radius))
        _disc(draw, places[index + 1], radius, colour)
    for place, scale in zip(places[1:4], scales[1:4], strict=True):
        _disc(draw, place, 0.045 * scale, COLOURS["joint"])
    if not cube_first:
        _draw_cube(draw, camera, cube_m)


def _disc(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], radius: float, colour: Colour
) -> None:
    x, y = place
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _draw_cube(draw: ImageDraw.ImageDraw, camera: _Camera, centre_m: np.ndarray) -> None:
    half = CUBE_M / 2
    corners = np.array(
        [[x, y, z] for x in (-half, half) for y in (-half, half) for z in (-half, half)]
    )
    places, _ = camera.project(centre_m + corners)
    faces = [(0, 1, 5, 4), (2, 3, 7, 6), (0, 1, 3, 2), (4, 5, 7, 6), (1, 3, 7, 5)]
    colours = [0, 0, 2, 2, 1]
    distances = [np.linalg.norm(centre_m + corners[list(f)].mean(0) - camera.eye) for f in faces]
    for face in np.argsort(distances)[::-1]:
        draw.polygon([places[i] for i in faces[face]], fill=CUBE_COLOURS[colours[face]])
