"""On an NVIDIA GPU: nothing waits for the device that need not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import on_device
import pytest
import torch
from on_device import DEVICE, OPEN, all_open, batch, force, llama, lower_half
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.host_copy import to_device

pytestmark = on_device.NEEDS_CUDA

LONG = 1_000_000_000
"""Cycles: half a second or so, in which a host launches a small model's backward many times over."""


def train(model: nn.Module, inputs: dict[str, Tensor], steps: int = 3) -> None:
    for _ in range(steps):
        model(**inputs).loss.backward()


def queue_work() -> torch.cuda.Event:
    """Give the device work that takes long; return an event behind it."""
    torch.cuda._sleep(LONG)
    done = torch.cuda.Event()
    done.record()
    return done


def syncs(run: Callable[[], None]) -> int:
    """Return how often ``run`` waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_a_step_waits_no_oftener_than_inductors_also_when_thresholds_change(decision: str) -> None:
    plain, gated, inputs = llama(), llama(), batch()
    plain.compile(backend="inductor")
    gated.compile(backend="skiplora", options={**OPEN, "decision": decision})
    train(plain, inputs)
    train(gated, inputs)
    for mask in (lower_half(gated), all_open(gated)):  # either way something is launched for the first time
        force(gated, mask)
        train(gated, inputs)

    def step() -> None:
        force(gated, lower_half(gated))
        train(gated, inputs, 1)

    assert syncs(step) <= syncs(lambda: train(plain, inputs, 1))
    assert {site.name: not site.skipped for site in skiplora_fx.sites(gated)} == lower_half(gated)


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_a_backward_is_launched_while_what_was_queued_after_its_forward_runs(decision: str) -> None:
    """The loss, mostly."""
    model, inputs = llama(), batch()
    model.compile(backend="skiplora", options={**OPEN, "decision": decision})
    train(model, inputs)
    force(model, lower_half(model))
    train(model, inputs)  # what fills in for the skipped is tuned at its first launch, and that waits
    torch.cuda.synchronize()
    out = model(**inputs).loss
    slow_loss = queue_work()
    out.backward()
    assert not slow_loss.query()
    assert {site.name: not site.skipped for site in skiplora_fx.sites(model)} == lower_half(model)


def test_thresholds_are_sent_while_other_work_runs() -> None:
    """Each in pinned memory of its own for as long as it is under way."""
    device, numbers = torch.device(DEVICE), range(16)
    [torch.empty(8, pin_memory=True) for _ in numbers]  # to have such memory; to get it may wait for the device
    to_device([0.0] * 8, device)
    torch.cuda.synchronize()
    work = queue_work()
    sent = [to_device([float(number)] * 8, device) for number in numbers]
    assert not work.query()
    assert [vector.tolist() for vector in sent] == [[float(number)] * 8 for number in numbers]
