"""Configurations in files: read one into the arguments of `enable_cache`, and write these into one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fxcache.configs import config_classes
from fxcache.dialect import SECTIONS, short_names, to_options, without_foreign
from fxcache.errors import FxcacheError, OptionError
from fxcache.modifiers import ParamsModifier
from fxcache.options import Options

__all__ = ["load_configs", "save_configs"]

COMPILE_ARGUMENTS = ("dynamic", "fullgraph", "isolate_recompiles", "recompile_limit")
"""Arguments of `torch.compile` that a file can say; not every torch has all of them."""
_YAML = (".yaml", ".yml")
_KINDS = {"cache_config": ("method", "cache_type"), "calibrator_config": ("calibrator", "calibrator_type")}
"""The option that chooses the class of a config, and how it is called in files."""
_EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
"""A number that YAML 1.1 takes for a word."""


def load_configs(source: str | os.PathLike[str] | Mapping[str, Any], *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return the arguments of `enable_cache` that a file (.yaml, .yml, .json) or a mapping says.

    Files of cache-dit are understood: a section ``cache_config``, or its keys alone. ``params_modifiers`` has one such
    section per transformer, by name or in order; every option may stand beside the sections. What has no effect here is
    an error, unless `ignore` names it: ``parallelism_config``, ``quantize_config``, ``attention_backend``.

    Raises OptionError for anything unknown or impossible.

    Example:
        >>> load_configs({"cache_config": {"max_warmup_steps": 4}, "max_contexts": 2})["max_contexts"]
        2
    """
    if isinstance(source, Mapping):
        return _loaded(source, ignore)
    if not isinstance(source, str | os.PathLike):
        raise OptionError.of("source", source, "the path of a .yaml, .yml or .json file, or a mapping")
    path = Path(source)
    parse = _json if path.suffix == ".json" else _yaml if path.suffix in _YAML else None
    if parse is None:
        raise OptionError.of("source", str(path), "a file that ends in .yaml, .yml or .json")
    try:
        return _loaded(parse(path.read_text(encoding="utf-8")), ignore)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None


def save_configs(configs: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the arguments of `enable_cache` as a plain mapping that `load_configs` reads, and write it to a file.

    Only the fields that were given to the configs are written.

    Example:
        >>> from fxcache import DBCacheConfig
        >>> save_configs({"cache_config": DBCacheConfig(max_warmup_steps=4), "max_contexts": 2})
        {'cache_config': {'cache_type': 'DBCache', 'max_warmup_steps': 4}, 'max_contexts': 2}
    """
    said = {name: value for name, value in configs.items() if value is not None or name not in SECTIONS}
    plain = {
        name: _plain_modifiers(value) if name == "params_modifiers" else _plain(name, value)
        for name, value in said.items()
    }
    load_configs(plain)
    if path is not None:
        target = Path(path)
        if target.suffix == ".json":
            text = json.dumps(plain, indent=2) + "\n"
        elif target.suffix in _YAML:
            _, dumper = _yaml_classes()
            text = _yaml_package().dump(plain, Dumper=dumper, sort_keys=False)
        else:
            raise OptionError.of("path", str(target), "a file that ends in .yaml, .yml or .json")
        target.write_text(text, encoding="utf-8")
    return plain


def _loaded(source: object, ignore: Collection[str]) -> dict[str, Any]:
    if not isinstance(source, Mapping):
        raise OptionError.of("source", source, "a mapping")
    given = without_foreign(source, ignore)
    arguments = {name: given.pop(name) for name in COMPILE_ARGUMENTS if name in given}
    modifiers = given.pop("params_modifiers", None)
    grouped = _grouped(_said(given, ignore), complete=True)
    if modifiers is not None:
        grouped["params_modifiers"] = _modifiers(modifiers, ignore)
    return {**grouped, **arguments}


def _said(section: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    """Return the options of a section; what belongs elsewhere may also stand in the sections inside it."""
    clean = without_foreign(section, ignore)
    inner = {name: clean[name] for name in SECTIONS if isinstance(clean.get(name), Mapping)}
    return to_options({**clean, **{name: without_foreign(value, ignore) for name, value in inner.items()}})


def _grouped(options: dict[str, Any], complete: bool) -> dict[str, Any]:
    """Return the options as configs, with the fields of neither beside them.

    `complete`: they are all there will be, so they are checked together and there is a cache config in any case.
    """
    grouped: dict[str, Any] = {}
    if complete:
        checked = Options.from_mapping(options)
        options = {name: getattr(checked, name) for name in options}
        options.setdefault("method", checked.method)
    for name, (kind, _) in _KINDS.items():
        cls = config_classes(kind).get(options.get(kind, ""))
        if cls is not None:
            del options[kind]
            fields = [entry.name for entry in dataclasses.fields(cls) if entry.name in options]
            grouped[name] = cls(**{field: options.pop(field) for field in fields})
    return {**grouped, **options}


def _modifiers(given: object, ignore: Collection[str]) -> dict[str, ParamsModifier] | list[ParamsModifier | None]:
    if isinstance(given, Mapping):
        return {str(name): _modifier(f"params_modifiers.{name}", section, ignore) for name, section in given.items()}
    if isinstance(given, list | tuple):
        return [
            None if section is None else _modifier(f"params_modifiers[{place}]", section, ignore)
            for place, section in enumerate(given)
        ]
    raise OptionError.of("params_modifiers", given, "a mapping by name or a list")


def _modifier(where: str, section: object, ignore: Collection[str]) -> ParamsModifier:
    if not isinstance(section, Mapping):
        raise OptionError.of(where, section, "a mapping")
    try:
        return ParamsModifier(**_grouped(_said(section, ignore), complete=False))
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def _plain_modifiers(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _plain_modifier(modifier) for name, modifier in given.items()}
    entries = [given] if isinstance(given, ParamsModifier) else given
    return [None if modifier is None else _plain_modifier(modifier) for modifier in entries]


def _plain_modifier(modifier: ParamsModifier) -> dict[str, Any]:
    groups = {"cache_config": modifier.cache_config, "calibrator_config": modifier.calibrator_config}
    given = {name: group for name, group in groups.items() if group is not None}
    return {name: _plain(name, value) for name, value in {**given, **modifier.options}.items()}


def _plain(name: str, value: Any) -> Any:
    """Return a value in types that both kinds of files have."""
    if name in SECTIONS:
        kind, key = _KINDS[name]
        fields = value.given()
        chosen = short_names(kind)[fields.pop(kind)]
        return {key: chosen, **{field: _plain(field, entry) for field, entry in fields.items()}}
    if name == "steps_computation_mask" and isinstance(value, tuple | list):
        return "".join(map(str, value))
    if isinstance(value, Mapping):
        return {key: _plain("", entry) for key, entry in value.items()}
    return [_plain("", entry) for entry in value] if isinstance(value, tuple | list) else value


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise OptionError(f"not JSON: {error}") from None


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise OptionError(f"{max(names, key=names.count)} stands there twice")
    return found


def _yaml(text: str) -> object:
    loader, _ = _yaml_classes()
    yaml = _yaml_package()
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise OptionError(f"not YAML: {error}") from None


def _yaml_classes() -> tuple[type[Any], type[Any]]:
    """Return a loader and a dumper for which every key stands there once, and 1e-8 is a number."""
    yaml = _yaml_package()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            self.flatten_mapping(node)
            return _once([(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value])

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined]
        pass

    for cls in (Loader, Dumper):
        cls.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    return Loader, Dumper


def _yaml_package() -> Any:
    try:
        import yaml
    except ImportError:
        raise FxcacheError("YAML files need the package pyyaml: pip install pyyaml, or use a .json file") from None
    return yaml
