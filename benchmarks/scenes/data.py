"""Draw scenes: 32x32 pictures of one to four objects on a background, a whole batch at once on any device.

Objects are drawn from signed distances in pixels, in the 16x16 quarter of their place, with a dark outline.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from benchmarks.scenes.caption import BACKGROUNDS, COLOURS, NOTHING, PLACES, SHAPES, SIZES, Layouts

IMAGE_SIZE = 32
QUARTER = IMAGE_SIZE // 2
RADII = (4.0, 6.3)
"""In pixels, of each size."""
SHIFTS = (1.8, 0.6)
"""The largest distance of an object from the middle of its place along each axis, in pixels, of each size."""
LARGEST_ANGLE = math.radians(20)
OUTLINE = 0.8
PAINT = ((225, 30, 35), (40, 225, 70), (35, 60, 235), (252, 224, 40), (250, 90, 200), (252, 252, 252))
"""Red, green and blue of 0..255, of each colour."""


def random_layouts(count: int, generator: torch.Generator) -> Layouts:
    """Scenes of one to four objects, every number equally often, on the generator's device."""
    device = generator.device
    wanted = torch.randint(1, len(PLACES) + 1, (count, 1), generator=generator, device=device)
    order = torch.rand(count, len(PLACES), generator=generator, device=device).argsort(dim=1)
    kinds = [
        torch.randint(len(words), (count, len(PLACES)), generator=generator, device=device)
        for words in (SHAPES, COLOURS, SIZES)
    ]
    empty = order >= wanted
    things = torch.stack(kinds, dim=-1).masked_fill(empty[..., None], NOTHING)
    return Layouts(things, torch.randint(len(BACKGROUNDS), (count,), generator=generator, device=device))


def draw(layouts: Layouts, generator: torch.Generator) -> Tensor:
    """Pictures float32 [N, 3, 32, 32] in [0, 1] on the generator's device; place, angle, shade and texture vary."""
    layouts = layouts.to(generator.device)
    pictures = _backgrounds(layouts.backgrounds, generator)
    quarters = pictures.unflatten(3, (2, QUARTER)).unflatten(2, (2, QUARTER)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    body, outline, paint = _objects(layouts.things, generator)
    dark = paint * 0.2
    quarters = quarters + outline * (dark - quarters)
    quarters = quarters + body * (paint - quarters)
    pictures = quarters.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return pictures.clamp(0, 1)


def _objects(things: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The cover of object and of outline at each pixel [N, 4, 1, 16, 16], and the paint [N, 4, 3, 1, 1]."""
    device = things.device

    def spread(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * 2 - 1

    present = things[..., 0] != NOTHING
    shape, colour, size = things.clamp(min=0).unbind(dim=-1)
    count = shape.shape
    radius = _constant(RADII, device)[size] * (1 + 0.05 * spread(*count))
    shift = _constant(SHIFTS, device)[size, None] * spread(*count, 2)
    angle = LARGEST_ANGLE * spread(*count)
    axis = torch.arange(QUARTER, device=device) - (QUARTER - 1) / 2
    across, down = axis - shift[..., 0, None], axis - shift[..., 1, None]
    across, down = across[..., None, :], down[..., :, None]
    cosine, sine = angle.cos()[..., None, None], angle.sin()[..., None, None]
    x, y = cosine * across + sine * down, cosine * down - sine * across
    distances = _distances(x, y, radius[..., None, None])
    chosen = shape[..., None, None, None].expand(*count, 1, QUARTER, QUARTER)
    distance = torch.stack(distances, dim=2).gather(2, chosen)
    seen = present[..., None, None, None]
    body, outline = ((edge - distance).clamp(0, 1) * seen for edge in (0.5, 0.5 + OUTLINE))
    paint = _constant(PAINT, device)[colour] / 255
    return body, outline, (paint * (1 + 0.05 * spread(*count, 1)))[..., None, None]


def _distances(x: Tensor, y: Tensor, radius: Tensor) -> list[Tensor]:
    """Signed distances to each of SHAPES, negative inside; y points down."""
    length = (x.square() + y.square()).sqrt()

    def box(half_width: Tensor, half_height: Tensor) -> Tensor:
        right, below = x.abs() - half_width, y.abs() - half_height
        outside = (right.clamp(min=0).square() + below.clamp(min=0).square()).sqrt()
        return outside + torch.maximum(right, below).clamp(max=0)

    square = box(radius * 0.82, radius * 0.82)
    low = y - radius * 0.55
    slope = torch.maximum(x.abs() * (math.sqrt(3) / 2) - (y + radius * 1.08) / 2, low)
    ring = (length - radius * 0.76).abs() - radius * 0.24
    cross = torch.minimum(box(radius, radius * 0.27), box(radius * 0.27, radius))
    return [length - radius, square, slope, ring, cross, _star(x, y, radius * 1.12)]


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance to a five-pointed star with a tip on top: to the edge of the wedge that a point falls in when folded."""
    wedge = 2 * math.pi / 5
    length = (x.square() + y.square()).sqrt()
    folded = (torch.remainder(torch.atan2(x, -y) + wedge / 2, wedge) - wedge / 2).abs()
    along, aside = length * folded.cos(), length * folded.sin()
    # the edge runs from the tip (radius, 0) to the notch between two tips
    notch_along, notch_aside = 0.45 * math.cos(wedge / 2), 0.45 * math.sin(wedge / 2)
    edge_along, edge_aside = notch_along - 1, notch_aside
    norm = math.hypot(edge_along, edge_aside)
    return ((along - radius) * edge_aside - aside * edge_along) / norm


def _backgrounds(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [N, 3, 32, 32] of BACKGROUNDS without objects."""
    count, device = len(rows), rows.device

    def noise(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device) * 2 - 1

    def paint(*colour: int) -> Tensor:
        return _constant(colour, device).view(3, 1, 1) / 255

    axis = torch.arange(IMAGE_SIZE, device=device)
    down, across = axis.view(1, 1, -1, 1), axis.view(1, 1, 1, -1)
    depth = (down + 0.5) / IMAGE_SIZE + 0.15 * noise(1, 1, 1)
    grain = noise(1, IMAGE_SIZE, IMAGE_SIZE)

    sky = paint(90, 150, 220).lerp(paint(185, 215, 240), depth).expand(count, 3, IMAGE_SIZE, IMAGE_SIZE)
    stars = (grain > 0.97) * 0.35
    night = paint(10, 12, 38).lerp(paint(52, 38, 92), depth) + stars
    blades = noise(1, IMAGE_SIZE // 4, IMAGE_SIZE).repeat_interleave(4, dim=2)
    grass = paint(58, 104, 44) * (1 + 0.22 * blades)
    waves = (0.55 * across + 1.1 * down + math.pi * noise(1, 1, 1) + 0.8 * (0.3 * across).sin()).sin()
    sand = paint(206, 178, 128) * (1 + 0.06 * waves + 0.02 * grain)
    start = (noise(2, 1, 1, 1) * 4 + 4).floor()
    course, along = (down + start[:, 0]).long(), (across + start[:, 1]).long()
    row = course // 4
    along = along + (row % 2) * 4
    mortar = ((course % 4 == 0) | (along % 8 == 0)).float()
    brick = paint(146, 82, 64).lerp(paint(188, 176, 164), mortar) * (1 + 0.02 * grain)

    chosen = rows.view(1, -1, 1, 1, 1).expand(1, count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.stack((sky, night, grass, sand, brick)).gather(0, chosen)[0]


@cache
def _constant(values: tuple[object, ...], device: torch.device) -> Tensor:
    """Float32 numbers on a device, copied once: a copy for every batch would wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)
