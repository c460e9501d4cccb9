"""Names and axes of weights: from those of a system's authors to ours."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from nnunet_brats_ext.storage.errors import UserError, shorten

KeyMap = Mapping[str, str]
"""The beginning of a name, up to and with a dot -> what it is in our network. The rest of the name is the same."""


def renamed(state: Mapping[str, Tensor], key_map: KeyMap, unused: Sequence[str] = ()) -> dict[str, Tensor]:
    """Weights under our names, by the longest beginning that a name has in the map.

    unused: regular expressions of names that are left out. A name that neither covers is a UserError.
    """
    beginnings = sorted(key_map, key=len, reverse=True)
    found: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if any(re.match(pattern, name) for pattern in unused):
            continue
        beginning = next((one for one in beginnings if name.startswith(one)), None)
        if beginning is None:
            unknown.append(name)
        else:
            found[key_map[beginning] + name[len(beginning) :]] = value
    if unknown:
        raise UserError(f"{len(unknown)} weights have names that this network does not have: {shorten(unknown, 3)}")
    return found


def names_left_out(state: Mapping[str, Tensor], unused: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in state if any(re.match(pattern, name) for pattern in unused))


def covers(state: Mapping[str, Tensor], key_map: KeyMap) -> bool:
    """Whether every beginning in the map occurs among the names: the weights are of this network."""
    return bool(state) and all(any(name.startswith(beginning) for name in state) for beginning in key_map)


def order_of(given: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where each wanted name is among the given ones; None where they are not the same names."""
    if sorted(given) != sorted(wanted):
        return None
    return [list(given).index(name) for name in wanted]


def permuted(state: Mapping[str, Tensor], layers: Sequence[str], axis: int, order: Sequence[int]) -> dict[str, Tensor]:
    """The weights with the channels of some layers in another order; axis: 0 output, 1 input."""
    changed = dict(state)
    for name in layers:
        if name in changed:
            changed[name] = changed[name].index_select(axis, changed[name].new_tensor(order).long())
    return changed


def reversed_kernels(state: Mapping[str, Tensor], axes: int) -> dict[str, Tensor]:
    """Kernels over (x, y, z) as kernels over (z, y, x)."""
    return {
        name: value.permute(0, 1, *range(axes + 1, 1, -1)).contiguous() if value.ndim == axes + 2 else value
        for name, value in state.items()
    }
