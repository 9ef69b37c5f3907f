"""Backward graphs for the tests of single passes: traced from functions, rewritten, run under every mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from skiplora_fx.gate import CARRY
from skiplora_fx.passes import find_regions, liveness, predicate_backward, share_branches
from skiplora_fx.passes.conditions import Condition
from skiplora_fx.passes.operators import COND as COND


def gate(grad: Tensor, opens: Tensor, *sites: int) -> Tensor:
    """Return the gradient behind a gate, as ``fold_gates`` leaves it in a backward."""
    return torch.ops.skiplora.gate_backward(grad, opens, list(sites))


def trace(function: Callable[..., Any], *inputs: Any, mode: str = "fake") -> fx.GraphModule:
    """Return the aten graph of ``function``; ``mode="symbolic"`` leaves its sizes open."""
    gm = make_fx(function, tracing_mode=mode)(*inputs)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def predicated(gm: fx.GraphModule, sites: int) -> fx.GraphModule:
    """Return a predicated copy of a backward graph in which memory that nobody may read holds NaN."""
    copy = fx.GraphModule(gm, copied(gm.graph))
    analysis = liveness(copy.graph, sites)
    predicate_backward(copy.graph, analysis, find_regions(copy.graph, analysis))
    share_branches(copy.graph)
    copy.recompile()
    poison(copy)
    return copy


def copied(graph: fx.Graph) -> fx.Graph:
    """Return a copy of ``graph`` that shares its nodes' meta values."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def masks(sites: int) -> Iterator[tuple[bool, ...]]:
    """Yield every combination of decisions."""
    return itertools.product((True, False), repeat=sites)


def holds(condition: Condition, mask: Sequence[bool]) -> bool:
    """Return whether ``condition`` is true under the decisions ``mask``."""
    while condition.var is not None:
        branch = condition.high if mask[int(condition.var[1:])] else condition.low
        condition = ~branch if condition.negated else branch
    return not condition.negated


def assert_same_under_all_masks(
    before: fx.GraphModule, after: fx.GraphModule, sites: int, inputs: Sequence[Any], *, rtol: float = 0.0
) -> None:
    """Compare two graphs whose first input is the vector of decisions, values and strides."""
    for mask in masks(sites):
        expected = before(torch.tensor(mask), *inputs)
        found = after(torch.tensor(mask), *inputs)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=0, check_stride=True, msg=_under(mask))


def _under(mask: tuple[bool, ...]) -> Callable[[str], str]:
    return lambda message: f"mask {mask}: {message}"


def branches(gm: fx.GraphModule) -> list[tuple[fx.GraphModule, fx.GraphModule]]:
    """Return the true and the false branch of each cond, in the order in which they run."""
    conds = gm.graph.find_nodes(op="call_function", target=COND)
    return [(getattr(gm, cond.args[1].target), getattr(gm, cond.args[2].target)) for cond in conds]


def count(graphs: Iterable[fx.Graph], target: object) -> int:
    """Return how many nodes of ``graphs`` call ``target``."""
    return sum(node.target is target for graph in graphs for node in graph.nodes)


def poison(gm: fx.GraphModule) -> int:
    """Fill with NaN what the false branches leave uninitialised, so that no garbage can pass for a gradient.

    Returns:
        The number of places.
    """
    places = 0
    for _, false in branches(gm):
        for node in false.graph.nodes:
            if node.target is torch.ops.aten.empty_strided.default:
                node.target, places = _nan_strided, places + 1
            elif node.target is CARRY and not node.args[3]:
                node.target, places = _carry_or_nan, places + 1
        false.recompile()
    return places


def _nan_strided(size: Any, stride: Any, **options: Any) -> Tensor:
    return _filled_with_garbage(torch.empty_strided(size, stride, **options))


def _carry_or_nan(operands: list[Tensor], conditions: Tensor, which: list[int], zero: bool) -> Tensor:
    if any(conditions[condition] for condition in which):
        return torch.ops.skiplora.carry(operands, conditions, which, zero)
    return _filled_with_garbage(torch.empty_like(operands[0]))


def _filled_with_garbage(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan if tensor.is_floating_point() else 113)


class CountCalls(TorchDispatchMode):
    """Counts the FLOPs, and the calls of some operators, that are really made, inside the branches of a cond too."""

    supports_higher_order_operators = True

    def __init__(self, *targets: Any) -> None:
        super().__init__()
        self._targets = targets
        self.calls = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is COND:
            predicate, true, false, operands = args
            with self:
                return (true if predicate else false)(*operands)
        result = func(*args, **(kwargs or {}))
        self.calls += func in self._targets
        formula = flop_registry.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
