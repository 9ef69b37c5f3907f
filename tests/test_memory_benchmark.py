"""The measure of ``benchmarks/memory.py``, and that gates take no memory by it."""

from __future__ import annotations

import copy
import math

import models
import pytest
import torch
from memory import peak_of, step
from torch import nn

import skiplora_fx

MIB = 2**20


def test_a_peak_is_what_is_held_at_once() -> None:
    def run() -> None:
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        del first, second
        torch.empty(MIB, dtype=torch.uint8)

    assert peak_of(run, "cpu") == 3 * MIB


def test_a_peak_is_seen_in_compiled_code() -> None:
    x = torch.rand(512, 512)
    run = torch.compile(lambda x: (x @ x) @ x, backend="inductor")
    run(x)
    assert peak_of(lambda: run(x), "cpu") == 2 * x.nbytes


def compiled_peak(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    for _ in range(2):
        step(model, batch)
        model.zero_grad(set_to_none=True)
    return peak_of(lambda: step(model, batch), "cpu")


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_a_step_holds_no_more_than_inductors(decision: str) -> None:
    model, batch = models.with_lora(models.llama(2), models.QV).train(), models.tokens(8, 48)
    gated = copy.deepcopy(model)
    model.compile(backend="inductor")
    allowed = 1.01 * compiled_peak(model, batch)
    options = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "decision": decision}
    gated.compile(backend="skiplora", options=options)
    assert compiled_peak(gated, batch) <= allowed
    skiplora_fx.set_threshold(gated, math.inf)
    assert compiled_peak(gated, batch) <= allowed
