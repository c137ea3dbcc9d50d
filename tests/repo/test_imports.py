"""Imports point one way, along the way of the data; this table is where the direction is written down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.files import PACKAGE, ROOT, python_files, relative

# layer: (its modules below fxcache, the layers it may import besides itself)
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "base": (
        {
            *("checks", "configs", "contradictions", "dialect", "errors", "forecasts", "loading", "method_configs"),
            *("modifiers", "option_rules", "option_table", "options", "split", "steps", "version"),
        },
        set(),
    ),
    "kernels": ({"kernels"}, set()),
    "words": ({"runtime.interface"}, {"base"}),
    "calibrators": ({"calibrators"}, {"kernels"}),
    "policies": ({"policies"}, {"base", "words"}),
    "regions": ({"regions"}, {"base"}),
    "rewrite": ({"rewrite"}, {"base", "kernels", "regions"}),
    "runtime": ({"runtime"}, {"base", "kernels", "policies", "words"}),
    "entry": (
        {
            *("artefact", "backend", "breaks", "dispatch_once", "found", "inductor_settings", "inner", "intake"),
            *("trace_once", "tracing"),
        },
        {"base", "calibrators", "kernels", "policies", "regions", "rewrite", "runtime", "words"},
    ),
    "user": (
        {
            *("", "__main__", "api", "calibration", "cli", "debug", "enabled", "explain", "metrics"),
            *("metrics_command", "plot", "refresh", "short_name", "summary", "targets"),
        },
        {"base", "entry", "kernels", "policies", "regions", "rewrite", "runtime", "words"},
    ),
}
WITHOUT_FX = ("calibrators", "kernels", "policies", "runtime", "words")


def layer_of(module: str) -> str:
    parts = f"{module}..".split(".")
    for name in (f"{parts[1]}.{parts[2]}", parts[1]):
        for layer, (modules, _) in LAYERS.items():
            if name in modules:
                return layer
    raise AssertionError(f"{module}: say in LAYERS which layer {parts[1]!r} belongs to")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fxcache" else ("fxcache", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that the source imports, anywhere in it; names imported from ``package`` itself count as modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module or "")))
            yield from (f"{module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.fx":
            yield "torch.fx"


def ours(imported: str) -> str | None:
    """The module of fxcache that an import reaches, or None; a public name of the package root is the root."""
    if imported.split(".")[0] != "fxcache":
        return None
    part = f"{imported}.".split(".")[1]
    known = any(part in modules for modules, _ in LAYERS.values())
    is_module = (ROOT / "fxcache" / part).is_dir() or (ROOT / "fxcache" / f"{part}.py").is_file()
    return imported if known or is_module else "fxcache"


def cases() -> list[tuple[str, str, str]]:
    found = []
    for path in python_files(PACKAGE):
        module = module_name(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found += [(relative(path), module, imported) for imported in imports(path.read_text(), package)]
    return found


def test_imports_point_one_way():
    wrong = []
    for path, module, imported in cases():
        target = ours(imported)
        if target is None:
            continue
        source_layer, target_layer = layer_of(module), layer_of(target)
        if target_layer != source_layer and target_layer not in LAYERS[source_layer][1]:
            wrong.append(f"{path}: {source_layer} imports {imported} ({target_layer})")
    assert not wrong


def test_the_table_has_no_cycle():
    remaining = {layer: set(allowed) for layer, (_, allowed) in LAYERS.items()}
    while free := {layer for layer, allowed in remaining.items() if not allowed}:
        remaining = {layer: allowed - free for layer, allowed in remaining.items() if layer not in free}
    assert not remaining


@pytest.mark.parametrize("layer", WITHOUT_FX)
def test_only_the_compiler_side_knows_fx(layer: str):
    wrong = [
        f"{path}: {imported}"
        for path, module, imported in cases()
        if layer_of(module) == layer and (imported + ".").startswith("torch.fx.")
    ]
    assert not wrong


def test_the_parser_sees_every_kind_of_import():
    source = "import torch.fx as fx\nfrom .region import Region\nfrom ..errors import Refusal\n"
    source += "def f():\n    import fxcache.api\n"
    assert set(imports(source, "fxcache.regions")) == {
        "torch.fx",
        "fxcache.regions.region.Region",
        "fxcache.errors.Refusal",
        "fxcache.api",
    }
    assert list(imports("x = torch.fx.Graph()", "fxcache")) == ["torch.fx"]
