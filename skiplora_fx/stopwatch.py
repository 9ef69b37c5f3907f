"""Time between two points of a device's work."""

from __future__ import annotations

from time import perf_counter

import torch


class Stopwatch:
    """Measures from when it is made to ``stop()``, without waiting for the device.

    Args:
        device: on CUDA its own clock is taken, else the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = _cuda_events() if device.type == "cuda" else None
        self._times = [0.0, 0.0]
        self._mark(0)

    def stop(self) -> None:
        """Take the second time."""
        self._mark(1)

    def _mark(self, which: int) -> None:
        if self._events is not None:
            self._events[which].record()
        else:
            self._times[which] = perf_counter()

    def seconds(self) -> float:
        """Return the time between; waits for the device."""
        if self._events is None:
            return self._times[1] - self._times[0]
        first, second = self._events
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000


def _cuda_events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
