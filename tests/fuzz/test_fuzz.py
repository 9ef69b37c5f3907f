"""Models, masks, policies and options as they come: gradients are those of eager ``.detach()``.

``make fuzz SEED=1 CASES=500`` runs more of them than the tests do, from a seed of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import oracle
import pytest
import torch
from capture import QuickBackend
from drawn_models import WORDS, ModelSpec, model_specs
from drawn_options import GATINGS, Gating, policy_options
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skiplora_fx

CASES = int(os.environ.get("FUZZ_CASES", "12"))
TOLERANCE = {torch.float64: (1e-8, 1e-10), torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.0, 2.0**-6)}
"""Relative, and of the largest element of all gradients: a key's bias has none but what rounding gives it.

In bfloat16 both sides round each result to 8 bits, in which 2**-8 is half a unit of the last place. Where the backward
has other operators than eager (decompositions, a sum in another order) they differ by a unit or two, in elements as
large as what was added up; where that cancels to something small, the difference is small of the largest element only.
"""

AS_EAGER_ROUNDS = {"emulate_precision_casts": True}
"""Inductor keeps in float32 what it fuses; with this option it rounds to bfloat16 where eager does."""

LENGTHS = st.sampled_from(((5,), (5, 7, 2)))
"""Of the batches: a graph of fixed sizes, or one of varying ones."""

STEPS = 6
"""Of a model under a policy: enough for each to have shut something."""

Tally = dict[str, list[bool]]


@pytest.fixture(scope="module")
def shut_something() -> Iterator[Tally]:
    """Keep for each test whether a gate was shut in each of its models: a run in which few were shows nothing."""
    tally: Tally = {}
    yield tally
    for name, cases in tally.items():
        assert sum(cases) >= len(cases) / 4, f"{name}: only in {sum(cases)} of {len(cases)} models a gate was shut"


def note(tally: Tally, name: str, shut: set[str]) -> None:
    tally.setdefault(name, []).append(bool(shut))
    event(f"sites shut at some time: {min(len(shut), 3)}{' or more' * (len(shut) > 2)}")


def tokens(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + length)
    return torch.randint(0, WORDS, (2, length), generator=generator)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).square().mean()


def masks(model: nn.Module, gated: set[str], data: st.DataObject, drawn: int) -> list[oracle.Mask]:
    """Return decisions for all adapted layers: all open, all shut, and some drawn; what has no gate is open."""
    layers = list(oracle.adapted_layers(model))
    any_of = st.fixed_dictionaries({name: st.booleans() if name in gated else st.just(True) for name in layers})
    extremes = [{name: is_open or name not in gated for name in layers} for is_open in (True, False)]
    return extremes + [data.draw(any_of) for _ in range(drawn)]


@settings(max_examples=CASES)
@given(spec=model_specs(), gating=GATINGS, lengths=LENGTHS, data=st.data())
def test_gradients(
    shut_something: Tally, spec: ModelSpec, gating: Gating, lengths: tuple[int, ...], data: st.DataObject
) -> None:
    torch._dynamo.reset()
    eager, compiled = spec.build(), spec.build()
    backend = QuickBackend(gating.scope, held=gating.held, merges=gating.merges)
    compiled.compile(backend=backend, dynamic=len(lengths) > 1)
    loss_of(compiled, tokens(lengths[0]))
    gated = {site.name for captured in backend.captured for site in captured.findings.sites}
    for mask in masks(eager, gated, data, 3):
        for length in lengths:
            backend.set_mask(mask)
            check_gradients(spec, eager, compiled, mask, gating.scope, tokens(length))
    note(shut_something, "test_gradients", gated)


@pytest.mark.slow
@settings(max_examples=max(CASES // 10, 3))
@given(spec=model_specs(), gating=GATINGS, lengths=LENGTHS, data=st.data())
def test_gradients_of_compiled_code(
    shut_something: Tally, spec: ModelSpec, gating: Gating, lengths: tuple[int, ...], data: st.DataObject
) -> None:
    torch._dynamo.reset()
    eager, compiled = spec.build(), spec.build()
    options = {**gating.options, "threshold": 0.0, "strict": True, **AS_EAGER_ROUNDS}
    compiled.compile(backend="skiplora", dynamic=len(lengths) > 1, options=options)
    loss_of(compiled, tokens(lengths[0])).backward()
    gated = {site.name for site in skiplora_fx.sites(compiled)}
    for mask in masks(eager, gated, data, 2):
        for name in gated:
            skiplora_fx.set_threshold(compiled, 0.0 if mask[name] else math.inf, name)
        for length in lengths:
            check_gradients(spec, eager, compiled, mask, gating.scope, tokens(length))
            assert decisions(compiled) == {name: mask[name] for name in gated}
    note(shut_something, "test_gradients_of_compiled_code", gated)


@settings(max_examples=CASES)
@given(spec=model_specs(), data=st.data())
def test_policies_of_applied_graphs(shut_something: Tally, spec: ModelSpec, data: st.DataObject) -> None:
    """What a policy has decided is read back from the sites, and the oracle detaches there."""
    eager, model = spec.build(), spec.build()
    gating, options = data.draw(policy_options(spec))
    del options["merge_siblings"]  # which is the backend's
    applied = skiplora_fx.apply(model, tokens(5), **options)
    check_steps(shut_something, "test_policies_of_applied_graphs", spec, gating, eager, applied)


@pytest.mark.slow
@settings(max_examples=max(CASES // 10, 8))
@given(spec=model_specs(), data=st.data())
def test_policies_of_compiled_code(shut_something: Tally, spec: ModelSpec, data: st.DataObject) -> None:
    torch._dynamo.reset()
    eager, compiled = spec.build(), spec.build()
    gating, options = data.draw(policy_options(spec))
    compiled.compile(backend="skiplora", options={**options, "strict": True, **AS_EAGER_ROUNDS})
    check_steps(shut_something, "test_policies_of_compiled_code", spec, gating, eager, compiled)


def decisions(model: nn.Module) -> dict[str, bool]:
    return {site.name: not site.skipped for site in skiplora_fx.sites(model)}


def check_steps(tally: Tally, name: str, spec: ModelSpec, gating: Gating, eager: nn.Module, gated: nn.Module) -> None:
    everywhere_open = dict.fromkeys(oracle.adapted_layers(eager), True)
    shut: set[str] = set()
    for step in range(STEPS):
        ids = tokens(5, seed=step)
        found = oracle.gradients(gated, lambda ids=ids: loss_of(gated, ids))
        mask = {**everywhere_open, **decisions(gated)}
        check_same(spec, found, eager, mask, gating.scope, ids)
        shut |= {site for site, is_open in mask.items() if not is_open}
    note(tally, name, shut)


def check_gradients(
    spec: ModelSpec, eager: nn.Module, compiled: nn.Module, mask: oracle.Mask, scope: str, ids: Tensor
) -> None:
    found = oracle.gradients(compiled, lambda: loss_of(compiled, ids))
    check_same(spec, found, eager, mask, scope, ids)


def check_same(
    spec: ModelSpec, found: oracle.Gradients, eager: nn.Module, mask: oracle.Mask, scope: str, ids: Tensor
) -> None:
    with oracle.detached(eager, scope, mask):
        expected = oracle.gradients(eager, lambda: loss_of(eager, ids))
    assert found.keys() == expected.keys()
    rtol, atol = TOLERANCE[spec.dtype]
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=rtol, atol=atol * largest, msg=lambda text, name=name: f"{name}: {text}"
        )
