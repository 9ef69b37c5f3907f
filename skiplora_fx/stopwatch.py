"""Time between two points of a device's work."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from .cuda_event import cuda_event


class Stopwatch:
    """Measures from when it is made to ``stop()``, without waiting for the device.

    Args:
        device: on CUDA its own clock is taken, else the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks = [self._mark()]

    def stop(self) -> None:
        """Take the second time."""
        self._marks.append(self._mark())

    def _mark(self) -> Any:
        return cuda_event(self._device, timing=True) if self._device.type == "cuda" else perf_counter()

    def seconds(self) -> float:
        """Return the time between; waits for the device."""
        first, second = self._marks
        if self._device.type != "cuda":
            return float(second - first)
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000
