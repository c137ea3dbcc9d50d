"""Every transformer class of diffusers with its tiny form, and what fxcache should make of it where that is special."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import diffusers.models.transformers as package
from torch import nn

from tests.models.tiny import TinyModel
from tests.models.transformers import DIFFUSERS
from tests.models.wide import WIDE
from tests.models.wide_packed import WIDE_PACKED
from tests.models.wide_parts import WIDE_PARTS

BUILDERS: dict[str, Callable[..., TinyModel]] = {**DIFFUSERS, **WIDE, **WIDE_PACKED, **WIDE_PARTS}
"""All tiny forms of classes of diffusers."""


@dataclass(frozen=True)
class Entry:
    """The tiny form of one class."""

    builder: str
    """Its name in `BUILDERS`."""
    trunk: str = ""
    """What the trunk should be, where it is not all stacks of the model one after the other."""
    refused: str = ""
    """Why the class should be refused: the reason in one line."""
    says: str = ""
    """What the warning of a refused class should say: a regular expression."""
    one_size: str = ""
    """Why no second size is tried: what stops the plain model under `torch.compile`."""
    one_size_inductor: str = ""
    """The same of Inductor alone: a second size is tried under the other compilers."""
    late: tuple[str, ...] = ()
    """Splits under which the size of what is stored depends on data: it is met by one call and stored by the next."""

    def build(self) -> TinyModel:
        """The model with four blocks; where its trunk has two stacks, with three in each."""
        tiny = BUILDERS[self.builder](layers=4)
        return tiny if len(tiny.stacks) < 2 or self.trunk else BUILDERS[self.builder](layers=3)

    def expected(self, tiny: TinyModel) -> str:
        """The label of the trunk that should be found; empty where none should be."""
        stacks = " + ".join(f"{path}[{number}]" for path, number in tiny.stacks)
        return "" if self.refused else self.trunk or stacks


def exported() -> list[str]:
    """The names of all transformer classes that diffusers exports, with a tiny form here or without."""
    # a name may have no class behind it, depending on what else is installed
    here = {name: getattr(package, name, None) for name in dir(package)}
    top = {name: getattr(diffusers, name, None) for name in dir(diffusers) if not name.startswith("_")}
    lies_here = f"{package.__name__}."
    return sorted(
        name
        for name, value in {**here, **top}.items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__.startswith(lies_here)
    )


SCATTERED = "graph breaks cut the model into at least [0-9]+ graphs, none of them with a usable trunk"

_ALL: dict[str, Entry] = {
    "AceStepTransformer1DModel": Entry("ace_step"),
    "AllegroTransformer3DModel": Entry("allegro"),
    "AnyFlowFARTransformer3DModel": Entry(
        "anyflow_far",
        one_size_inductor="what Inductor of torch 2.13 makes of its attention in dynamic sizes "
        "reads memory not written",
    ),
    "AnyFlowTransformer3DModel": Entry("anyflow"),
    "AuraFlowTransformer2DModel": Entry("auraflow"),
    "BriaFibo2Transformer2DModel": Entry("bria_fibo2"),
    "BriaFiboTransformer2DModel": Entry("bria_fibo"),
    "BriaTransformer2DModel": Entry("bria"),
    "ChromaTransformer2DModel": Entry("chroma"),
    "ChronoEditTransformer3DModel": Entry("chronoedit"),
    "CogVideoXTransformer3DModel": Entry("cogvideox"),
    "CogView3PlusTransformer2DModel": Entry("cogview3plus"),
    "CogView4Transformer2DModel": Entry("cogview4"),
    "ConsisIDTransformer3DModel": Entry("consisid"),
    "Cosmos3OmniTransformer": Entry("cosmos3"),
    "CosmosTransformer3DModel": Entry("cosmos"),
    "DiTTransformer2DModel": Entry("dit"),
    "DreamLiteTransformer2DModel": Entry("dreamlite"),
    "DualTransformer2DModel": Entry("dual"),
    "EasyAnimateTransformer3DModel": Entry("easyanimate"),
    "ErnieImageTransformer2DModel": Entry("ernie_image"),
    "Flux2Transformer2DModel": Entry("flux2"),
    "Flux3Transformer2DModel": Entry("flux3_single"),
    "FluxTransformer2DModel": Entry("flux"),
    "GlmImageTransformer2DModel": Entry("glm_image"),
    "HeliosTransformer3DModel": Entry("helios"),
    "HiDreamImageTransformer2DModel": Entry(
        "hidream", refused="a graph break in every block, where its experts are chosen by data", says=SCATTERED
    ),
    "HunyuanDiT2DModel": Entry("hunyuan_dit"),
    "HunyuanImageTransformer2DModel": Entry("hunyuan_image"),
    "HunyuanVideo15Transformer3DModel": Entry("hunyuan_video15", late=("F1B1", "F2B1")),
    "HunyuanVideoFramepackTransformer3DModel": Entry(
        "framepack",
        trunk="transformer_blocks[4]",
        one_size_inductor="the code that Inductor of torch 2.13 makes of the plain model has an undefined name",
        late=("F1B0", "F1B1", "F2B1"),
    ),
    "HunyuanVideoTransformer3DModel": Entry("hunyuan_video"),
    "Ideogram4Transformer2DModel": Entry("ideogram4"),
    "JoyImageEditPlusTransformer3DModel": Entry("joyimage_plus"),
    "JoyImageEditTransformer3DModel": Entry("joyimage"),
    "Kandinsky5Transformer3DModel": Entry("kandinsky5"),
    "Kandinsky6SRTransformer3DModel": Entry("kandinsky6_sr"),
    "Kandinsky6Transformer3DModel": Entry("kandinsky6"),
    "Krea2Transformer2DModel": Entry("krea2"),
    "LTX2VideoTransformer3DModel": Entry("ltx2"),
    "LTXVideoTransformer3DModel": Entry("ltx"),
    "LatteTransformer3DModel": Entry("latte", trunk="transformer_blocks[4]"),
    "LongCatAudioDiTTransformer": Entry("longcat_audio"),
    "LongCatImageTransformer2DModel": Entry("longcat_image"),
    "Lumina2Transformer2DModel": Entry("lumina2"),
    "LuminaNextDiT2DModel": Entry("lumina_next"),
    "MiniMaxH3Transformer3DModel": Entry("minimax_h3"),
    "MiniMaxMusic3RVQDepthDecoder": Entry("depth_decoder"),
    "MiniMaxMusic3Transformer1DModel": Entry("minimax_music3"),
    "MochiTransformer3DModel": Entry("mochi"),
    "MotifVideoTransformer3DModel": Entry("motif_video"),
    "NucleusMoEImageTransformer2DModel": Entry(
        "nucleus_moe",
        one_size="torch 2.13 cannot trace its experts with dynamic sizes, under aot_eager neither",
    ),
    "OmniGenTransformer2DModel": Entry("omnigen"),
    "OvisImageTransformer2DModel": Entry("ovis_image"),
    "PRXTransformer2DModel": Entry("prx"),
    "PixArtTransformer2DModel": Entry("pixart"),
    "PriorTransformer": Entry("prior"),
    "QwenImage21Transformer2DModel": Entry("qwen21"),
    "QwenImageTransformer2DModel": Entry("qwen"),
    "RFD4ProteinaTransformer": Entry("proteina"),
    "SD3Transformer2DModel": Entry("sd3"),
    "SanaTransformer2DModel": Entry("sana"),
    "SanaVideoTransformer3DModel": Entry("sana_video"),
    "SanaWMLTX2RefinerTransformer3DModel": Entry("sana_wm_refiner"),
    "SanaWMTransformer3DModel": Entry("sana_wm"),
    "SkyReelsV2Transformer3DModel": Entry("skyreels_v2"),
    "StableAudio3DiTModel": Entry("stable_audio3"),
    "StableAudioDiTModel": Entry("stable_audio"),
    "T5FilmDecoder": Entry("t5_film"),
    "Transformer2DModel": Entry("transformer_2d"),
    "TransformerTemporalModel": Entry("temporal"),
    "WanAnimate2Transformer3DModel": Entry(
        "wan_animate2", refused="every block reads the number of frames, rows and columns from a tensor", says=SCATTERED
    ),
    "WanAnimateTransformer3DModel": Entry("wan_animate"),
    "WanTransformer3DModel": Entry("wan"),
    "WanVACETransformer3DModel": Entry("wan_vace"),
    "ZImageTransformer2DModel": Entry("z_image"),
}
ENTRIES = {name: entry for name, entry in _ALL.items() if entry.builder in BUILDERS}
"""By class."""
