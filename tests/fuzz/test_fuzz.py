"""Models, masks and options as they come: gradients are those of eager ``.detach()``.

``make fuzz SEED=1 CASES=500`` runs more of them than the tests do, from a seed of its own.
"""

from __future__ import annotations

import math
import os

import oracle
import pytest
import torch
from capture import QuickBackend
from drawn_models import WORDS, ModelSpec, model_specs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skiplora_fx

CASES = int(os.environ.get("FUZZ_CASES", "12"))
TOLERANCE = {torch.float64: (1e-8, 1e-10), torch.float32: (1e-4, 1e-5)}
"""Relative, and of the largest element of all gradients: a key's bias has none but what rounding gives it."""

SCOPES = st.sampled_from(("adapter", "layer"))
LENGTHS = st.sampled_from(((5,), (5, 7, 2)))
"""Of the batches: a graph of fixed sizes, or one of varying ones."""


def tokens(length: int) -> Tensor:
    return torch.randint(0, WORDS, (2, length), generator=torch.Generator().manual_seed(length))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).square().mean()


def masks(model: nn.Module, gated: set[str], data: st.DataObject, drawn: int) -> list[oracle.Mask]:
    """Return decisions for all adapted layers: all open, all shut, and some drawn; what has no gate is open."""
    layers = list(oracle.adapted_layers(model))
    any_of = st.fixed_dictionaries({name: st.booleans() if name in gated else st.just(True) for name in layers})
    extremes = [{name: is_open or name not in gated for name in layers} for is_open in (True, False)]
    return extremes + [data.draw(any_of) for _ in range(drawn)]


@settings(max_examples=CASES)
@given(spec=model_specs(), scope=SCOPES, held=st.booleans(), lengths=LENGTHS, data=st.data())
def test_gradients(spec: ModelSpec, scope: str, held: bool, lengths: tuple[int, ...], data: st.DataObject) -> None:
    torch._dynamo.reset()
    eager, compiled = spec.build(), spec.build()
    backend = QuickBackend(scope, held=held)
    compiled.compile(backend=backend, dynamic=len(lengths) > 1)
    loss_of(compiled, tokens(lengths[0]))
    gated = {site.name for captured in backend.captured for site in captured.findings.sites}
    for mask in masks(eager, gated, data, 3):
        for length in lengths:
            backend.set_mask(mask)
            check_gradients(spec, eager, compiled, mask, scope, tokens(length))


@pytest.mark.slow
@settings(max_examples=max(CASES // 10, 3))
@given(spec=model_specs(), scope=SCOPES, lengths=LENGTHS, data=st.data())
def test_gradients_of_compiled_code(spec: ModelSpec, scope: str, lengths: tuple[int, ...], data: st.DataObject) -> None:
    torch._dynamo.reset()
    eager, compiled = spec.build(), spec.build()
    options = {"scope": scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "strict": True}
    compiled.compile(backend="skiplora", dynamic=len(lengths) > 1, options=options)
    loss_of(compiled, tokens(lengths[0])).backward()
    gated = {site.name for site in skiplora_fx.sites(compiled)}
    for mask in masks(eager, gated, data, 2):
        for name in gated:
            skiplora_fx.set_threshold(compiled, 0.0 if mask[name] else math.inf, name)
        for length in lengths:
            check_gradients(spec, eager, compiled, mask, scope, tokens(length))
            assert {site.name: not site.skipped for site in skiplora_fx.sites(compiled)} == {
                name: mask[name] for name in gated
            }


def check_gradients(
    spec: ModelSpec, eager: nn.Module, compiled: nn.Module, mask: oracle.Mask, scope: str, ids: Tensor
) -> None:
    found = oracle.gradients(compiled, lambda: loss_of(compiled, ids))
    with oracle.detached(eager, scope, mask):
        expected = oracle.gradients(eager, lambda: loss_of(eager, ids))
    assert found.keys() == expected.keys()
    rtol, atol = TOLERANCE[spec.dtype]
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=rtol, atol=atol * largest, msg=lambda text, name=name: f"{name}: {text}"
        )
