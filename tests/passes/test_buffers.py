"""What may lie in one memory is found, and what cannot is not counted to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten import trace
from torch import Tensor, fx

from skiplora_fx.passes.buffers import base_of, sharing_buffer

aten = torch.ops.aten
X, W = torch.randn(4, 4), torch.randn(4, 4)


def traced(function: Callable[..., Any]) -> dict[str, fx.Node]:
    """Return the nodes of a function of two matrices, by name."""
    return {node.name: node for node in trace(function, X, W).graph.nodes}


def sharing(function: Callable[..., Any], name: str) -> set[str]:
    return {node.name for node in sharing_buffer(traced(function)[name])}


@pytest.mark.parametrize("name", ["mm", "t", "view", "slice_1"])
def test_views_lie_where_their_base_does(name: str) -> None:
    def run(x: Tensor, w: Tensor) -> Any:
        product = x.mm(w)
        return product.t().sin(), product.view(16)[2:]

    assert sharing(run, name) == {"mm", "t", "view", "slice_1"}


def test_what_is_computed_has_memory_of_its_own() -> None:
    def run(x: Tensor, w: Tensor) -> Any:
        return (x.mm(w).sin() + x).sum()

    assert sharing(run, "sin") == {"sin"}
    assert sharing(run, "add") == {"add"}


def test_values_of_one_size_that_varies_have_memory_of_their_own() -> None:
    def run(x: Tensor, w: Tensor) -> Any:
        size = x.shape[0] * x.shape[1]
        return x.sin().view(size), x.cos().view(size)

    nodes = {node.name: node for node in trace(run, X, W, mode="symbolic").graph.nodes}
    assert {node.name for node in sharing_buffer(nodes["sin"])} == {"sin", "view"}


def test_a_view_of_an_input_lies_in_the_input() -> None:
    assert sharing(lambda x, w: x.t().mm(w), "t") == {"x_1", "t"}


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda value: value.clone(), id="clone"),
        pytest.param(lambda value: value.to(torch.float64), id="to float64"),
        pytest.param(lambda value: value.repeat(1, 1), id="repeat"),
        pytest.param(lambda value: aten.constant_pad_nd(value, [0, 0]), id="pad"),
        pytest.param(lambda value: torch.cat([value, value]), id="cat"),
    ],
)
def test_a_copy_that_inductor_may_not_make_lies_with_its_source(copied: Callable[[Tensor], Tensor]) -> None:
    nodes = trace(lambda x, w: copied(x.mm(w)), X, W).graph.output_node().all_input_nodes
    assert {node.name for node in sharing_buffer(nodes[0])} == {"mm", nodes[0].name}


def test_all_parts_of_a_cat_lie_in_it() -> None:
    found = sharing(lambda x, w: torch.cat([x.sin(), w.cos()]), "sin")
    assert found == {"sin", "cos", "cat"}


def test_parts_of_one_result_lie_together() -> None:
    """Inductor may have them in one buffer, as in the parts of a split."""
    found = sharing(lambda x, w: x.mm(w).split(2), "getitem")
    assert found == {"mm", "split", "getitem", "getitem_1"}


def test_what_writes_hands_its_inputs_on() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        return aten.add_.Tensor(x.mm(w), w.sin())

    assert sharing(run, "mm") == {"mm", "sin", "add_"}


def test_of_what_is_no_operator_nothing_is_known() -> None:
    nodes = traced(lambda x, w: x.sin().mm(w))
    nodes["mm"].target = max
    assert sharing_buffer(nodes["sin"]) == {nodes["sin"], nodes["mm"], nodes["w_1"]}


def test_giving_memory_back_makes_nothing_one() -> None:
    graph = trace(lambda x, w: (x.sin(), w.cos()), X, W).graph
    one, other = graph.output_node().all_input_nodes
    opens, read = (torch.ones(1, dtype=torch.bool) for _ in range(2))
    with graph.inserting_before(graph.output_node()):
        graph.call_function(torch.ops.skiplora.let_go.default, ([one, other], read, opens, [0, 0], 64, [], []))
    assert sharing_buffer(one) == {one}


def test_the_base_of_a_view_of_a_view() -> None:
    def run(x: Tensor, w: Tensor) -> Any:
        return x.mm(w).t()[1:].unsqueeze(0), x.sin().clone()

    nodes = traced(run)
    assert base_of(nodes["unsqueeze"]) is base_of(nodes["t"]) is nodes["mm"]
    assert base_of(nodes["clone"]) is nodes["clone"]  # rather too many share a buffer, but a base is certain
