"""How many blocks of a trunk always run, and which ones are decided together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxcache.errors import OptionError

if TYPE_CHECKING:
    from fxcache.options import Options

__all__ = ["blocks_that_run", "units"]

_DEFAULT_FN = 8
_QUARTER = 4
_KEEPS_FIRST_BLOCKS = ("dbcache", "dbprune")
"""Methods that leave first blocks out of what is reused where nobody says how many."""


def blocks_that_run(options: Options, trunk_length: int) -> tuple[int, int]:
    """Return `Options.resolve_blocks`."""
    last = options.Bn_compute_blocks
    if options.Fn_compute_blocks is None and options.method not in _KEEPS_FIRST_BLOCKS:
        first, given = 0, " (unset)"
    elif options.Fn_compute_blocks is None:
        first, given = max(1, min(_DEFAULT_FN, trunk_length // _QUARTER)), " (unset)"
    else:
        first, given = options.Fn_compute_blocks, ""
    if first + last >= trunk_length:
        raise OptionError(
            f"Fn_compute_blocks={first}{given}, Bn_compute_blocks={last}: expected a sum below {trunk_length}, "
            f"the number of blocks of this trunk; none would be left to reuse"
        )
    return first, last


def units(options: Options, trunk_length: int) -> list[tuple[int, int]]:
    """Return `Options.resolve_units`."""
    first, last = blocks_that_run(options, trunk_length)
    exempt = set(options.non_prune_block_ids)
    if exempt and max(exempt) >= trunk_length:
        allowed = f"numbers below {trunk_length}, the number of blocks of this trunk"
        raise OptionError.of("non_prune_block_ids", options.non_prune_block_ids, allowed)
    found: list[tuple[int, int]] = []
    for block in range(first, trunk_length - last):
        if block in exempt:
            continue
        start, stop = found[-1] if found else (0, 0)
        if stop == block and stop > start and stop - start < options.prune_group:
            found[-1] = (start, block + 1)
        else:
            found.append((block, block + 1))
    if not found:
        allowed = "to leave a block that may be pruned"
        raise OptionError.of("non_prune_block_ids", options.non_prune_block_ids, allowed)
    return found
