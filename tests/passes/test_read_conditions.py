"""What a backward is given is read when a region that reads it runs, be it by another name or carried by a sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from aten import gate, holds, masks, predicated, trace
from hypothesis import assume, given, settings
from programs import Program, inputs, programs
from torch import Tensor

from skiplora_fx.passes import find_regions, liveness
from skiplora_fx.passes.liveness import is_gate
from skiplora_fx.passes.read_conditions import read_conditions

SITES = 3
OPENS = torch.ones(SITES, dtype=torch.bool)
GRAD, SAVED, OTHER, W = inputs()


def read(function: Callable[..., Any], *values: Tensor) -> dict[str, str]:
    """Return when a backward reads each of its inputs but the decisions, in words, by the name of the argument."""
    gm = trace(function, OPENS, *values)
    analysis = liveness(gm.graph, SITES)
    found = read_conditions(gm.graph, analysis, find_regions(gm.graph, analysis))
    return {name.removesuffix("_1"): analysis.conditions.text(when) for name, when in found.items() if name != "o_1"}


def test_what_runs_always_reads_always() -> None:
    def backward(o: Tensor, grad: Tensor, saved: Tensor) -> Any:
        return gate(grad, o, 0).mm(grad), grad.mm(saved)

    assert read(backward, GRAD, SAVED) == {"grad": "always", "saved": "always"}


def test_a_region_reads_when_it_runs() -> None:
    found = read(lambda o, grad, saved: gate(grad, o, 1).mm(saved), GRAD, SAVED)
    assert found["saved"] == "s1"


def test_two_regions_read_when_either_runs() -> None:
    def backward(o: Tensor, grad: Tensor, saved: Tensor) -> Any:
        return gate(grad, o, 0).mm(saved), gate(grad, o, 2).mm(saved)

    assert read(backward, GRAD, SAVED)["saved"] == "any of s0, s2"


def test_what_nobody_reads_is_read_never() -> None:
    assert read(lambda o, grad, saved: gate(grad, o, 0).mm(grad), GRAD, SAVED)["saved"] == "never"


def test_a_view_is_another_name() -> None:
    found = read(lambda o, grad, saved: gate(grad, o, 0).mm(saved.t().view(4, 4).t()), GRAD, SAVED)
    assert found["saved"] == "s0"


def test_what_is_returned_is_read_by_whoever_called() -> None:
    found = read(lambda o, grad, saved: (gate(grad, o, 0).mm(saved), saved.t()), GRAD, SAVED)
    assert found["saved"] == "always"


def test_the_readers_of_an_open_gate_read_through_it() -> None:
    assert read(lambda o, grad, w: gate(grad, o, 0).mm(w), GRAD, W)["grad"] == "s0"


def test_what_a_sum_carries_is_read() -> None:
    """With one side zero the sum is not computed, and the other side is taken as it is."""

    def backward(o: Tensor, grad: Tensor, other: Tensor, w: Tensor) -> Tensor:
        return (gate(grad.mm(w), o, 0) + other.view(16).view(4, 4)).mm(w)

    def behind_a_gate(o: Tensor, grad: Tensor, other: Tensor, w: Tensor) -> Tensor:
        return gate(backward(o, grad, other, w), o, 1)

    assert read(backward, GRAD, OTHER, W)["other"] == "always"
    assert read(behind_a_gate, GRAD, OTHER, W)["other"] == "s1"


@settings(max_examples=40)
@given(programs(SITES))
def test_what_is_not_read_may_hold_anything(program: Program) -> None:
    given = GRAD, OTHER, W, SAVED
    gm = trace(program, OPENS, *given)
    placeholders = gm.graph.find_nodes(op="placeholder")
    assume(any(map(is_gate, gm.graph.nodes)))
    analysis = liveness(gm.graph, SITES)
    conditions = read_conditions(gm.graph, analysis, find_regions(gm.graph, analysis))
    after = predicated(gm, SITES)
    for mask in masks(SITES):
        opens = torch.tensor(mask)
        kept = [
            value if holds(conditions[node.name], mask) else value * torch.nan
            for node, value in zip(placeholders[1:], given, strict=True)
        ]
        expected = gm(opens, *given)
        assume(all(result.abs().max() < 1e9 for result in expected))
        torch.testing.assert_close(after(opens, *kept), expected, rtol=1e-9, atol=1e-9)
