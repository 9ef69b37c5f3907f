"""On an NVIDIA GPU: gradients equal eager ``.detach()``, and ratios those of eager norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import on_device
import oracle
import pytest
import torch
from on_device import OPEN, TOLERANCE, batch, check_gradients, llama
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.profiler import ProfilerActivity, profile

import skiplora_fx

pytestmark = on_device.WHERE


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("decision", ["current", "previous"])
@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_gradients_equal_those_of_detach(scope: str, decision: str, dtype: torch.dtype) -> None:
    eager, compiled = llama(dtype), llama(dtype)
    compiled.compile(backend="skiplora", options={**OPEN, "scope": scope, "decision": decision})
    check_gradients(compiled, eager, batch(), scope, TOLERANCE[dtype])


@dataclass(frozen=True)
class Case:
    """What differs from the tests above: the model, the batch, the options."""

    model: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "siblings merged": Case(options={"merge_siblings": True}),
    "checkpointing": Case(model={"checkpointing": True}),
    "attention mask": Case(batch={"padded": True}),
    "attention mask, bfloat16": Case(model={"dtype": torch.bfloat16}, batch={"padded": True}),
}


@pytest.mark.parametrize("decision", ["current", "previous"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_other_models_and_options(case: Case, decision: str) -> None:
    eager, compiled = llama(**case.model), llama(**case.model)
    compiled.compile(backend="skiplora", options={**OPEN, **case.options, "decision": decision})
    tolerance = TOLERANCE[case.model.get("dtype", torch.float32)]
    check_gradients(compiled, eager, batch(**case.batch), "adapter", tolerance)


def test_layers_that_are_one_function() -> None:
    eager, compiled, inputs = llama(layers=5), llama(layers=5), batch()
    compiled.compile(backend="skiplora", options={**OPEN, "outline_layers": True})
    with fresh_cache():
        _, code = run_and_get_code(lambda: compiled(**inputs).loss.backward())
    assert any("skiplora_layer_" in text for text in code)
    check_gradients(compiled, eager, inputs, "adapter", TOLERANCE[torch.float32])


@pytest.mark.skipif(not on_device.ON_GPU, reason="the CPU has one kernel for attention")
def test_attention_with_a_mask_is_the_efficient_kernel() -> None:
    """Which the tests above are to reach."""
    model, inputs = llama(), batch(padded=True)
    model.compile(backend="skiplora", options=OPEN)
    model(**inputs).loss.backward()
    loss = model(**inputs).loss
    assert "aten::_scaled_dot_product_efficient_attention_backward" in operators(loss.backward)


def operators(run: Callable[[], Any]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return {event.key for event in profiled.key_averages()}


def test_ratios_are_those_of_eager_norms() -> None:
    model, eager, inputs = llama(), llama(), batch()
    model.compile(backend="skiplora", options=OPEN)
    model(**inputs).loss.backward()
    wanted = {name: ratio for (name, _), ratio in oracle.ratios(eager, lambda: eager(**inputs)).items()}
    found = {site.name: site.ratio for site in skiplora_fx.sites(model)}
    assert found == pytest.approx(wanted, rel=1e-3)
