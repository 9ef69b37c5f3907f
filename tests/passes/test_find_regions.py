"""Regions can be run in an order, and what stands in for their outputs is enough."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from typing import Any

import pytest
import torch
from aten import assert_same_under_all_masks, gate, predicated, trace
from hypothesis import assume, given, settings
from programs import Program, inputs, programs
from torch import Tensor, fx

from skiplora_fx.passes import Liveness, Regions, find_regions, liveness
from skiplora_fx.passes.find_regions import Filler, Region
from skiplora_fx.passes.liveness import is_gate
from skiplora_fx.passes.operators import is_creation, is_view
from skiplora_fx.passes.sums import is_plain_sum

SITES = 3
OPENS = torch.ones(SITES, dtype=torch.bool)
A, B, W, V = inputs()
WIDE = inputs(size=40)
"""As many FLOPs for each element of a product that it is worth a branch wherever it is added."""


class Found:
    """The regions of a function's graph, for questions by the names of nodes."""

    def __init__(self, function: Callable[..., Any], *values: Tensor) -> None:
        self.graph = trace(function, OPENS, *values).graph
        self.analysis: Liveness = liveness(self.graph, SITES)
        self.regions: Regions = find_regions(self.graph, self.analysis)

    def names(self) -> list[list[str]]:
        return [[node.name for node in region.nodes] for region in self.regions.regions]

    def region_of(self, name: str) -> Region:
        (found,) = (region for region in self.regions.regions if name in [node.name for node in region.nodes])
        return found

    def filler(self, name: str) -> Filler:
        (found,) = (filler for node, filler in self.region_of(name).outputs.items() if node.name == name)
        return found

    def carried(self, name: str) -> dict[str, str]:
        say = self.analysis.conditions.text
        return {addend.name: say(condition) for addend, condition in self.filler(name).carried}


def test_what_always_runs_is_in_no_region() -> None:
    found = Found(lambda o, grad, w: (grad.mm(w), gate(grad, o, 0).mm(w)), A, W)
    assert found.names() == [["mm_1"]]


def test_one_condition_makes_one_region() -> None:
    found = Found(lambda o, grad, w: gate(grad, o, 0).mm(w).mm(w), A, W)
    (region,) = found.regions.regions
    assert [node.name for node in region.outputs] == ["mm_1"]
    assert found.analysis.conditions.text(region.condition) == "s0"


def test_a_path_that_comes_back_is_cut_in_two() -> None:
    def there_and_back(o: Tensor, grad: Tensor, w: Tensor) -> Tensor:
        first = gate(grad, o, 0).mm(w)
        between = gate(first, o, 1).cos()
        return first + between * gate(grad, o, 0)

    found = Found(there_and_back, A, W)
    assert _in_order(found)
    assert found.region_of("mm") is not found.region_of("mul")
    assert found.region_of("mm").condition == found.region_of("mul").condition


@settings(max_examples=150)
@given(programs(SITES))
def test_random_graphs_give_regions_in_an_order(program: Program) -> None:
    found = Found(program, A, B, W, V)
    assume(any(map(is_gate, found.graph.nodes)))
    assert _in_order(found)
    nodes = [node for region in found.regions.regions for node in region.nodes]
    assert len(set(nodes)) == len(nodes)
    assert not any(is_view(node) or is_creation(node) for node in nodes)


def _in_order(found: Found) -> bool:
    """Return whether each region can run as one, after all that it reads; raises ``CycleError`` if not."""
    unit: dict[fx.Node, Any] = {node: node for node in found.graph.nodes}
    for number, region in enumerate(found.regions.regions):
        unit.update(dict.fromkeys(region.nodes, number))
    reads: dict[Any, set[Any]] = {one: set() for one in unit.values()}
    for node in found.graph.nodes:
        if not _is_repeated(found, node):
            reads[unit[node]] |= {unit[source] for source in _computed_sources(found, node)} - {unit[node]}
    return bool(list(TopologicalSorter(reads).static_order()))


def _is_repeated(found: Found, node: fx.Node) -> bool:
    return is_view(node) or is_creation(node) or node in found.regions.open_gates


def _computed_sources(found: Found, node: fx.Node) -> Iterator[fx.Node]:
    """Yield what ``node`` reads, through the views that each region repeats for itself."""
    for source in node.all_input_nodes:
        if _is_repeated(found, source):
            yield from _computed_sources(found, source)
        else:
            yield source


def test_what_is_carried_comes_from_another_region() -> None:
    found = Found(lambda o, grad, w: gate(grad.mm(w), o, 0) + gate(w.mm(grad), o, 0, 1), A, W)
    inside = {node.name for node in found.region_of("add").nodes}
    carried = found.filler("add").carried
    assert carried
    assert not inside & {addend.name for addend, _ in carried}


def test_results_of_one_operator_stay_with_it() -> None:
    def norm_backward(o: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, rstd = x.mean(1, keepdim=True), x.abs().mean(1, keepdim=True)
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(grad, x, [4], mean, rstd, x[0], x[1], [True, True, False])
        return gate(dx, o, 0), gate(dw, o, 1)

    found = Found(norm_backward, A, W)
    region = found.region_of("native_layer_norm_backward")
    parts = [node for node in region.nodes if node.target is operator.getitem]
    assert len(parts) == 2
    assert set(parts) == set(region.outputs)
    assert found.analysis.conditions.text(region.condition) == "any of s0, s1"


def test_views_are_repeated_not_listed() -> None:
    found = Found(lambda o, grad, w: gate(grad, o, 0).t().reshape(2, 8).view(4, 4).mm(w.t()), A, W)
    listed = {name for names in found.names() for name in names}
    assert "mm" in listed
    assert not any(name.startswith(("t", "view", "reshape")) for name in listed)


def test_a_gate_that_its_readers_see_open_needs_no_node() -> None:
    found = Found(lambda o, grad, w: gate(grad, o, 0).mm(w), A, W)
    assert [node.name for node in found.regions.open_gates] == ["gate_backward"]


def test_a_gate_that_somebody_reads_while_it_is_shut_keeps_its_node() -> None:
    found = Found(lambda o, grad, w: gate(grad, o, 0).cos().mm(w), A, W)
    assert not found.regions.open_gates
    assert found.names() == [["gate_backward"]]


def _read_before_two_gates(o: Tensor, grad: Tensor, w: Tensor) -> Tensor:
    product = grad.mm(w)
    return gate(product, o, 0).cos() + gate(product, o, 1).cos()


@pytest.mark.parametrize(
    ("function", "name", "zero"),
    [
        pytest.param(lambda o, grad, w: gate(grad, o, 0).mm(w), "mm", True, id="an output of the graph"),
        pytest.param(
            lambda o, grad, w: gate(grad.mm(w), o, 0).mm(w).cos(), "mm_1", True, id="cos of a zero is no zero"
        ),
        pytest.param(lambda o, grad, w: gate(grad.mm(w), o, 0).cos(), "gate_backward", True, id="behind a gate"),
        pytest.param(
            lambda o, grad, w: gate(gate(grad, o, 0).mm(w).cos(), o, 1), "mm", True, id="read while it is zero"
        ),
        pytest.param(_read_before_two_gates, "mm", False, id="before two gates"),
        pytest.param(
            lambda o, grad, w: (x := gate(grad, o, 0).mm(w)).sum() + gate(x, o, 1).mm(w).sum(),
            "mm",
            False,
            id="read where it is not zero",
        ),
    ],
)
def test_zero_where_somebody_reads_it(function: Callable[..., Any], name: str, zero: bool) -> None:
    assert Found(function, A, W).filler(name).zero is zero


def test_a_sum_carries_what_is_left_of_it() -> None:
    found = Found(lambda o, a, b, w: gate(a.mm(w), o, 0) + gate(b.mm(w), o, 1), A, B, W)
    assert found.analysis.conditions.text(found.region_of("add").condition) == "s0 and s1"
    assert found.carried("add") == {"gate_backward": "s0", "gate_backward_1": "s1"}
    assert found.filler("add").zero


def test_a_sum_of_sums_carries_from_one_to_the_next() -> None:
    def sums(o: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return (gate(a, o, 0) + gate(b, o, 1)) + gate(w, o, 2)

    found = Found(sums, A, B, W)
    assert found.carried("add") == {"gate_backward": "s0", "gate_backward_1": "s1"}
    assert found.carried("add_1") == {"add": "any of s0, s1", "gate_backward_2": "s2"}
    assert found.region_of("add") is not found.region_of("add_1")


def test_a_sum_whose_one_side_is_never_zero_carries_that() -> None:
    found = Found(lambda o, a, b, w: b.mm(w) + gate(a, o, 0).mm(w), *WIDE[:3])
    assert found.carried("add") == {"mm": "always"}
    assert not found.filler("add").zero or found.analysis.live[_node(found, "add")] == found.analysis.conditions.true


def _node(found: Found, name: str) -> fx.Node:
    return next(node for node in found.graph.nodes if node.name == name)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        pytest.param(lambda o, a, b: a + b, True, id="two tensors"),
        pytest.param(lambda o, a, b: torch.add(a, b, alpha=2), False, id="weighted"),
        pytest.param(lambda o, a, b: a + 1, False, id="a number"),
        pytest.param(lambda o, a, b: a + b[:1], False, id="a row"),
        pytest.param(lambda o, a, b: a + b.t(), False, id="another memory order"),
        pytest.param(lambda o, a, b: a + b.float(), False, id="another type"),
        pytest.param(lambda o, a, b: a * b, False, id="a product"),
    ],
)
def test_what_is_a_plain_sum(function: Callable[..., Any], plain: bool) -> None:
    (result,) = trace(function, OPENS, A, B).graph.output_node().all_input_nodes
    assert is_plain_sum(result) is plain


def test_the_graph_is_not_changed() -> None:
    gm = trace(lambda o, grad, w: gate(grad, o, 0).mm(w), OPENS, A, W)
    before = str(gm.graph)
    find_regions(gm.graph, liveness(gm.graph, SITES))
    assert str(gm.graph) == before


def two_ways(o: Tensor, grad: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One product, and behind it a path for each of two sites that begins with something pointwise."""
    shared = grad.mm(w)
    return gate(shared * w.sin(), o, 0).mm(v), gate(shared * v, o, 1).mm(w)


def test_pointwise_nodes_run_whenever_what_they_read_does() -> None:
    found = Found(two_ways, A, W, V)
    region = found.region_of("mm")
    assert {node.name for node in region.nodes} >= {"mm", "mul", "mul_1"}
    assert found.analysis.conditions.text(region.condition) == "any of s0, s1"


def test_what_is_recomputed_from_saved_values_runs_with_who_reads_it() -> None:
    found = Found(two_ways, A, W, V)
    assert found.region_of("sin") is found.region_of("mul")


def test_products_run_under_their_own_condition() -> None:
    found = Found(two_ways, A, W, V)
    say = found.analysis.conditions.text
    assert {name: say(found.region_of(name).condition) for name in ("mm_1", "mm_2")} == {"mm_1": "s0", "mm_2": "s1"}


def test_a_sum_that_may_be_one_of_its_addends_runs_under_its_own_condition() -> None:
    def sum_of_two(o: Tensor, grad: Tensor, w: Tensor) -> Tensor:
        shared = grad.mm(w)
        return gate(shared + gate(shared.mm(w), o, 0), o, 1)

    found = Found(sum_of_two, A, W)
    assert found.analysis.conditions.text(found.region_of("add").condition) == "s0 and s1"
    assert found.carried("add") == {"mm": "s1"}


def test_wider_conditions_change_no_value() -> None:
    before = trace(two_ways, OPENS, A, W, V)
    assert_same_under_all_masks(before, predicated(before, SITES), SITES, (A, W, V))


def low_rank(o: Tensor, grad: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The gradient of what a layer reads: by its weight, if anybody below wants it, and by its adapter's factors."""
    down, up = w[:, :2], v[:2]
    return gate(grad.mm(w) + 2 * gate(grad, o, 1).mm(down).mm(up), o, 0).mm(w)


def test_an_addend_that_costs_less_than_a_branch_runs_with_its_sum() -> None:
    found = Found(low_rank, *WIDE[:3])
    say = found.analysis.conditions.text
    assert say(found.region_of("mm_1").condition) == "s0 and s1"
    assert found.filler("mm_1").zero
    assert found.region_of("mm_2") is found.region_of("mul") is found.region_of("add") is found.region_of("mm")
    assert say(found.region_of("mm").condition) == "s0"


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda o, a, w, v: a.mm(w) + gate(a, o, 0).mm(w).mm(v), id="a wide product"),
        pytest.param(
            lambda o, a, w, v: a.mm(w) + (p := gate(a, o, 0).mm(w[:, :2]).mm(v[:2])) + p.sin(), id="read twice"
        ),
        pytest.param(lambda o, a, w, v: a.mm(w) + gate(a, o, 0).mm(w[:, :2]).mm(v[:2]).div(w), id="0 / 0"),
    ],
)
def test_other_addends_run_under_their_own_condition(function: Callable[..., Any]) -> None:
    found = Found(function, *WIDE[:3])
    assert found.analysis.conditions.text(found.region_of("mm_2").condition) == "s0"


def test_an_addend_that_runs_with_its_sum_changes_no_value() -> None:
    values = WIDE[:3]
    before = trace(low_rank, OPENS, *values)
    assert_same_under_all_masks(before, predicated(before, SITES), SITES, values)
