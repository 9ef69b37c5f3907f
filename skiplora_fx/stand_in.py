"""Memory that stands in for what was given back: large enough for any of it, and nobody's values."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

# It goes with the last tensor that has it: between steps none is held.
_standing_in: weakref.WeakValueDictionary[torch.device, torch.UntypedStorage] = weakref.WeakValueDictionary()


def stand_in(device: torch.device, size: int) -> torch.UntypedStorage:
    """Return the memory that stands in on a device: at least ``size`` bytes, shared by all that ask, uninitialised."""
    storage = _standing_in.get(device)
    if storage is None or storage.nbytes() < size:
        storage = _standing_in[device] = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
    return storage


def let_storage_go(value: Tensor, size: int) -> None:
    """Have ``value`` let go of its storage for the one that stands in, with the shape and strides it has.

    Every other tensor on that storage keeps it and its values: memory is given back when nobody else has it.

    Args:
        value: dense, any shape, dtype and device; its values are then anything.
        size: what the one that stands in has to hold at least, bytes: one that does for the largest is not made anew.
    """
    needed = (1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))) * value.itemsize
    if value.numel():
        value.set_(stand_in(value.device, max(needed, size)), 0, value.shape, value.stride())
