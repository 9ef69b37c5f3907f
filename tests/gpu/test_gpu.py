"""On an NVIDIA GPU: gradients equal eager ``.detach()``, and nothing waits for the device that need not."""

from __future__ import annotations

import math
import warnings
from typing import Any

import models
import oracle
import pytest
import torch
from torch import Tensor, nn

import skiplora_fx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

OPEN: dict[str, Any] = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
TOLERANCE = {torch.float32: {"rtol": 1e-3, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.1, "atol": 2e-3}}


def llama(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return models.with_lora(models.llama(2), models.ALL_LINEAR).to("cuda", dtype).train()


def batch() -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in models.tokens(4, 32).items()}


def lower_half(model: nn.Module) -> dict[str, bool]:
    names = list(oracle.adapted_layers(model))
    return {name: place >= len(names) // 2 for place, name in enumerate(names)}


def every_other(model: nn.Module) -> dict[str, bool]:
    return {name: bool(place % 2) for place, name in enumerate(oracle.adapted_layers(model))}


def force(model: nn.Module, mask: oracle.Mask) -> None:
    for name, open in mask.items():
        skiplora_fx.set_threshold(model, 0.0 if open else math.inf, name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("decision", ["current", "previous"])
@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_gradients_equal_those_of_detach(scope: str, decision: str, dtype: torch.dtype) -> None:
    eager, compiled, inputs = llama(dtype), llama(dtype), batch()
    compiled.compile(backend="skiplora", options={**OPEN, "scope": scope, "decision": decision})
    compiled(**inputs).loss.backward()
    for mask in (lower_half(eager), every_other(eager), dict.fromkeys(oracle.adapted_layers(eager), True)):
        force(compiled, mask)
        found = oracle.gradients(compiled, lambda: compiled(**inputs).loss)
        with oracle.detached(eager, scope, mask):
            wanted = oracle.gradients(eager, lambda: eager(**inputs).loss)
        torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])


def syncs(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Return how often a step waits for the device, once everything is compiled."""
    for _ in range(3):
        model(**inputs).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(**inputs).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_a_step_waits_for_the_stream_no_oftener_than_inductors(decision: str) -> None:
    plain, gated, inputs = llama(), llama(), batch()
    plain.compile(backend="inductor")
    gated.compile(backend="skiplora", options={**OPEN, "decision": decision})
    assert syncs(gated, inputs) <= syncs(plain, inputs)


@pytest.mark.parametrize("decision", ["current", "previous"])
def test_a_backward_is_launched_while_what_was_queued_after_its_forward_runs(decision: str) -> None:
    """The loss, mostly: here one of half a second or more, and 10 ms of launches."""
    model, inputs = llama(), batch()
    model.compile(backend="skiplora", options={**OPEN, "decision": decision})
    for _ in range(3):
        model(**inputs).loss.backward()
    force(model, lower_half(model))
    torch.cuda.synchronize()
    out = model(**inputs).loss
    torch.cuda._sleep(1_000_000_000)  # cycles
    slow_loss = torch.cuda.Event()
    slow_loss.record()
    out.backward()
    assert not slow_loss.query()
    assert {site.name: not site.skipped for site in skiplora_fx.sites(model)} == lower_half(model)


def test_ratios_are_those_of_eager_norms() -> None:
    model, eager, inputs = llama(), llama(), batch()
    model.compile(backend="skiplora", options=OPEN)
    model(**inputs).loss.backward()
    wanted = {name: ratio for (name, _), ratio in oracle.ratios(eager, lambda: eager(**inputs)).items()}
    found = {site.name: site.ratio for site in skiplora_fx.sites(model)}
    assert found == pytest.approx(wanted, rel=1e-3)
