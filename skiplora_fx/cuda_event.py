"""A point in the work that a CUDA device has been given."""

from __future__ import annotations

from typing import Any

import torch


def cuda_event(device: torch.device, timing: bool = False, cuda: Any = torch.cuda) -> torch.cuda.Event:
    """Return an event behind all that the current stream of ``device`` has been given so far.

    By itself an event goes to the current stream of the current device, which need not be the one that a tensor is on.

    Args:
        device: a CUDA device; without an index the current one.
        timing: whether the event keeps the time.
        cuda: makes events and knows streams.
    """
    event = cuda.Event(enable_timing=timing)
    event.record(cuda.current_stream(device))
    return event
