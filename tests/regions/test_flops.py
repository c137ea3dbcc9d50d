"""Operations counted on fake values."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxcache.regions.flops import node_flops, region_flops
from tests.graphs import Sketch, aten


def test_products_convolutions_and_attention():
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 3)
    product = sketch.op(aten.mm.default, h, w)
    image, kernel = sketch.input("image", 1, 2, 5, 5), sketch.weight("kernel", 3, 2, 3, 3)
    conv = sketch.op(aten.convolution.default, image, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    q, k = sketch.input("q", 1, 2, 6, 8), sketch.input("k", 1, 2, 9, 8)
    attention = sketch.op(aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, k)
    assert node_flops(product) == 2 * 6 * 4 * 3
    assert node_flops(conv) == 2 * 5 * 5 * 3 * 2 * 9
    assert node_flops(attention) == 2 * (2 * 2 * 6 * 8 * 9)
    assert node_flops(sketch.op(aten.relu.default, h)) == 0
    assert node_flops(h) == 0


def test_attention_with_fewer_heads_of_keys_than_of_queries():
    sketch = Sketch()
    q, kv = sketch.input("q", 2, 6, 7, 8), sketch.input("kv", 2, 2, 9, 8)
    grouped = sketch.op(aten._scaled_dot_product_flash_attention_for_cpu.default, q, kv, kv)
    assert node_flops(grouped) == 2 * (2 * 6 * 7 * 9 * (8 + 8))


def test_a_layer_in_one_operator_counts_its_products_and_its_attention():
    sketch = Sketch()
    h, vector = sketch.input("h", 3, 5, 8), sketch.weight("vector", 8)
    qkv, out, up = ((sketch.weight(f"w{rows}", rows, 8), sketch.weight(f"b{rows}", rows)) for rows in (24, 8, 12))
    down, norm = sketch.weight("down", 8, 12), (vector, vector)
    arguments = [h, 8, 2, *qkv, *out, True, False, 1e-5, *norm, *norm, *up, down, vector]
    node = sketch.op(aten._transformer_encoder_layer_fwd.default, *arguments)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layer(torch.randn(3, 5, 8, requires_grad=True))  # operator by operator
    assert node_flops(node) == counter.get_total_flops()


def test_part_and_whole():
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    assert region_flops(sketch.graph, {"mm_2", "mm_3", "relu"}, {"mm"}) == (6 * 192, 2 * 192, 192)


def test_dynamic_sizes_are_not_pinned():
    sketch = Sketch()
    rows = sketch.size("rows", 6)
    product = sketch.op(aten.mm.default, sketch.input("h", rows, 4), sketch.weight("w", 4, 4))
    before = len(sketch.mode.shape_env.guards)
    assert node_flops(product) == 192
    assert len(sketch.mode.shape_env.guards) == before
