"""What the inputs of a traced graph are taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcache.inner import compile_through, lower
from fxcache.intake import argument_name, is_static, roles_of, source_name
from fxcache.options import Options
from fxcache.runtime.interface import InputRoles
from tests.models.transformers import TRANSFORMERS


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['hidden_states']", "hidden_states"),
        ("L['kwargs']['timestep']", "timestep"),
        ("L['args'][1]", "1"),
        ("L['x'][0]", "x.0"),
        ("L['batch']['cond']['text']", "batch.cond.text"),
        ("L['residuals'][3][1]", "residuals.3.1"),
        ("L['inputs'].latents", "inputs.latents"),
        ("G['something']", "something"),
        ("", ""),
    ],
)
def test_argument_names(source: str, name: str):
    assert argument_name(source) == name


class Small(nn.Module):
    """Time through sines, labels through a table, a mask, and rotation angles."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.time, self.outside = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.table = nn.Embedding(5, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: Tensor, when: Tensor, label: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        waves = (when[:, None] * torch.arange(4)).float()
        time = self.time(torch.cat([waves.sin(), waves.cos()], -1))
        h = self.inside(x) * self.scale + time[:, None] + self.table(label)[:, None]
        h = h * angles.cos() * torch.where(mask, 1.0, 0.0)[..., None]
        return self.outside(h)


@dataclass
class Taken:
    """What the seam sees of one call."""

    dynamo: GraphModule
    inputs: Sequence[Any]
    roles: InputRoles


def take_in(module: nn.Module, *args: Any, **kwargs: Any) -> Taken:
    taken: list[Taken] = []
    options = Options(inner_backend="aot_eager")

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Any:
        dynamo, given = gm.__copy__(), tuple(inputs)

        def seam(aten: GraphModule, flat: Sequence[Any], **facts: Any) -> Any:
            taken.append(Taken(dynamo, given, roles_of(dynamo, given, aten, facts["static_input_idxs"])))
            return lower(aten, flat, options, facts, rewritten=False)

        return compile_through(seam, gm, inputs, options)

    with torch.no_grad():
        torch.compile(module, backend=backend, fullgraph=True)(*args, **kwargs)
    (only,) = taken
    return only


def named(taken: Taken) -> dict[str, list[str]]:
    roles = taken.roles
    kinds = ("latents", "timestep", "conditioning", "other")
    positions = [i for kind in ("parameters", *kinds) for i in getattr(roles, kind)]
    assert sorted(positions) == list(range(len(taken.inputs))), "every input has one role"
    return {kind: sorted(roles.names[i] for i in getattr(roles, kind)) for kind in kinds}


def small_inputs() -> dict[str, Tensor]:
    return {
        "x": torch.randn(2, 6, 4),
        "when": torch.rand(2),
        "label": torch.tensor([1, 2]),
        "mask": torch.ones(2, 6, dtype=torch.bool),
        "angles": torch.randn(6, 8),
    }


def test_roles_from_the_dataflow():
    taken = take_in(Small().eval(), **small_inputs())
    assert named(taken) == {
        "latents": ["x"],
        "timestep": ["when"],
        "conditioning": ["label"],
        "other": ["angles", "mask"],
    }
    assert len(taken.roles.parameters) == 8


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "sequential_dit",
            {"latents": ["x"], "timestep": ["t"], "conditioning": ["y"], "other": []},
        ),
        (
            "tied",
            {"latents": ["sample"], "timestep": ["timestep"], "conditioning": ["cond"], "other": []},
        ),
        pytest.param(
            "postnorm_encoder",
            {
                "latents": ["batch.noisy.data"],
                "timestep": ["batch.noisy.time"],
                "conditioning": ["batch.cond.text"],
                "other": [],
            },
        ),
    ],
)
def test_roles_of_models_in_other_styles(model: str, expected: dict[str, list[str]]):
    tiny = TRANSFORMERS[model](layers=1)
    args, kwargs = tiny.split(tiny.inputs())
    assert named(take_in(tiny.module, *args, **kwargs)) == expected


class Over(nn.Module):
    """What it takes are the arguments of any call; all but the second have the shape of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        x, time, picture, r = inputs
        return self.inside(x) + time[:, None, None].cos() + self.inside(picture) + r[:, None, None]


def test_arguments_in_one_tuple_are_not_a_list_of_latents():
    call = (torch.randn(2, 6, 4), torch.rand(2), torch.randn(2, 6, 4), torch.rand(2))
    assert named(take_in(Over().eval(), *call)) == {
        "latents": ["inputs.0"],
        "timestep": ["inputs.1"],
        "conditioning": ["inputs.2"],
        "other": ["inputs.3"],
    }


class Several(nn.Module):
    """A list of pictures, each of which is denoised."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, pictures: list[Tensor], t: Tensor, r: Tensor, y: Tensor) -> list[Tensor]:
        return [self.inside(each) + (t + self.inside(y).sum(-1) - r)[:, None, None] for each in pictures]


def test_the_time_a_step_leads_to_and_a_list_of_latents():
    taken = take_in(Several().eval(), [torch.randn(2, 6, 4), torch.randn(2, 3, 4)], *torch.rand(2, 2), torch.rand(2, 4))
    assert named(taken) == {
        "latents": ["pictures.0", "pictures.1"],
        "timestep": ["r", "t"],
        "conditioning": ["y"],
        "other": [],
    }
    assert taken.roles.names[taken.roles.timestep[0]] == "t"


class Words(nn.Module):
    """Masked diffusion of words: what is denoised are numbers of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.inside = nn.Embedding(9, 6), nn.Embedding(3, 6), nn.Linear(6, 9)

    def forward(self, words: Tensor, kind: Tensor, mask: Tensor, text: Tensor | None = None) -> Tensor:
        h = self.words(words) + self.kinds(kind)[:, None]
        return self.inside(h * mask[..., None]) + (0 if text is None else self.inside(text))


def test_words_are_latents_where_nothing_else_looks_like_the_output():
    words, kind = torch.randint(0, 9, (2, 5)), torch.tensor([0, 1])
    mask = torch.ones(2, 5, dtype=torch.int64)
    found = named(take_in(Words().eval(), words, kind, mask))
    assert found == {"latents": ["words"], "timestep": [], "conditioning": ["kind"], "other": ["mask"]}
    found = named(take_in(Words().eval(), words, kind, mask, torch.randn(2, 5, 6)))
    assert found["latents"] == ["text"]
    assert "words" in found["conditioning"]


def test_what_belongs_to_the_model_is_static():
    taken = take_in(Small().eval(), **small_inputs())
    placeholders = taken.dynamo.graph.find_nodes(op="placeholder")
    pairs = zip(placeholders, taken.inputs, strict=True)
    moving = [source_name(node) for node, value in pairs if not is_static(node, value)]
    assert sorted(moving) == ["L['angles']", "L['label']", "L['mask']", "L['when']", "L['x']"]
