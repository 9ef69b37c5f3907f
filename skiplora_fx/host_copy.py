"""Small tensors on their way between a device and the host, and how who has the tensor finds its copy."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cuda_event import cuda_event


class HostCopy:
    """A copy of a tensor that begins now and is waited for when it is read.

    From a CUDA device it goes to pinned memory behind the work that is queued now, so that reading it waits for that
    work and for none that is queued later.

    Args:
        tensor: any shape and device; small.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = cuda_event(tensor.device)

    def tolist(self) -> list[Any]:
        """Return the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.tolist()


def to_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Return float32 ``[n]`` on ``device``; a CUDA device is not waited for.

    From memory that is not pinned the copy would wait for all that the device has been given. The pinned memory is not
    used again before the copy is done: the allocator of such memory sees to it.
    """
    on_cuda = device.type == "cuda"
    return torch.tensor(values, dtype=torch.float32, pin_memory=on_cuda).to(device, non_blocking=on_cuda)


# By storage, with the offset in it, as autograd hands a saved tensor out as another object. Not by address, where
# another tensor may lie by now: what is known of a storage goes when it goes, and does not keep it.
_begun: weakref.WeakKeyDictionary[torch.UntypedStorage, tuple[int, weakref.ref[HostCopy]]] = weakref.WeakKeyDictionary()


def begin_copy(tensor: Tensor) -> HostCopy:
    """Return a copy that begins now and that :func:`copy_of` finds for as long as it is kept."""
    copy = HostCopy(tensor)
    _begun[tensor.untyped_storage()] = int(tensor.storage_offset()), weakref.ref(copy)
    return copy


def copy_of(tensor: Tensor) -> HostCopy | None:
    """Return the copy that was begun last of a tensor, or of a view that begins where it does; None if it is gone."""
    begun = _begun.get(tensor.untyped_storage())
    if begun is None:
        return None
    offset, copy = begun
    return copy() if offset == tensor.storage_offset() else None


def forget_copy_of(tensor: Tensor) -> None:
    """Have :func:`copy_of` find none: the tensor holds other values now."""
    _begun.pop(tensor.untyped_storage(), None)
