"""Sums that are fused with a product, or with a scale, are taken apart; nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes import split_joins
from skiplora_fx.passes.parameters import Lifted, Parameters


def square(batch: int = 0) -> Tensor:
    return torch.randn(*([batch] if batch else []), 4, 4, dtype=torch.float64)


def split(function: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Trace ``function(x, w)``, w a parameter, and return the graph and what became of it."""
    gm = make_fx(function)(*inputs)
    return gm, split_joins(gm, Parameters(gm, {gm.graph.find_nodes(op="placeholder")[1].name: Lifted("w", True)}))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.addmm(x.sin(), x, w, alpha=2.0),
        lambda x, w: torch.addmm(x.sin(), x, w, beta=0.5, alpha=2.0),
        lambda x, w: torch.addmm(x.sin(), x, w),
        lambda x, w: x.sin().addmm_(x, w, alpha=2.0),
        lambda x, w: x.sin().addmm_(x, w, beta=0.5),
        lambda x, w: torch.add(x, x @ w, alpha=3),
        lambda x, w: x.sin().add_(x @ w, alpha=3),
        lambda x, w: torch.baddbmm(x[None], x[None], w[None], alpha=2.0)[0],
    ],
)
def test_the_sum_is_a_node_of_its_own(function: Callable[..., Any]) -> None:
    x, w = square(), square()
    gm, apart = split(function, x, w)
    before = str(gm.graph)
    assert apart is not gm
    assert not any("addmm" in str(node.target) or "baddbmm" in str(node.target) for node in apart.graph.nodes)
    assert not any(node.kwargs.get("alpha") for node in apart.graph.nodes)
    torch.testing.assert_close(apart(x, w), function(x, w))
    assert str(gm.graph) == before


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.addmm(w[0], x, w),  # a bias: an ordinary linear
        lambda x, w: x + x @ w,
        lambda x, w: torch.add(x, w, alpha=1),
    ],
)
def test_what_is_not_fused_is_the_same_object(function: Callable[..., Any]) -> None:
    gm, apart = split(function, square(), square())
    assert apart is gm
