"""Rendered scenes: solids on a floor before a slanted wall, with exact depth and mask.

This data set needs no download. It has ten classes that differ in shape alone, or four of them that are learnt faster.
Rays meet solids by sphere tracing of signed distances (J. C. Hart, "Sphere tracing", 1996), and the planes of floor and
wall directly. A counter-based random key derives everything in an image from (seed, index). So an image does not depend
on its batch, nor on the number of threads.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from paperlib.data.cache import cached
from paperlib.data.images import ImageSet
from paperlib.runs.files import InputError, root
from paperlib.runs.progress import Bar

SIZES = (32, 64)
RECIPE = 1  # raise it when any pixel of a scene changes: cached scenes are then rendered again
SUPERSAMPLING = 2  # rays per pixel and axis
EYE = (0.0, 2.1, 4.6)  # position of the camera, which looks at TARGET; y is up, the floor is y = 0
TARGET = (0.0, 0.85, 0.0)
FIELD_OF_VIEW = 0.52  # radians, on both axes
BOUND = 1.2  # radius of a sphere around every solid of unit scale; the pyramid's corners lie at 1.19
AMBIENT = 0.35
CONTRAST = 0.25  # largest contrast of a texture; more would hide the shape
TILT = 0.5  # largest tilt, radians
CHUNK = 250  # images rendered together


def _longest(*values: Tensor) -> Tensor:
    return torch.stack(values).amax(0)


def _box(x: Tensor, y: Tensor, z: Tensor, a: float, b: float, c: float) -> Tensor:
    return _longest(x.abs() - a, y.abs() - b, z.abs() - c)


def _cone(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    side = (x * x + z * z).sqrt() * 0.9 + (y - 0.85) * 0.435  # unit normal (0.9, 0.435) of the slanted side
    return torch.maximum(side, -0.75 - y)


def _pyramid(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    side = torch.maximum(x.abs(), z.abs()) * 0.9 + (y - 0.9) * 0.435
    return torch.maximum(side, -0.6 - y)


def _cross(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    arms = (_box(x, y, z, 0.95, 0.3, 0.3), _box(x, y, z, 0.3, 0.95, 0.3), _box(x, y, z, 0.3, 0.3, 0.95))
    return torch.stack(arms).amin(0)


def _torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    ring = (x * x + y * y).sqrt() - 0.68
    return (ring * ring + z * z).sqrt() - 0.27


# Signed distances in the solid's own frame, or lower bounds of them, so that no ray steps through a surface.
SOLIDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sphere": lambda x, y, z: (x * x + y * y + z * z).sqrt() - 0.8,
    "box": lambda x, y, z: _box(x, y, z, 0.62, 0.62, 0.62),
    "cylinder": lambda x, y, z: torch.maximum((x * x + z * z).sqrt() - 0.55, y.abs() - 0.75),
    "cone": _cone,
    "torus": _torus,
    "capsule": lambda x, y, z: (x * x + (y - y.clamp(-0.62, 0.62)) ** 2 + z * z).sqrt() - 0.36,
    "octahedron": lambda x, y, z: (x.abs() + y.abs() + z.abs() - 1.05) * 0.57735,
    "pyramid": _pyramid,
    "cross": _cross,
    "prism": lambda x, y, z: torch.maximum(
        torch.maximum(x.abs() * 0.8660254 + z.abs() * 0.5, z.abs()) - 0.66, y.abs() - 0.42
    ),
}
CLASSES = tuple(SOLIDS)
SETS = {"scenes": CLASSES, "scenes4": ("sphere", "box", "cone", "torus")}


def uniforms(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Return `count` numbers in [0,1) for each index, N×count: a hash (splitmix64) of seed, index and position."""

    def mix(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found: np.ndarray = state ^ (state >> np.uint64(31))
        return found

    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = mix(np.full(1, seed, np.uint64) * step + step)
        key = mix(key + indices.astype(np.uint64)[:, None] * step)
        key = mix(key + np.arange(1, count + 1, dtype=np.uint64) * step)
    return (key >> np.uint64(11)).astype(np.float64) / 2**53


def load(count: int, size: int, seed: int, classes: Sequence[str] = CLASSES) -> ImageSet:
    """Return scenes 0 … count−1 of `seed`, the classes in turn: uint8 N×3×size×size with depth and mask.

    Scenes are rendered once and cached under data/. Raises InputError for a size other than 32 or 64.
    """
    if size not in SIZES:
        raise InputError(f"size = {size}: scenes are rendered at 32 or 64 pixels")

    def build() -> tuple[dict[str, Tensor], dict[str, int]]:
        parts = []
        with Bar(count, "rendering scenes", "img") as progress:
            for start in range(0, count, CHUNK):
                parts.append(render(seed, np.arange(start, min(start + CHUNK, count)), size, classes))
                progress.update(len(parts[-1][0]))
        images, depth, mask = (torch.cat(part) for part in zip(*parts, strict=True))
        return {"images": images, "depth": depth, "mask": mask}, {}

    some = "" if classes == CLASSES else f"-{'-'.join(classes)}"
    path = root() / "data" / "scenes" / f"{size}px-seed{seed}-{count}{some}.safetensors"
    tensors, _ = cached(path, {"recipe": RECIPE, "seed": seed, "count": count, "size": size}, build)
    labels = torch.arange(count) % len(classes)
    return ImageSet(tensors["images"], labels, tuple(classes), tensors["depth"], tensors["mask"])


def render(seed: int, indices: np.ndarray, size: int, classes: Sequence[str] = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    """Render the scenes `indices`; the class is the index modulo the number of classes.

    Returns images uint8 N×3×size×size, depth float32 N×size×size along the camera's axis, and mask bool N×size×size.
    Depth and mask are those of the nearest surface within a pixel.
    """
    side = size * SUPERSAMPLING
    colour = torch.empty(len(indices), 3, side, side)
    depth = torch.empty(len(indices), side, side)
    solid = torch.empty(len(indices), side, side, dtype=torch.bool)
    for label, name in enumerate(classes):  # one signed distance at a time
        members = np.flatnonzero(indices % len(classes) == label)
        if len(members):
            parts = _render_solid(SOLIDS[name], uniforms(seed, indices[members], 40), side)
            for whole, part in zip((colour, depth, solid), parts, strict=True):
                whole[torch.from_numpy(members)] = part
    blocks = (size, SUPERSAMPLING, size, SUPERSAMPLING)
    images = (colour.view(-1, 3, *blocks).mean((3, 5)).clamp(0, 1) * 255).round().to(torch.uint8)
    rays = depth.view(-1, *blocks).transpose(2, 3).flatten(3)
    nearest = rays.argmin(3, keepdim=True)
    hits = solid.view(-1, *blocks).transpose(2, 3).flatten(3)
    return images, rays.gather(3, nearest).squeeze(3), hits.gather(3, nearest).squeeze(3)


def _camera(side: int) -> tuple[Tensor, Tensor]:
    """Return unit ray directions 3×P, row by row from the top left, and the camera's axis 3."""
    eye, target = np.array(EYE), np.array(TARGET)
    axis = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(axis, (0, 1, 0))
    right /= np.linalg.norm(right)
    up = np.cross(right, axis)
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    u, v = np.meshgrid(grid, -grid)
    half = np.tan(FIELD_OF_VIEW / 2)
    rays = axis[:, None] + half * (u.ravel() * right[:, None] + v.ravel() * up[:, None])
    rays /= np.linalg.norm(rays, axis=0)
    return torch.from_numpy(rays.astype(np.float32)), torch.from_numpy(axis.astype(np.float32))


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Return world-to-solid rotations N×3×3 from yaw, tilt direction and tilt, radians N×3."""
    yaw, direction, tilt = angles.T
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def around_y(angle: np.ndarray) -> np.ndarray:
        rows = [np.cos(angle), zero, np.sin(angle), zero, one, zero, -np.sin(angle), zero, np.cos(angle)]
        return np.stack(rows, -1).reshape(-1, 3, 3)

    tipping = np.stack([one, zero, zero, zero, np.cos(tilt), -np.sin(tilt), zero, np.sin(tilt), np.cos(tilt)], -1)
    found: np.ndarray = around_y(yaw) @ around_y(-direction) @ tipping.reshape(-1, 3, 3) @ around_y(direction)
    return found


def _render_solid(
    distance: Callable[[Tensor, Tensor, Tensor], Tensor], random: np.ndarray, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Render a solid for N rows of `random`: colour N×3×side×side in [0,1], depth and object hits N×side×side."""
    count = len(random)
    draws = iter(random.T)

    def draw(low: float, high: float, columns: int) -> np.ndarray:
        return np.stack([low + (high - low) * next(draws) for _ in range(columns)], axis=1)

    angles = np.concatenate([draw(0, 2 * np.pi, 2), draw(0, TILT, 1)], axis=1)
    scale = draw(0.75, 0.98, 1)
    place = np.concatenate([draw(-0.25, 0.25, 1), scale * draw(0.8, 1.0, 1), draw(-0.25, 0.25, 1)], axis=1)
    sun = np.concatenate([draw(-0.9, 0.9, 1), draw(0.9, 1.3, 1), draw(0.2, 1.1, 1)], axis=1)
    sun /= np.linalg.norm(sun, axis=1, keepdims=True)
    slant, behind = draw(-0.5, 0.5, 1), draw(-2.6, -1.6, 1)
    wall = np.concatenate([np.sin(slant), np.zeros_like(slant), np.cos(slant)], axis=1)
    colours = draw(0.25, 0.95, 9)  # colours of solid, floor and wall
    contrasts, waves, phases = draw(0, CONTRAST, 3), draw(-7, 7, 9), draw(0, 2 * np.pi, 3)
    rotation = _rotations(angles)

    def tensor(values: np.ndarray) -> Tensor:  # double precision ends here
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    rays, axis = _camera(side)
    pixels = rays.shape[1]
    eye = np.array(EYE)
    turn, size = tensor(rotation), tensor(scale[:, 0])
    origin = tensor(np.einsum("nij,nj->ni", rotation, eye - place) / scale)  # the eye in the solid's frame
    light = tensor(np.einsum("nij,nj->ni", rotation, sun))

    # The planes: floor y = 0 and wall n·p = behind.
    floor = torch.where(rays[1] < 0, -eye[1] / rays[1], torch.inf).expand(count, pixels)
    normal, height = tensor(wall), tensor(behind - (wall @ eye)[:, None])
    facing = normal[:, :1] * rays[0] + normal[:, 2:] * rays[2]
    wall_distance = torch.where(facing < 0, height / facing, torch.inf)
    reach = torch.minimum(floor, wall_distance)
    on_wall = wall_distance < floor

    # The solid, by sphere tracing in its own frame.
    image = torch.arange(count).repeat_interleave(pixels)
    pixel = torch.arange(pixels).repeat(count)
    directions = _rotate(turn, image, rays[:, pixel])
    starts = origin[image].T.contiguous()
    travelled = _trace(distance, starts, directions) * size[image]
    hit = travelled < reach.reshape(-1)
    reach = torch.where(hit, travelled, reach.reshape(-1))
    depth = reach * (axis[0] * rays[0] + axis[1] * rays[1] + axis[2] * rays[2])[pixel]

    # Where each ray ends, in the world and, for shading, in the solid's frame.
    world = rays[:, pixel] * reach + tensor(eye)[:, None]
    local = starts + directions * (reach / size[image])
    surface = torch.where(hit, 0, torch.where(on_wall.reshape(-1), 2, 1))  # solid, floor, wall

    # Lambert's law, and a shadow where the solid stands between the point and the sun.
    sunward = tensor(sun)
    lambert = torch.where(surface == 1, sunward[image, 1], (normal * sunward).sum(1)[image]).clamp_min(0)
    ends = local[:, hit]
    lambert[hit] = (_normals(distance, ends) * light[image[hit]].T).sum(0).clamp_min(0)
    ground = (~hit).nonzero().squeeze(1)
    shade = _trace(distance, local[:, ground].contiguous(), light[image[ground]].T.contiguous())
    lambert[ground[shade.isfinite()]] = 0

    # Sinusoid textures on all three surfaces.
    where = torch.where(hit, local, world)
    kind = image * 3 + surface
    frequency = tensor(waves).view(-1, 3)[kind].T
    wave = (frequency * where).sum(0) + tensor(phases).view(-1)[kind]
    texture = 1 + tensor(contrasts).view(-1)[kind] * wave.sin()
    albedo = tensor(colours).view(-1, 3)[kind].T
    colour = albedo * (texture * (AMBIENT + (1 - AMBIENT) * lambert))
    grid = (count, side, side)
    return colour.view(3, *grid).transpose(0, 1), depth.view(grid), hit.view(grid)


def _rotate(turn: Tensor, image: Tensor, vectors: Tensor) -> Tensor:
    """Rotate world vectors 3×M into the frame of their image's solid."""
    rows = [
        turn[image, row, 0] * vectors[0] + turn[image, row, 1] * vectors[1] + turn[image, row, 2] * vectors[2]
        for row in range(3)
    ]
    return torch.stack(rows)


def _trace(distance: Callable[[Tensor, Tensor, Tensor], Tensor], starts: Tensor, directions: Tensor) -> Tensor:
    """Return the distance that each ray 3×M travels to the solid, in its frame; infinite where it misses."""
    along = (starts * directions).sum(0)
    square = along * along - (starts * starts).sum(0) + BOUND**2
    enter = -along - square.clamp_min(0).sqrt()
    leave = -along + square.clamp_min(0).sqrt()
    travelled = torch.full_like(along, torch.inf)
    active = ((square > 0) & (leave > 0)).nonzero().squeeze(1)
    far = enter.clamp_min(0)[active]
    begin, heading, leave = starts[:, active], directions[:, active], leave[active]
    for _ in range(64):
        gap = distance(*(begin + heading * far))
        far = far + gap
        arrived = gap < 1e-3
        travelled[active[arrived]] = far[arrived]
        going = ~arrived & (far < leave)
        active, far, leave = active[going], far[going], leave[going]
        begin, heading = begin[:, going], heading[:, going]
        if not len(active):
            break
    grazing = distance(*(begin + heading * far)) < 0.02  # else such rays would leave speckles
    travelled[active[grazing]] = far[grazing]
    return travelled


def _normals(distance: Callable[[Tensor, Tensor, Tensor], Tensor], points: Tensor) -> Tensor:
    """Return outward unit normals 3×M at surface points 3×M, by central differences of the distance."""
    x, y, z = points
    step = 1e-3
    slopes = torch.stack(
        [
            distance(x + step, y, z) - distance(x - step, y, z),
            distance(x, y + step, z) - distance(x, y - step, z),
            distance(x, y, z + step) - distance(x, y, z - step),
        ]
    )
    return slopes / (slopes * slopes).sum(0).sqrt().clamp_min(1e-12)
