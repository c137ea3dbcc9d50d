"""What two calls of blocks have to have in common for one graph to serve both."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lazy import LazyVariableTracker
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._guards import ChainedSource, Guard, Source
from torch.fx import Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

CONSTANTS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.layout)
_STATIC = "_dynamo_static_input_type"
"""What Dynamo notes on tensors of modules that it has met."""
_PLAIN_SIZE = type("Plain", (), {}).__basicsize__
"""Of an instance that holds nothing but its `__dict__`."""


class Unlike(Exception):
    """Raised where two calls differ, or where we do not know enough to say that they do not."""


@dataclass(frozen=True)
class Leaf:
    """One argument, or member of one, as Dynamo sees it."""

    place: tuple[Any, ...]
    variable: VariableTracker
    kind: tuple[Any, ...]
    """Equal for two leaves that lead to the same trace."""
    node: Node | None = None
    """Of the graph, if it is a tensor or a size."""
    is_unread: bool = False
    """Whether no code has looked at it yet."""


def leaves(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Leaf]:
    """Flatten the arguments of a call; what holds them is a part of what a leaf is."""
    found: list[Leaf] = []
    for number, arg in enumerate(args):
        found += _leaves(arg, (number,))
    for name, arg in kwargs.items():
        found += _leaves(arg, (name,))
    return found


def _leaves(variable: Any, place: tuple[Any, ...]) -> Iterator[Leaf]:
    if isinstance(variable, LazyVariableTracker):
        if not variable.is_realized():
            yield Leaf(place, variable, (), is_unread=True)
            return
        variable = variable.realize()
    if type(variable) in (TupleVariable, ListVariable):
        yield Leaf(place, variable, (type(variable), len(variable.items)))
        for number, item in enumerate(variable.items):
            yield from _leaves(item, (*place, number))
    elif type(variable) is ConstDictVariable:
        keys = [key.vt for key in variable.items]
        if not all(isinstance(key, ConstantVariable) for key in keys):
            raise Unlike(f"argument {place}: a dictionary with keys that are no constants")
        yield Leaf(place, variable, (variable.user_cls, *(key.as_python_constant() for key in keys)))
        for key, value in zip(keys, variable.items.values(), strict=True):
            yield from _leaves(value, (*place, key.as_python_constant()))
    else:
        yield _leaf(variable, place)


def _leaf(variable: Any, place: tuple[Any, ...]) -> Leaf:
    if isinstance(variable, TensorVariable):
        node = variable.as_proxy().node
        return Leaf(place, variable, (type(variable), variable.class_type, *_facts(node)), node)
    if type(variable) is SymNodeVariable:
        node = variable.as_proxy().node
        return Leaf(place, variable, (type(variable), _expression(variable.sym_num)), node)
    if isinstance(variable, ConstantVariable):
        value = variable.as_python_constant()
        if isinstance(value, CONSTANTS):
            return Leaf(place, variable, (type(value), repr(value)))
    raise Unlike(f"argument {place}: {type(variable).__name__}")


def match_leaves(known: Iterable[Leaf], given: Iterable[Leaf]) -> list[Leaf]:
    """Return those of the given leaves that stand in the places of the known ones; raises Unlike if they differ.

    What the call that is known has not read may be anything.
    """
    unread = {leaf.place for leaf in known if leaf.is_unread}
    first = [leaf for leaf in known if not leaf.is_unread]
    other = [leaf for leaf in given if not any(leaf.place[: length + 1] in unread for length in range(len(leaf.place)))]
    if [(leaf.place, leaf.kind) for leaf in first] != [(leaf.place, leaf.kind) for leaf in other]:
        raise Unlike("the arguments")
    twins: dict[Any, Any] = {None: None}
    for old, new in zip(map(_identity_of, first), map(_identity_of, other), strict=True):
        if twins.setdefault(old, new) is not new:
            raise Unlike("arguments that are the same object")
    if len(set(twins.values())) != len(twins):
        raise Unlike("arguments that are the same object")
    return other


def _identity_of(leaf: Leaf) -> Any:
    """What code can compare by `is`, of two arguments: a node, or the list, tuple or dictionary that Dynamo sees."""
    if leaf.node is not None:
        return leaf.node
    return leaf.variable if isinstance(leaf.variable, (TupleVariable, ListVariable, ConstDictVariable)) else None


def _facts(node: Node) -> tuple[Any, ...]:
    value = node.meta.get("example_value")
    if not isinstance(value, torch.Tensor):
        raise Unlike(f"{node}: no example of the value")
    return tensor_facts(value)


def tensor_facts(value: torch.Tensor) -> tuple[Any, ...]:
    """Return what code can find out about a tensor without reading its values; sizes are not guarded by asking."""
    if value.layout is not torch.strided:
        raise Unlike(f"a tensor of layout {value.layout}")
    sizes = [*value.shape, *value.stride()]
    if not _holds_tensors(value):
        sizes.append(value.storage_offset())
    flags = (value.requires_grad, value.is_conj(), value.is_neg(), value.is_inference())
    return (type(value), value.dtype, value.device, value.dim(), *map(_expression, sizes), *flags)


def _holds_tensors(value: Any) -> bool:
    return is_traceable_wrapper_subclass(value)


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) else size


def match_modules(first: nn.Module, other: nn.Module, elsewhere: Collection[int]) -> dict[int, int]:
    """Return which parts of one module stand in the place of which of the other, by `id`.

    Raises Unlike if anything but their constants differs: types, names, tensors' sizes, aliases, other objects.
    Constants that tracing has read are compared by the guards on them. Of the parts in `elsewhere`, Dynamo's guards
    are at another place than in the module, so that both modules must have the same ones.
    """
    twins: dict[int, int] = {}
    _match(first, other, twins, "")
    if len(set(twins.values())) != len(twins):
        raise Unlike("parts of one block are distinct, those of the other are not")
    if any(twins.get(part, part) != part for part in elsewhere):
        raise Unlike("a part that is also reached from elsewhere")
    return twins


def _match(first: Any, other: Any, twins: dict[int, int], place: str) -> None:
    if type(first) is not type(other):
        raise Unlike(f"{place}: {type(first).__name__} and {type(other).__name__}")
    if isinstance(first, CONSTANTS):
        return
    is_known = id(first) in twins and not isinstance(first, torch.Tensor)
    if twins.setdefault(id(first), id(other)) != id(other):
        raise Unlike(f"{place}: an alias in one block only")
    if first is other or is_known:  # of a part that refers to its whole, the comparison is under way
        return
    if isinstance(first, torch.Tensor):
        _match_tensors(first, other, twins, place)
    elif type(first) in (tuple, list, torch.Size):
        _match_items(dict(enumerate(first)), dict(enumerate(other)), twins, place)
    elif type(first) in (dict, OrderedDict):
        _match_items(first, other, twins, place)
    elif type(first) in (set, frozenset):
        if first != other or not all(isinstance(item, CONSTANTS) for item in first):
            raise Unlike(f"{place}: sets")
    elif isinstance(first, types.MethodType):
        _match(first.__func__, other.__func__, twins, f"{place}.__func__")
        _match(first.__self__, other.__self__, twins, f"{place}.__self__")
    elif type(first).__basicsize__ == _PLAIN_SIZE and not type(first).__itemsize__:
        _match_items(vars(first), vars(other), twins, place)
    else:
        raise Unlike(f"{place}: {type(first).__name__} objects")


def _match_tensors(first: torch.Tensor, other: torch.Tensor, twins: dict[int, int], place: str) -> None:
    if tensor_facts(first) != tensor_facts(other):
        raise Unlike(f"{place}: tensors of another kind")
    notes, others = ({name: value for name, value in vars(one).items() if name != _STATIC} for one in (first, other))
    _match_items(notes, others, twins, place)
    if _holds_tensors(first):
        (inner, context), (its_inner, its) = first.__tensor_flatten__(), other.__tensor_flatten__()  # type: ignore[attr-defined]
        if inner != its_inner or context != its:
            raise Unlike(f"{place}: tensors of another kind")
        for name in inner:
            _match(getattr(first, name), getattr(other, name), twins, f"{place}.{name}")


def _match_items(first: Mapping[Any, Any], other: Mapping[Any, Any], twins: dict[int, int], place: str) -> None:
    if list(first) != list(other):
        raise Unlike(f"{place}: {list(first)} and {list(other)}")
    for key, value in first.items():
        _match(value, other[key], twins, f"{place}.{key}")


class Move:
    """Rewrites sources that begin at one module so that they begin at another."""

    def __init__(self, old: Source, new: Source) -> None:
        self._known: dict[Source, Source] = {old: new}

    def __call__(self, source: Source) -> Source:
        """Return the same place in the other module, and a source that leads elsewhere as it is."""
        found = self._known.get(source)
        if found is None:
            changed = {
                field.name: moved
                for field in fields(source)
                if isinstance(value := getattr(source, field.name), Source) and (moved := self(value)) is not value
            }
            found = replace(source, **changed) if changed else source
            self._known[source] = found
        return found


def begins_at(source: Source, start: Source) -> bool:
    """Say whether a source leads through another one."""
    while source != start:
        if not isinstance(source, ChainedSource):
            return False
        source = source.base
    return True


Reader = Callable[[Source], Any]
"""Returns the Python value at a source."""


def check_guard(guard: Guard, moved: Source, read: Reader) -> bool:
    """Compare what a guard asks for at its own place and at another; say whether it is to be installed there too.

    Raises Unlike if the answers differ, and for kinds of guards that we do not know.
    """
    create: Any = guard.create_fn
    given: Mapping[str, Any] = {}
    if isinstance(create, functools.partial):
        if create.args:
            raise Unlike(f"guard {create}")
        create, given = create.func, create.keywords
    name = create.__name__
    if name in ("TENSOR_MATCH", "TENSOR_SUBCLASS_METADATA_MATCH"):
        return False  # installed with the tensor; `match_modules` has compared them
    answer = _ANSWERS.get(name)
    if answer is None:
        raise Unlike(f"guard {name} on {guard.name}")
    if answer(read(guard.originating_source), given) != answer(read(moved), given):
        raise Unlike(f"guard {name} on {guard.name}")
    return True


def _constant(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, CONSTANTS):
        return (type(value), repr(value))
    if type(value) in (tuple, list, torch.Size):
        return (type(value), *(_constant(item, given) for item in value))
    return (type(value), id(value))


def _type(value: Any, _given: Mapping[str, Any]) -> Any:
    return type(value)


def _length(value: Any, _given: Mapping[str, Any]) -> Any:
    return (type(value), len(value))


def _identity(value: Any, _given: Mapping[str, Any]) -> Any:
    return id(value)


_ANSWERS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "TYPE_MATCH": _type,
    "NN_MODULE": _type,
    "CONSTANT_MATCH": _constant,
    "EQUALS_MATCH": _constant,
    "BOOL_MATCH": _constant,
    "NONE_MATCH": _constant,
    "SEQUENCE_LENGTH": _length,
    "LIST_LENGTH": _length,
    "EMPTY_NN_MODULE_HOOKS_DICT": _length,
    "DICT_KEYS_MATCH": lambda value, given: (type(value), list(value)),
    "MAPPING_KEYS_CHECK": lambda value, given: (type(value), list(value)),
    "DICT_CONTAINS": lambda value, given: given["key"] in value,
    "DICT_NOT_CONTAINS": lambda value, given: given["key"] in value,
    "SET_CONTAINS": lambda value, given: given["key"] in value,
    "SET_NOT_CONTAINS": lambda value, given: given["key"] in value,
    "NOT_NONE_MATCH": lambda value, given: value is None,
    "HASATTR": lambda value, given: hasattr(value, given["attr"]),
    "NOT_PRESENT_IN_GENERIC_DICT": lambda value, given: given["attr"] in vars(value),
    "ID_MATCH": _identity,
    "CLASS_MATCH": _identity,
    "FUNCTION_MATCH": _identity,
    "CLOSURE_MATCH": _identity,
    "BUILTIN_MATCH": _identity,
    "MODULE_MATCH": _identity,
}
