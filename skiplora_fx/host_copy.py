"""Small tensors on their way from a device to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def tolist(self) -> list[Any]:
        """Return the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.tolist()
