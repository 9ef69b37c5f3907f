"""The rewritten backward gives the same values under every mask, and leaves out what nobody needs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from aten import COND, CountCalls, assert_same_under_all_masks, branches, count, gate, masks, predicated, trace
from hypothesis import assume, given, settings
from programs import Program, inputs, programs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skiplora_fx.gate import CARRY, EVALUATE_CONDITIONS, GATE_BACKWARD
from skiplora_fx.passes import find_regions, liveness, predicate_backward

SITES = 3
MM = torch.ops.aten.mm.default
OPENS = torch.ones(SITES, dtype=torch.bool)
A, B, W, V = inputs()


def is_tame(program: Program, values: tuple[Tensor, ...]) -> bool:
    """Return whether no mask makes the program overflow: infinity times a zero is no zero."""
    results = [result for mask in masks(SITES) for result in program(torch.tensor(mask), *values)]
    return all(result.abs().max() < 1e9 for result in results)


@settings(max_examples=100)
@given(programs(SITES))
def test_random_graphs_keep_their_values(program: Program) -> None:
    assume(is_tame(program, (A, B, W, V)))
    before = trace(program, OPENS, A, B, W, V)
    assume(count([before.graph], GATE_BACKWARD))
    assert_same_under_all_masks(before, predicated(before, SITES), SITES, (A, B, W, V))


@settings(max_examples=25)
@given(programs(SITES, steps=10))
def test_random_graphs_keep_their_values_at_another_size(program: Program) -> None:
    other = inputs(6)
    assume(is_tame(program, other))
    before = trace(program, OPENS, A, B, W, V, mode="symbolic")
    assume(count([before.graph], GATE_BACKWARD))
    assert_same_under_all_masks(before, predicated(before, SITES), SITES, other)


class _CheckConds(TorchDispatchMode):
    """Runs both branches of each cond and checks what Inductor will demand of them."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not COND:
            return func(*args, **(kwargs or {}))
        predicate, true, false, operands = args
        results = true(*operands), false(*operands)
        assert len(results[0]) == len(results[1])
        for one, other in zip(*results, strict=True):
            assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        for values in results:
            memory = [value.untyped_storage().data_ptr() for value in values]
            assert len(set(memory)) == len(memory), "two outputs share memory"
            taken = {value.untyped_storage().data_ptr() for value in operands if isinstance(value, Tensor)}
            assert not taken & set(memory), "an output is an operand"
        return results[0] if predicate else results[1]


@settings(max_examples=40)
@given(programs(SITES))
def test_branches_agree_in_layout_and_alias_nothing(program: Program) -> None:
    before = trace(program, OPENS, A, B, W, V)
    assume(count([before.graph], GATE_BACKWARD))
    after = predicated(before, SITES)
    for mask in ((True, False, True), (False, False, False)):
        with _CheckConds():
            after(torch.tensor(mask), A, B, W, V)


def chain(opens: Tensor, grad: Tensor, other: Tensor, weight: Tensor, other_weight: Tensor) -> tuple[Tensor, ...]:
    """Two adapters on two layers with residuals, as a backward meets them: the upper first."""
    upper = gate(grad, opens, 1)
    grads = [upper.mm(weight)]
    below = grad + grad.mm(other_weight) + upper.mm(weight).mm(other_weight)
    lower = gate(below, opens, 0)
    return (*grads, lower.mm(weight), lower.t().mm(weight))


def test_a_chain_of_adapters() -> None:
    before = trace(chain, OPENS, A, B, W, V)
    assert_same_under_all_masks(before, predicated(before, 2), 2, (A, B, W, V))


@pytest.mark.parametrize(("mask", "products"), [((0, 0), 0), ((0, 1), 1), ((1, 0), 3), ((1, 1), 6)])
def test_only_what_is_needed_is_executed(mask: tuple[int, int], products: int) -> None:
    values = inputs(size=40)
    after = predicated(trace(chain, OPENS, *values), 2)
    with CountCalls(MM) as counted:
        after(torch.tensor(mask, dtype=torch.bool), *values)
    assert counted.calls == products


def test_gates_are_gone_and_decisions_are_read_once() -> None:
    after = predicated(trace(chain, OPENS, A, B, W, V), 2)
    graphs = [after.graph, *(branch.graph for pair in branches(after) for branch in pair)]
    assert count(graphs, GATE_BACKWARD) == 0
    assert count(graphs, EVALUATE_CONDITIONS) == 1
    assert count([after.graph], MM) == 0


def test_only_an_uninitialised_filler_may_stay_unread() -> None:
    def demanded_by_a_gate(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        inner = gate(grad.mm(weight).cos(), opens, 0)
        return inner.mm(weight), gate(grad.mm(weight), opens, 1)

    before = trace(demanded_by_a_gate, OPENS, A, W)
    assert_same_under_all_masks(before, predicated(before, 2), 2, (A, W))


def test_a_sum_carries_the_side_that_is_left() -> None:
    def joined(opens: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
        return gate(grad.mm(weight), opens, 0) + gate(weight.mm(grad), opens, 1)

    before = trace(joined, OPENS, A, W)
    after = predicated(before, 2)
    assert count([false.graph for _, false in branches(after)], CARRY) == 1
    assert_same_under_all_masks(before, after, 2, (A, W))


def test_a_sum_of_sums_carries_through_both() -> None:
    def joined(opens: Tensor, grad: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        left = gate(grad, opens, 0) + gate(other, opens, 1)
        right = gate(grad.mm(weight), opens, 2) + gate(other.mm(weight), opens, 1)
        return (left + right).mm(weight)

    before = trace(joined, OPENS, A, B, W)
    assert_same_under_all_masks(before, predicated(before, 3), 3, (A, B, W))


def test_operators_with_several_results() -> None:
    def norm_backward(opens: Tensor, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        mean, rstd = x.mean(1, keepdim=True), x.abs().mean(1, keepdim=True)
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            gate(grad, opens, 0), x, [4], mean, rstd, weight[0], weight[1], [True, True, False]
        )
        return gate(dx, opens, 1).mm(weight), dw

    before = trace(norm_backward, OPENS, A, B, W)
    assert_same_under_all_masks(before, predicated(before, 2), 2, (A, B, W))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda x: x.permute(2, 0, 1).mul(2.0), id="permuted and dense"),
        pytest.param(lambda x: x.permute(2, 0, 1), id="a view"),
        pytest.param(lambda x: x[:, ::2].mul(2.0), id="from a slice with steps"),
        pytest.param(lambda x: x.to(memory_format=torch.preserve_format).transpose(0, 2), id="transposed"),
        pytest.param(lambda x: x[:1].expand(3, -1, -1), id="expanded"),
    ],
)
def test_outputs_keep_their_strides(layout: Any) -> None:
    def function(opens: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return layout(gate(grad, opens, 0).cos() * gate(grad, opens, 1)), gate(layout(grad.sin()), opens, 0)

    grad = torch.randn(2, 3, 5, dtype=torch.float64)
    before = trace(function, OPENS, grad)
    assert_same_under_all_masks(before, predicated(before, 2), 2, (grad,))


@pytest.mark.parametrize("sizes", [(2, 7), (5, 3)])
def test_sizes_that_are_known_only_when_it_runs(sizes: tuple[int, int]) -> None:
    def function(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        batch, length, width = grad.shape
        flat = gate(grad, opens, 0).reshape(batch * length, width)
        back = flat.mm(weight).view(batch, length, width)
        return back, flat.t().mm(flat), gate(back.transpose(0, 1).contiguous() * 2, opens, 1), flat.sum()

    before = trace(function, OPENS, torch.randn(4, 6, 8), torch.randn(8, 8), mode="symbolic")
    values = torch.randn(*sizes, 8, dtype=torch.float32), torch.randn(8, 8)
    assert_same_under_all_masks(before, predicated(before, 2), 2, values)


def test_outputs_that_are_none_or_doubled() -> None:
    def function(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        product = gate(grad, opens, 0).mm(weight)
        return None, product, product, grad

    before = trace(function, OPENS, A, W)
    assert_same_under_all_masks(before, predicated(before, 1), 1, (A, W))


def test_what_is_behind_a_gate_of_two_sites_runs_if_either_is_open() -> None:
    after = predicated(trace(lambda opens, grad, weight: gate(grad, opens, 0, 2).mm(weight), OPENS, A, W), 3)
    for mask in masks(3):
        with CountCalls(MM) as counted:
            after(torch.tensor(mask), A, W)
        assert counted.calls == (mask[0] or mask[2])


def test_conditions_are_freed_without_the_cyclic_collector() -> None:
    gm = trace(chain, OPENS, A, B, W, V)
    gc.collect()
    gc.disable()
    try:
        analysis = liveness(gm.graph, 2)
        diagrams = weakref.ref(analysis.conditions.true.bdd)
        predicate_backward(gm.graph, analysis, find_regions(gm.graph, analysis))
        del analysis
        assert diagrams() is None
    finally:
        gc.enable()
