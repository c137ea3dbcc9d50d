"""What a scene holds, and its caption: "large red circle top left, small blue star bottom right, on grass"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "pink", "white")
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
PLACES = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS = ("sky", "night", "grass", "sand", "brick")
NOTHING = -1


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str
    place: str

    def __post_init__(self) -> None:
        """Refuse words that are not in the vocabulary."""
        for kind, allowed in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES), ("place", PLACES)):
            _check(getattr(self, kind), kind, allowed)

    @classmethod
    def of(cls, words: str) -> Thing:
        """Read "large red circle top left"; ValueError names the word and what is allowed."""
        size, colour, shape, *place = words.split() + [""] * (4 - len(words.split()))
        return cls(size, colour, shape, " ".join(place).strip())

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape} {self.place}"


@dataclass(frozen=True)
class Scene:
    """One to four objects, each in a place of its own, on a background; objects are kept in the order of the places."""

    things: tuple[Thing, ...]
    background: str

    def __post_init__(self) -> None:
        """Sort the objects by place; refuse none at all, and two in one place."""
        _check(self.background, "background", BACKGROUNDS)
        if not 1 <= len(self.things) <= len(PLACES):
            raise ValueError(f"{len(self.things)} objects: expected 1 to {len(PLACES)}, one for a place")
        places = [thing.place for thing in self.things]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"{place!r} is named {places.count(place)} times: expected one object for a place")
        ordered = tuple(sorted(self.things, key=lambda thing: PLACES.index(thing.place)))
        object.__setattr__(self, "things", ordered)

    def caption(self) -> str:
        """The scene in words, the objects in the order of the places."""
        return ", ".join([*map(str, self.things), f"on {self.background}"])

    @classmethod
    def of(cls, caption: str) -> Scene:
        """Read a caption, the objects in any order; ValueError names the word and what is allowed."""
        *things, ground = (" ".join(part.split()) for part in caption.lower().split(","))
        if not ground.startswith("on "):
            raise ValueError(f"{ground!r} ends the caption: expected 'on' and one of {_listed(BACKGROUNDS)}")
        return cls(tuple(map(Thing.of, things)), ground.removeprefix("on "))


@dataclass(frozen=True)
class Layouts:
    """N scenes as numbers.

    `things` is int64 [N, 4 places, 3]: the rows in SHAPES, COLOURS and SIZES, all NOTHING where the place is empty.
    `backgrounds` is int64 [N]: the rows in BACKGROUNDS.
    """

    things: Tensor
    backgrounds: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene | str]) -> Layouts:
        """The numbers of scenes or captions, on the CPU."""
        read = [Scene.of(scene) if isinstance(scene, str) else scene for scene in scenes]
        things = torch.full((len(read), len(PLACES), 3), NOTHING)
        for row, scene in enumerate(read):
            for thing in scene.things:
                numbers = (SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(thing.size))
                things[row, PLACES.index(thing.place)] = torch.tensor(numbers)
        return cls(things, torch.tensor([BACKGROUNDS.index(scene.background) for scene in read], dtype=torch.long))

    def scenes(self) -> list[Scene]:
        """The scenes in words."""
        return [
            Scene(
                tuple(
                    Thing(SIZES[size], COLOURS[colour], SHAPES[shape], place)
                    for place, (shape, colour, size) in zip(PLACES, numbers, strict=True)
                    if shape != NOTHING
                ),
                BACKGROUNDS[background],
            )
            for numbers, background in zip(self.things.tolist(), self.backgrounds.tolist(), strict=True)
        ]

    def to(self, device: torch.device | str) -> Layouts:
        """The same scenes on another device."""
        return Layouts(self.things.to(device), self.backgrounds.to(device))

    def __len__(self) -> int:
        return len(self.backgrounds)

    def __getitem__(self, rows: slice) -> Layouts:
        return Layouts(self.things[rows], self.backgrounds[rows])


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _check(word: str, kind: str, allowed: Sequence[str]) -> None:
    if word not in allowed:
        raise ValueError(f"{word!r}: expected a {kind}, one of {_listed(allowed)}")
