"""Who writes into which memory, in torch-level and aten-level graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes.memory import sharing_memory, writes


def last(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op.startswith("call"))


@pytest.mark.parametrize(
    ("function", "count"),
    [
        pytest.param(lambda x: x.add_(1), 1, id="method"),
        pytest.param(lambda x: F.relu(x, inplace=True), 1, id="inplace, by keyword"),
        pytest.param(lambda x: F.dropout(x, 0.5, True, True), 1, id="inplace, by position"),
        pytest.param(lambda x: torch.sin(x, out=x), 1, id="out"),
        pytest.param(lambda x: F.relu(x, inplace=False), 0, id="not in place"),
        pytest.param(lambda x: x.add(1), 0, id="functional"),
    ],
)
def test_who_writes(function: Callable[[Any], Any], count: int) -> None:
    graph = fx.symbolic_trace(function).graph
    assert writes(last(graph)) == tuple(graph.find_nodes(op="placeholder"))[:count]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_module_that_is_left_whole(inplace: bool) -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.ReLU(inplace=inplace))).graph
    assert len(writes(last(graph))) == inplace


def test_an_aten_operator_says_it_in_its_schema() -> None:
    graph = make_fx(lambda x: torch.ops.aten.sin.out(x, out=x.clone()))(torch.ones(2)).graph
    assert [node.name for node in writes(last(graph))] == ["clone"]


def family(function: Callable[[Any], Any]) -> set[str]:
    graph = fx.symbolic_trace(function).graph
    return {node.name for node in sharing_memory(graph.find_nodes(op="placeholder")[0])}


def test_views_of_views_share_and_results_do_not() -> None:
    def function(x: Tensor) -> Any:
        part = x.chunk(2)[0]
        return part.transpose(0, 1), x.contiguous(), x.T, x + 1, x.new_zeros(x.size(0)), x.clone()

    found = family(function)
    assert {"chunk", "getitem", "transpose", "contiguous", "getattr_1"} <= found
    assert found.isdisjoint({"add", "new_zeros", "size", "clone"})


def test_what_is_written_shares() -> None:
    assert family(lambda x: x.add_(1).view(-1)) == {"x", "add_", "view"}
