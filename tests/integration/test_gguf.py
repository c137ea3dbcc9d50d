"""A GGUF file as diffusers loads it: written here, read by its single-file loader, cached and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import GGUFQuantizationConfig, QwenImageTransformer2DModel
from torch import nn

from fxcache.runtime.attribution import attribution
from tests.integration.scenes import DECISIONS, equal, fxcache_of, plain, play, relative, scene, worst
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

KINDS = ("Q8_0", "Q5_1", "Q4_0")
BLOCK = 32
"""Values of a row that share a scale in these kinds."""


def write(module: nn.Module, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The layers of the blocks in this kind, everything else as it is."""
    writer = gguf.GGUFWriter(path, arch="qwen_image")
    for name, tensor in module.state_dict().items():
        values = tensor.numpy()
        if "transformer_blocks" in name and values.ndim == 2 and values.shape[-1] % BLOCK == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def loaded(tiny: TinyModel, folder: Path, kind: str) -> TinyModel:
    """The same model with its weights from a file."""
    config = {**tiny.module.config, "num_attention_heads": 4}
    torch.manual_seed(0)
    source = QwenImageTransformer2DModel.from_config(config).eval()
    source.save_config(folder)
    write(source, folder / "model.gguf", gguf.GGMLQuantizationType[kind])
    module = QwenImageTransformer2DModel.from_single_file(
        str(folder / "model.gguf"),
        config=str(folder),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    # the file holds what was meant: rounded weights, not others
    call = tiny.inputs(0)
    assert 0 < relative(tiny.run(call, module), tiny.run(call, source)) < 0.1
    return dataclasses.replace(tiny, module=module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_gguf_file(tmp_path: Path, kind: str, inner: str) -> None:
    torch._dynamo.reset()
    attribution.forget()
    model = loaded(TRANSFORMERS["qwen"](), tmp_path, kind)
    coded = [name for name, each in model.module.named_parameters() if type(each) is not nn.Parameter]
    assert len(coded) > 20
    calls = scene(model)
    outputs = plain(model, calls, backend=inner)
    torch._dynamo.reset()
    run = play(model, fxcache_of(model.module, inner_backend=inner), calls)
    assert run.decisions == DECISIONS
    assert equal(run.computed(), run.choose(outputs))
    assert 1e-5 < worst(run.outputs[1:2], outputs[1:2]) < 0.2
