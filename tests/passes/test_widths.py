"""What a factor reads and makes, from which the rank follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes.dataflow import Dataflow
from skiplora_fx.passes.linear_operators import Role
from skiplora_fx.passes.widths import weight_of, widths_of


def widths(function: Callable[[Tensor, Tensor], Any], x: Tensor, weight: Tensor) -> tuple[int, int]:
    graph = make_fx(function)(x, weight).graph
    inputs = graph.find_nodes(op="placeholder")
    flow = Dataflow(graph, {inputs[0]: None, inputs[1]: (inputs[1],)})
    calls = [node for node in graph.nodes if node.op == "call_function" and flow.is_activation(node)]
    (factor,) = [node for node in calls if flow.role(node) is Role.FACTOR]
    assert weight_of(flow, factor) is not None
    return tuple(widths_of(flow, factor))


@pytest.mark.parametrize(
    ("function", "x", "weight", "expected"),
    [
        (F.linear, (3, 16), (4, 16), (16, 4)),
        (lambda x, w: x @ w, (2, 3, 16), (16, 4), (16, 4)),
        (lambda x, w: w @ x, (16, 3), (4, 16), (16, 4)),
        (F.conv1d, (2, 6, 9), (4, 6, 3), (6, 4)),
        (lambda x, w: F.conv1d(x, w, groups=2), (2, 8, 9), (6, 4, 1), (4, 6)),
        (F.conv2d, (2, 6, 9, 9), (4, 6, 3, 3), (6, 4)),
        (F.conv2d, (6, 9, 9), (4, 6, 3, 3), (6, 4)),
        (torch.bmm, (2, 3, 8), (2, 8, 4), (16, 8)),  # two blocks, each of 8 × 4
        (lambda x, w: torch.bmm(x, w.expand(2, 8, 4)), (2, 3, 8), (1, 8, 4), (8, 4)),  # one, used twice
    ],
)
def test_widths(function: Any, x: tuple[int, ...], weight: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert widths(function, torch.randn(x), torch.randn(weight)) == expected


def test_an_embedding_reads_its_vocabulary() -> None:
    assert widths(lambda ids, w: F.embedding(ids, w), torch.randint(0, 20, (3,)), torch.randn(20, 4)) == (20, 4)
