"""What a region was the last to read is let go of behind it, whichever branch ran."""

from __future__ import annotations

import copy
import math

import models
import pytest
import torch
from aten import COND, gate, predicated, trace
from memory import peak_of
from torch import Tensor, fx, nn

import skiplora_fx
from skiplora_fx.gate import RELEASE
from skiplora_fx.passes import release_operands

WIDE, NARROW = 16, 2


def backward(opens: Tensor, grad: Tensor, weight: Tensor, saved: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of two layers: ``large`` and ``small`` are made in a region, and read in others."""
    through = gate(grad, opens, 0)
    large, small = through.mm(weight), through.mm(saved[:, :NARROW])
    return tuple(gate(value, opens, site).t().mm(saved) for value in (large, small) for site in (1, 2))


def released() -> fx.Graph:
    opens, grad = torch.ones(3, dtype=torch.bool), torch.randn(WIDE, WIDE)
    gm = predicated(trace(backward, opens, grad, torch.randn(WIDE, WIDE), torch.randn(WIDE, WIDE)), 3)
    release_operands(gm.graph)
    gm.graph.lint()
    return gm.graph


def test_each_release_comes_behind_the_last_region_that_reads() -> None:
    graph = released()
    order = {node: place for place, node in enumerate(graph.nodes)}
    releases = graph.find_nodes(op="call_function", target=RELEASE)
    assert releases
    for release in releases:
        values, after = release.args
        assert after.args[0].target is COND
        for value in values:
            assert value.op == "call_function", "what the forward saved is not the backward's to release"
            assert value.meta["val"].numel() >= WIDE * WIDE / 4
            assert max(value.users, key=order.__getitem__) is release


def test_a_release_is_no_dead_code() -> None:
    graph = released()
    before = len(graph.nodes)
    graph.eliminate_dead_code()
    assert len(graph.nodes) == before


def peak(model: nn.Module, threshold: float) -> int:
    """Return the peak of a step with every gate open, or shut, bytes."""

    def step() -> None:
        model(**models.tokens(8, 48)).loss.backward()

    step()
    skiplora_fx.set_threshold(model, threshold)
    step()
    model.zero_grad(set_to_none=True)
    return peak_of(step, "cpu")


# 1.088 and 1.135 were measured; a goal of 1.01 is missed in a model as small as this (docs/performance.md).
@pytest.mark.parametrize(("scope", "most"), [("adapter", 1.10), pytest.param("layer", 1.15, marks=pytest.mark.slow)])
def test_skipping_everything_takes_little_memory(scope: str, most: float) -> None:
    model = copy.deepcopy(models.with_lora(models.llama(3), "all-linear"))
    options = {"scope": scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "strict": True}
    model.compile(backend="skiplora", options=options)
    peak(model, 0.0)
    # Beside what the forward saved, which goes as regions read it, one block's gradients are held.
    assert peak(model, math.inf) < most * peak(model, 0.0)
