"""The work of a pass grows as the layers do. It is counted in lines of Python that are run, never timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from aten import gate, trace
from torch import Tensor, fx

from skiplora_fx.passes import (
    find_layers,
    find_regions,
    liveness,
    predicate_backward,
    release_operands,
    release_saved,
    share_branches,
)
from skiplora_fx.passes.release_saved import settle_released

GRAD, WEIGHT = torch.randn(4, 4), torch.randn(4, 4)
hold = torch.ops.skiplora.hold


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


def forward_of(count: int) -> fx.Graph:
    """Return the forward of ``count`` layers with a residual: an output, two values saved of each, the decisions."""

    def forward(thresholds: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        table = weight.neg()
        saved = []
        for _ in range(count):
            inside = x.sin() * table
            for _ in range(4):
                inside = inside.mm(weight).tanh()
            saved += [inside, inside.mm(weight).sigmoid()]
            x = x + saved[-1].cos()
        return x.mm(weight), *saved, hold(thresholds)

    return trace(forward, torch.zeros(count), GRAD, WEIGHT).graph


def backward_of(forward: fx.Graph, count: int) -> fx.Graph:
    """Return a backward that reads what a forward saves in regions of their own, called as it is there."""

    def backward(opens: Tensor, grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        gradients = []
        for site in reversed(range(count)):
            upper, lower = saved[2 * site + 1], saved[2 * site]
            gradients.append(gate(grad, opens, site).t().mm(upper))
            grad = grad.mm(lower)
        return tuple(gradients)

    _, *saved, opens = forward.output_node().args[0]
    values = [torch.randn_like(GRAD) for _ in saved]
    graph = trace(backward, torch.ones(count, dtype=torch.bool), GRAD, *values).graph
    first, _, *others = graph.find_nodes(op="placeholder")
    for placeholder, node in zip([first, *others], [opens, *saved], strict=True):
        placeholder._rename(node.name)
    return graph


class Work:
    """Counts the lines that functions run, by the function's name; a loop's are counted each time, on one line too."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def of(self, run: Callable[..., Any], *args: Any) -> Any:
        def count(frame: FrameType, event: str, arg: Any) -> Any:
            self.lines[run.__name__] += 1
            return count

        self.lines[run.__name__] = 0
        before = sys.gettrace()
        sys.settrace(count)
        try:
            return run(*args)
        finally:
            sys.settrace(before)


def work_for(count: int) -> dict[str, int]:
    """Return how much work each pass has with so many layers, by the pass's name."""
    work = Work()
    graph = trace(layers(count), torch.ones(count, dtype=torch.bool), GRAD, WEIGHT).graph
    analysis = work.of(liveness, graph, count)
    work.of(predicate_backward, graph, analysis, work.of(find_regions, graph, analysis))
    work.of(share_branches, graph)
    work.of(release_operands, graph)
    forward = forward_of(count)
    assert len(work.of(find_layers, forward)[0].alike) >= count - 2
    released = work.of(release_saved, forward, backward_of(forward, count), 1, count)
    assert len(released.which) == 2 * count
    work.of(settle_released, forward, released)
    return work.lines


@pytest.fixture(scope="module")
def doubled() -> dict[str, float]:
    """How many times as much work each pass has with twice the layers."""
    once, twice = work_for(32), work_for(64)
    return {name: twice[name] / once[name] for name in once}


PASSES = (
    "liveness",
    "find_regions",
    "predicate_backward",
    "share_branches",
    "release_operands",
    "release_saved",
    "settle_released",
    "find_layers",
)


@pytest.mark.parametrize("name", PASSES)
def test_twice_the_layers_are_twice_the_work(doubled: dict[str, float], name: str) -> None:
    assert doubled[name] < 2.1
