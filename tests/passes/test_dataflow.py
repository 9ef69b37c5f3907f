"""Who reads which value, and what is static: writes in place and leftovers of tracing included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes.dataflow import Dataflow


def traced(function: Callable[..., Any], *inputs: Tensor) -> tuple[Dataflow, dict[str, fx.Node]]:
    """Return the flow of ``function(x, w, …)``, of whose inputs all but the first are parameters; nodes by name."""
    graph = make_fx(function)(*inputs).graph
    x, *weights = graph.find_nodes(op="placeholder")
    flow = Dataflow(graph, {x: None, **{weight: (weight,) for weight in weights}})
    nodes = {node.name: node for node in graph.nodes}
    return flow, nodes | {"x": x} | {f"w{number}": weight for number, weight in enumerate(weights)}


def square() -> Tensor:
    return torch.randn(4, 4)


def test_what_depends_on_parameters_alone_is_static() -> None:
    flow, nodes = traced(lambda x, v, w: x @ (v @ w.t()), square(), square(), square())
    assert flow.roots(nodes["mm"]) == (nodes["w0"], nodes["w1"])
    assert not flow.is_activation(nodes["mm"])
    assert flow.is_activation(nodes["mm_1"])
    assert flow.roots(nodes["mm_1"]) == ()
    assert flow.activations(nodes["mm_1"]) == [nodes["x"]]
    assert flow.static_reads(nodes["mm_1"]) == [nodes["mm"]]


def test_a_tensor_that_only_has_an_activations_shape_is_static() -> None:
    flow, nodes = traced(lambda x, w: x.new_zeros(4, 4) @ w, square(), square())
    assert not flow.is_activation(nodes["new_zeros"])
    assert flow.roots(nodes["mm"]) == (nodes["w0"],)
    assert flow.readers(nodes["x"]) == ()


def test_a_write_in_place_is_read_by_those_after_it() -> None:
    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sin()
        before = y.cos()
        y.add_(w)
        return before, y.exp()

    flow, nodes = traced(function, square(), square())
    assert flow.reads(nodes["cos"]) == (nodes["sin"],)
    assert flow.reads(nodes["exp"]) == (nodes["add_"],)
    assert flow.readers(nodes["add_"]) == (nodes["exp"],)
    assert flow.resolve(nodes["exp"], nodes["add_"]) is nodes["add_"]


def test_a_write_through_a_view_is_a_write_to_all_of_it() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        padded = x.new_zeros(4, 8)
        padded[:, :4].copy_(x @ w)
        return padded.exp()

    flow, nodes = traced(function, square(), square())
    (written,) = flow.reads(nodes["exp"])
    assert written.name.startswith("copy_")
    assert flow.is_activation(nodes["exp"])


def test_what_nobody_uses_reads_nothing() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = x @ w
        y.detach().cos()
        return y.exp()

    flow, nodes = traced(function, square(), square())
    assert flow.readers(nodes["mm"]) == (nodes["exp"],)
