"""Regions that are alike are compiled once, and nothing else is taken for alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aten import assert_same_under_all_masks, branches, gate, predicated, trace
from torch import Tensor, fx, nn

from skiplora_fx.passes import share_branches
from skiplora_fx.passes.alike import structure

GRAD, WEIGHT = torch.randn(4, 4), torch.randn(4, 4)


def layers(count: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return the backward of ``count`` layers with a residual each, one gate on each layer."""

    def backward(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        gradients = []
        for site in reversed(range(count)):
            through = gate(grad, opens, site)
            gradients.append(through.t().mm(weight))
            grad = grad.mm(weight).sin() + through.mm(weight).cos() * grad
        return tuple(gradients)

    return backward


def distinct(gm: fx.GraphModule) -> int:
    return len({id(branch) for pair in branches(gm) for branch in pair})


def test_the_number_of_branches_does_not_grow_with_the_layers() -> None:
    three, five = (predicated(trace(layers(n), torch.ones(n, dtype=torch.bool), GRAD, WEIGHT), n) for n in (3, 5))
    assert len(branches(five)) > len(branches(three))
    assert distinct(five) == distinct(three)


def test_shared_branches_keep_the_values_under_every_mask() -> None:
    before = trace(layers(4), torch.ones(4, dtype=torch.bool), GRAD, WEIGHT)
    after = predicated(before, 4)
    assert distinct(after) < 2 * len(branches(after))
    assert_same_under_all_masks(before, after, 4, (GRAD, WEIGHT))


def test_what_is_shared_is_gone_from_the_module() -> None:
    after = predicated(trace(layers(4), torch.ones(4, dtype=torch.bool), GRAD, WEIGHT), 4)
    assert len([name for name, _ in after.named_children() if "region" in name]) == distinct(after)


def of_saved(one: Tensor, other: Tensor) -> fx.GraphModule:
    """Return a predicated backward of two regions that are alike, each of which reads one value that was saved."""

    def backward(opens: Tensor, grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        return tuple(gate(grad, opens, site).mm(value) for site, value in enumerate(saved))

    return predicated(trace(backward, torch.ones(2, dtype=torch.bool), GRAD, one, other), 2)


@pytest.mark.parametrize(("offset", "branches"), [(0, 2), (4, 2), (1, 4), (6, 4)])
def test_what_is_aligned_shares_no_branch_with_what_is_not(offset: int, branches: int) -> None:
    assert distinct(of_saved(torch.randn(4, 4), torch.randn(16 + offset)[offset:].view(4, 4))) == branches


def test_where_it_begins_is_not_guarded_on() -> None:
    def reading(saved: Tensor, start: int) -> Tensor:
        return same(saved[start : start + 3])

    graph = trace(reading, torch.randn(12, 3), 4, mode="symbolic").graph
    offset = next(node.meta["val"].storage_offset() for node in graph.nodes if "slice" in node.name)
    assert isinstance(offset, torch.SymInt)
    guards = offset.node.shape_env.guards
    before = len(guards)
    structure(graph, {})
    assert len(guards) == before


def same(x: Tensor) -> Tensor:
    return x.mm(x) + 1


DIFFERENT: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "operator": (lambda x: x.mm(x) - 1, GRAD),
    "constant": (lambda x: x.mm(x) + 2, GRAD),
    "type of a constant": (lambda x: x.mm(x) + 1.0, GRAD),
    "order of arguments": (lambda x: 1 + x.mm(x.t()), GRAD),
    "size": (same, torch.randn(5, 5)),
    "strides": (same, torch.randn(4, 4).t()),
    "dtype": (same, torch.randn(4, 4).double()),
    "alignment": (same, torch.randn(17)[1:].view(4, 4)),
    "shared result": (lambda x: (y := x.mm(x)) + y, GRAD),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_not_alike(name: str) -> None:
    function, argument = DIFFERENT[name]
    assert structure(trace(same, GRAD).graph, {}) != structure(trace(function, argument).graph, {})


def test_names_do_not_matter() -> None:
    renamed = trace(same, GRAD)
    for number, node in enumerate(renamed.graph.nodes):
        node.name = f"other_{number}"
    assert structure(trace(same, GRAD).graph, {}) == structure(renamed.graph, {})


def test_submodules_count_by_what_they_compute() -> None:
    def reading(name: str) -> fx.Graph:
        graph = fx.Graph(nn.Module())
        graph.output(graph.get_attr(name))
        return graph

    same_inside = {"one": "the same", "two": "the same", "three": "another"}
    one, two, three = (structure(reading(name), same_inside) for name in same_inside)
    assert one == two != three


def test_a_graph_without_conds_stays_as_it_is() -> None:
    gm = trace(same, GRAD)
    share_branches(gm.graph)
    torch.testing.assert_close(gm(GRAD), same(GRAD))
