"""Every way in which pipelines of diffusers call their transformers that is tested, one tiny pipeline each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffusers as D

from tests.integration.eager import BLOCKS, DOUBLE_SINGLE, PICTURE_FIRST, Blocks
from tests.models.pipelines import PIPELINES, pixart
from tests.models.pipelines_chunks import PIPELINES_CHUNKS
from tests.models.pipelines_guided import PIPELINES_GUIDED
from tests.models.pipelines_image import PIPELINES_IMAGE
from tests.models.pipelines_video import PIPELINES_VIDEO
from tests.models.tiny_pipeline import TinyPipeline

Turn = tuple[int, str]
"""Whose call it is: the loop of the generation (-1: before all loops), and the branch."""
BEFORE = -1


def turns(*names: str, loops: int = 1) -> Callable[[int], Iterable[Turn]]:
    """The branches of a step take turns, in every step of every loop."""

    def of(steps: int) -> Iterable[Turn]:
        if loops == 1:  # a scheduler may come to a step more than once
            return itertools.cycle((0, name) for name in names)
        return ((loop, name) for loop in range(loops) for _ in range(steps) for name in names)

    return of


def turns_until(share: float, first: Sequence[str], then: Sequence[str]) -> Callable[[int], Iterable[Turn]]:
    """Other branches in the first steps than in the rest."""

    def of(steps: int) -> Iterable[Turn]:
        return ((0, name) for step in range(steps) for name in (first if step < share * steps else then))

    return of


@dataclass(frozen=True)
class Case:
    """A tiny pipeline, and what somebody knows of it who has read its code."""

    build: Callable[..., TinyPipeline]
    shows: str
    """What is special about the way in which it calls its transformer."""
    blocks: Blocks
    turns: Callable[[int], Iterable[Turn]]
    models: tuple[str, ...] = ("transformer",)
    steps: int = 6
    layers: int = 3
    family: str = ""
    """Cases of one family share their compiled code."""
    sizes: bool = False
    """Whether another size is tried too."""
    slow: bool = False
    """Whether its compilation takes more than half a minute, or shows little that another case does not."""
    warmup: int = 1
    """Calls of a generation before the first that may be reused: two where the first has to find out a size."""
    exclusive: bool = False
    """Whether a generation changes the model and changes it back, so that two cannot take turns on it."""
    refusal: str | None = None
    """What the refusal says, where the blocks do not come in one graph."""

    def make(self) -> TinyPipeline:
        return self.build(layers=self.layers)


ONE, TWO, GUIDER = turns("branch 1"), turns("branch 1", "branch 2"), turns("pred_cond", "pred_uncond")
NAMED = turns("cond", "uncond")
TEXT_TOO = Blocks(("transformer_blocks",), PICTURE_FIRST)
ALONE = Blocks(("transformer_blocks",))
IN_PLACES = "graph breaks cut the model into at least [0-9]+ graphs, none of them with a usable trunk"
_SCHEDULERS: dict[str, tuple[Any, int]] = {
    "euler": (D.EulerDiscreteScheduler, 5),
    "ddim": (D.DDIMScheduler, 5),
    "unipc": (D.UniPCMultistepScheduler, 5),
    "lcm": (D.LCMScheduler, 4),
    "heun": (D.HeunDiscreteScheduler, 5),
    "kdpm2": (D.KDPM2DiscreteScheduler, 5),
    "pndm": (partial(D.PNDMScheduler, skip_prk_steps=True), 5),
}


def _pixart_with(scheduler: Any, layers: int = 3) -> TinyPipeline:
    return pixart(layers=layers, scheduler=scheduler())


def _first_line(build: Callable[..., Any]) -> str:
    text = (build.__doc__ or "").partition("\n")[0]
    return text.rstrip(".")


def _case(
    build: Callable[..., TinyPipeline], blocks: Blocks, order: Callable[[int], Iterable[Turn]], **more: Any
) -> Case:
    return Case(build, _first_line(build), blocks, order, **more)


_P, _I, _V, _C, _G = PIPELINES, PIPELINES_IMAGE, PIPELINES_VIDEO, PIPELINES_CHUNKS, PIPELINES_GUIDED
CASES: dict[str, Case] = {
    "flux": _case(_P["flux"], BLOCKS["flux"], NAMED, family="flux"),
    "flux_plain": _case(_I["flux_plain"], BLOCKS["flux"], turns("cond"), family="flux"),
    "flux_img2img": _case(_I["flux_img2img"], BLOCKS["flux"], TWO, family="flux"),
    "flux_inpaint": _case(_I["flux_inpaint"], BLOCKS["flux"], TWO, sizes=True, family="flux"),
    "flux_kontext": _case(_I["flux_kontext"], BLOCKS["flux"], TWO),
    "flux_controlnet": _case(_I["flux_controlnet"], replace(BLOCKS["flux"], between=True), TWO),
    "flux_ip_adapter": _case(_I["flux_ip_adapter"], BLOCKS["flux"], NAMED),
    "sd3": _case(_P["sd3"], BLOCKS["sd3"], ONE, layers=5, family="sd3"),
    "sd3_skipped_layers": _case(
        _I["sd3_skipped_layers"],
        BLOCKS["sd3"],
        turns_until(0.6, ("branch 1", "branch 2"), ("branch 1",)),
        layers=5,
        family="sd3",
        sizes=True,
    ),
    "qwen": _case(_P["qwen"], BLOCKS["qwen"], NAMED, family="qwen"),
    "qwen_modular": _case(_G["qwen_modular"], BLOCKS["qwen"], TWO, family="qwen"),
    "sana": _case(_I["sana"], ALONE, ONE, sizes=True),
    "sana_pag": _case(_G["sana_pag"], ALONE, ONE, exclusive=True),
    "lumina2": _case(_I["lumina2"], Blocks(("layers",)), TWO, sizes=True, family="lumina2"),
    "lumina2_truncated": _case(
        _I["lumina2_truncated"],
        Blocks(("layers",)),
        turns_until(0.5, ("branch 1", "branch 2"), ("branch 1",)),
        family="lumina2",
    ),
    "z_image": _case(_I["z_image"], Blocks(("layers",), ("x",)), ONE),
    "z_image_truncated": _case(
        _I["z_image_truncated"],
        Blocks(("layers",), ("x",)),
        turns_until(0.6, ("branch 1",), ("branch 2",)),
        slow=True,
    ),
    "hunyuan_image": _case(_I["hunyuan_image"], Blocks(DOUBLE_SINGLE, PICTURE_FIRST), GUIDER),
    "glm_image": _case(_I["glm_image"], TEXT_TOO, TWO, family="glm_image"),
    "glm_image_edit": _case(
        _I["glm_image_edit"],
        TEXT_TOO,
        lambda steps: itertools.chain([(BEFORE, "branch 1")], TWO(steps)),
        family="glm_image",
        slow=True,
    ),
    "dit": _case(_P["dit"], BLOCKS["dit"], ONE),
    "pixart": _case(_P["pixart"], BLOCKS["pixart"], ONE),
    "pixart_pag": _case(_G["pixart_pag"], BLOCKS["pixart"], ONE, layers=4, exclusive=True, slow=True),
    **{
        f"pixart_{name}": Case(
            partial(_pixart_with, scheduler),
            f"As before, with {getattr(scheduler, 'func', scheduler).__name__}",
            BLOCKS["pixart"],
            ONE,
            steps=steps,
        )
        for name, (scheduler, steps) in _SCHEDULERS.items()
    },
    "wan": _case(_P["wan"], BLOCKS["wan"], NAMED, family="wan"),
    "wan_two": _case(
        _V["wan_two"], BLOCKS["wan"], NAMED, models=("transformer", "transformer_2"), sizes=True, family="wan"
    ),
    "wan_expanded_time": _case(_V["wan_expanded_time"], BLOCKS["wan"], NAMED),
    "wan_video_to_video": _case(_V["wan_video_to_video"], BLOCKS["wan"], TWO, family="wan"),
    "cogvideox": _case(_P["cogvideox"], BLOCKS["cogvideox"], turns("cond_uncond")),
    "hunyuan_video": _case(_P["hunyuan_video"], BLOCKS["hunyuan_video"], NAMED, family="hunyuan_video"),
    "hunyuan_video_plain": _case(
        _V["hunyuan_video_plain"], BLOCKS["hunyuan_video"], turns("cond"), family="hunyuan_video"
    ),
    "hunyuan_video15": _case(_V["hunyuan_video15"], TEXT_TOO, GUIDER),
    "motif_video": _case(_V["motif_video"], Blocks(DOUBLE_SINGLE, PICTURE_FIRST), GUIDER),
    "ace_step": _case(_G["ace_step"], Blocks(("layers",)), ONE),
    "ltx": _case(_V["ltx"], ALONE, turns("cond_uncond"), sizes=True),
    "ltx2": _case(
        _C["ltx2"],
        Blocks(("transformer_blocks",), ("hidden_states", "audio_hidden_states")),
        turns("cond_uncond", "uncond_stg", "uncond_modality"),
        slow=True,
    ),
    "helios": _case(_C["helios"], Blocks(("blocks",)), turns("cond", "uncond", loops=2)),
    "framepack": _case(
        _C["framepack"],
        TEXT_TOO,
        turns("branch 1", "branch 2", loops=2),
        warmup=2,
    ),
    "stable_audio": _case(_C["stable_audio"], ALONE, ONE),
}
"""All cases."""

NOT_BUILT: dict[str, str] = {
    "StableDiffusion3PAGPipeline": "its attention writes into a view made with as_strided, which torch.compile refuses "
    "with every backend that traces to ATen",
    "StableAudioPipeline with CosineDPMSolverMultistepScheduler": "its noise needs the package torchsde; tried with "
    "EulerDiscreteScheduler instead",
}
"""What was wanted and is not here, with the reason."""
