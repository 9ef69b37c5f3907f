"""Where events are recorded, told by streams that stand in for those of two CUDA devices."""

from __future__ import annotations

import torch

from skiplora_fx.cuda_event import cuda_event


class Streams:
    """Makes events and knows streams as ``torch.cuda`` does, with ``cuda:0`` for the current device."""

    class Event:
        """Keeps the stream that it was recorded on."""

        def __init__(self, enable_timing: bool = False) -> None:
            self.enable_timing = enable_timing

        def record(self, stream: str | None = None) -> None:
            self.stream = stream or Streams.current_stream()

    @staticmethod
    def current_stream(device: torch.device | None = None) -> str:
        index = device.index if device is not None else None
        return f"current of {index or 0}"


def test_an_event_is_recorded_on_the_stream_of_its_device() -> None:
    events = [cuda_event(torch.device(name), cuda=Streams) for name in ("cuda", "cuda:0", "cuda:1")]
    assert [event.stream for event in events] == ["current of 0", "current of 0", "current of 1"]


def test_an_event_keeps_the_time_if_it_is_told_to() -> None:
    device = torch.device("cuda:1")
    assert cuda_event(device, timing=True, cuda=Streams).enable_timing
    assert not cuda_event(device, cuda=Streams).enable_timing
