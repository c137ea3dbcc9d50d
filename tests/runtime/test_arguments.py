"""What a module was called with, as far as it tells branches and steps apart."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcache.runtime.arguments import Arguments, arguments, call_serial, noting


class Denoiser(nn.Module):
    def forward(self, x: Tensor, t: Tensor, text: Any = None, scale: float = 1.0, **more: Any) -> Any:
        return arguments(), call_serial()


class Named(nn.Module):
    def forward(self, encoder_hidden_states: Tensor, hidden_states: Tensor, timestep: Any = None) -> Any:
        return arguments()


class Cache:
    """An object of the pipeline."""


def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return noting(model, model)(*args, **kwargs)


def given(*args: Any, **kwargs: Any) -> Arguments:
    found, _ = call(Denoiser(), *args, **kwargs)
    assert found is not None
    return found


X, T, TEXT = torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 3)


def test_roles_by_name_and_place():
    found = given(X, T, [TEXT, {"mask": X}], scale=2.0)
    assert [id(tensor) for tensor in found.latents] == [id(X)]
    assert found.timestep is T
    assert [id(tensor) for tensor in found.conditioning] == [id(TEXT), id(X)]
    found = call(Named(), TEXT, X, timestep=7)
    assert [id(tensor) for tensor in found.latents] == [id(X)], "a telling name counts more than the place"
    assert found.conditioning[0] is TEXT and found.timestep == 7


def test_lists_and_keywords_of_any_name():
    found = given([X, X], T, extra={"pooled": TEXT}, layers=[1, 2])
    assert len(found.latents) == 2 and found.conditioning[0] is TEXT
    assert found.rest != given([X, X], T, extra={"pooled": TEXT}, layers=[1, 3]).rest


@pytest.mark.parametrize("one", [1, 1.0, True, "a", None, torch.float32])
@pytest.mark.parametrize("other", [1, 1.0, True, "a", None, torch.float32])
def test_plain_values_are_compared_with_their_types(one, other):
    same = type(one) is type(other) and one == other
    assert (given(X, T, text=one).rest == given(X, T, text=other).rest) == same
    assert hash(given(X, T, text=one).rest) is not None


def test_objects_are_told_apart_by_identity_and_not_kept():
    cache, other = Cache(), Cache()
    first = given(X, T, text=cache).rest
    assert first == given(X, T, text=cache).rest != given(X, T, text=other).rest
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    assert first != given(X, T, text=Cache()).rest


def test_what_has_no_identity_equals_nothing():
    value = bytearray(b"a")  # neither hashable nor referable
    assert given(X, T, text=value).rest != given(X, T, text=value).rest


def test_calls_nest_and_threads_have_their_own():
    model = Denoiser()

    class Outer(nn.Module):
        def forward(self, text: Tensor) -> Any:
            return call(model, X, T, text=text)[1], call_serial()

    assert arguments() is None and call_serial() is None
    inner, outer = call(Outer(), TEXT)
    assert inner is not None and outer is not None and inner != outer
    assert call_serial() is None
    serials: list[Any] = []

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> None:
            thread = threading.Thread(target=lambda: serials.append(call_serial()))
            thread.start()
            thread.join()
            serials.append(call_serial())

    call(Slow(), X)
    assert serials[0] is None and serials[1] is not None


def test_an_exception_ends_the_call():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(Failing(), X)
    assert call_serial() is None


def test_arguments_that_do_not_fit_are_not_guessed():
    class Loose(nn.Module):
        def forward(self, *args: Any) -> Any:
            return arguments()

    assert call(Loose(), X, T) is not None

    def compiled(*args: Any, **kwargs: Any) -> Any:
        return arguments()

    assert noting(Named(), compiled)(X, wrong=T) is None


def test_the_module_is_not_kept_alive():
    model = Denoiser()
    wrapped, gone = noting(model, lambda *args: "compiled"), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and wrapped(X, T) == "compiled"
