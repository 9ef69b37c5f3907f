"""The work of a pass grows as the layers do. It is counted in calls of functions, never timed."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten import gate, trace
from torch import Tensor

from skiplora_fx.passes import find_regions, liveness, predicate_backward, share_branches

GRAD, WEIGHT = torch.randn(4, 4), torch.randn(4, 4)


def layers(count: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return the backward of ``count`` layers, which all read one value that is computed, as a rotary table is."""

    def backward(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        table = weight.neg()
        gradients = []
        for site in reversed(range(count)):
            through = gate(grad, opens, site)
            gradients.append(through.t().mm(weight))
            grad = (grad.mm(weight).sin() + through.mm(weight).cos() * grad) * table
        return tuple(gradients)

    return backward


def calls_of(count: int) -> dict[str, int]:
    """Return how many calls each pass over the backward makes, by the pass's name."""
    graph = trace(layers(count), torch.ones(count, dtype=torch.bool), GRAD, WEIGHT).graph
    calls: dict[str, int] = {}

    def counted(run: Callable[..., Any], *args: Any) -> Any:
        profiled = cProfile.Profile()
        result = profiled.runcall(run, *args)
        calls[run.__name__] = pstats.Stats(profiled).total_calls
        return result

    analysis = counted(liveness, graph, count)
    counted(predicate_backward, graph, analysis, counted(find_regions, graph, analysis))
    counted(share_branches, graph)
    return calls


@pytest.fixture(scope="module")
def doubled() -> dict[str, float]:
    """How many times as many calls each pass makes for twice the layers."""
    once, twice = calls_of(32), calls_of(64)
    return {name: twice[name] / once[name] for name in once}


@pytest.mark.parametrize("name", ["liveness", "find_regions", "predicate_backward", "share_branches"])
def test_twice_the_layers_are_twice_the_work(doubled: dict[str, float], name: str) -> None:
    assert doubled[name] < 2.1
