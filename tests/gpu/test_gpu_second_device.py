"""On a second NVIDIA GPU that is not the current device."""

from __future__ import annotations

from collections.abc import Iterator

import on_device
import pytest
import torch
from on_device import OPEN, TOLERANCE, batch, check_gradients, llama

from skiplora_fx.host_copy import HostCopy, to_device
from skiplora_fx.stopwatch import Stopwatch

SECOND = torch.device("cuda:1")
pytestmark = [
    *on_device.NEEDS_CUDA,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]


@pytest.fixture(autouse=True)
def _first_is_current() -> Iterator[None]:
    with torch.cuda.device(0):
        yield


def keep_busy() -> None:
    with torch.cuda.device(SECOND):
        torch.cuda._sleep(1_000_000_000)  # cycles


def test_a_copy_waits_for_the_work_of_its_own_device() -> None:
    value = torch.zeros(4, device=SECOND)
    torch.cuda.synchronize(SECOND)
    keep_busy()
    value.fill_(7.0)
    assert HostCopy(value).tolist() == [7.0] * 4


def test_a_stopwatch_takes_the_time_of_its_own_device() -> None:
    watch = Stopwatch(SECOND)
    keep_busy()
    watch.stop()
    torch.cuda.synchronize(0)
    assert not watch._marks[1].query()


def test_thresholds_arrive_there() -> None:
    assert to_device([1.0, 2.0], SECOND).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_gradients_equal_those_of_detach(decision: str) -> None:
    eager, compiled = llama(device="cuda:1"), llama(device="cuda:1")
    compiled.compile(backend="skiplora", options={**OPEN, "decision": decision})
    check_gradients(compiled, eager, batch(device="cuda:1"), "adapter", TOLERANCE[torch.float32])
