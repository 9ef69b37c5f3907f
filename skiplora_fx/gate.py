"""The gate: an identity in the forward whose backward lets the gradient through, or stops it.

Eight operators, all but the last functional (no mutation, no aliasing), registered under ``torch.ops.skiplora``:

===========================  ==========================================================================
``gate``                     what ``insert_gates`` writes into a graph: ``x if open else x.detach()``
``gate_backward``            its derivative: the gradient where the gate is open, zeros where it is shut
``decide``                   all decisions of a graph at once, ``~(ratios < thresholds)``
``hold``                     the same where they were taken before the forward, ``thresholds == 0``
``evaluate_conditions``      which regions of a predicated backward run, from those decisions
``carry``                    what an addition leaves when one of its sides was never computed
``release``                  nothing, as the last to read what a region took
``let_go``                   memory given back of what the forward saved for regions that will not run
===========================  ==========================================================================

Run as they are they already give exact gradients, only nothing is saved: that is their eager meaning,
which the passes keep while they take the operators away again.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ._torch_compat import has_side_effect
from .errors import UsageError
from .host_copy import copy_of
from .stand_in import let_storage_go

# Storages of the decisions of forwards that have given memory back, by ``let_go``.
_gave_back: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()


@torch.library.custom_op("skiplora::gate", mutates_args=())
def gate(x: Tensor, open: Tensor, sites: Sequence[int]) -> Tensor:
    """Return ``x``; in the backward its gradient passes if ``open``, and is zero if not.

    Args:
        x: any shape, floating dtype, any device.
        open: 0-d bool, on the device of ``x``.
        sites: indices of the sites that this gate belongs to (more than one where adapters are chained).
    """
    return x.clone()


@gate.register_fake
def _(x: Tensor, open: Tensor, sites: Sequence[int]) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("skiplora::gate_backward", mutates_args=())
def gate_backward(grad: Tensor, open: Tensor, sites: Sequence[int]) -> Tensor:
    """Return ``grad`` if the gate is open, zeros of its shape if it is shut.

    Args:
        grad: gradient of the gate's output.
        open: 0-d bool; or, once ``fold_gates`` has run, the bool vector of all decisions, in which case
            the gate is open if any of ``sites`` is.
        sites: as in :func:`gate`.
    """
    if open.untyped_storage() in _gave_back:
        raise UsageError(
            "the forward has given back what a backward with skipped gates does not read, and this backward would read "
            "it, as it was not compiled by the skiplora backend. Compiled autograd does that: set "
            'disable_passes=["release_saved"], or decision="current".'
        )
    flag = open if open.dim() == 0 else open[list(sites)].any()
    return torch.where(flag, grad, torch.zeros((), dtype=grad.dtype, device=grad.device))


@gate_backward.register_fake
def _(grad: Tensor, open: Tensor, sites: Sequence[int]) -> Tensor:
    return torch.empty_like(grad)


def _save_decision(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    _, open, sites = inputs
    ctx.save_for_backward(open)
    ctx.sites = sites


def _pass_or_stop(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (open,) = ctx.saved_tensors
    return torch.ops.skiplora.gate_backward(grad, open, ctx.sites), None, None


gate.register_autograd(_pass_or_stop, setup_context=_save_decision)


@torch.library.custom_op("skiplora::decide", mutates_args=())
def decide(ratios: Tensor, thresholds: Tensor) -> Tensor:
    """Return ``~(ratios < thresholds)``: bool ``[n]``, True where the gate is open.

    Written so, and not ``ratios >= thresholds``, so that a NaN ratio opens its gate.

    Args:
        ratios: float32 ``[n]``, ``M = ||Δh||₂ / ||h||₂`` of each site (SkipLoRA, the skip criterion).
        thresholds: float32 ``[n]``, τ of each site.
    """
    return ~(ratios < thresholds)


@decide.register_fake
def _(ratios: Tensor, thresholds: Tensor) -> Tensor:
    return torch.empty_like(ratios, dtype=torch.bool)


@torch.library.custom_op("skiplora::hold", mutates_args=())
def hold(thresholds: Tensor) -> Tensor:
    """Return ``thresholds == 0``: bool ``[n]``, True where the gate is open, whatever the ratios are.

    Args:
        thresholds: float32 ``[n]``, 0 or infinite, on the CPU: so are the decisions, and nobody waits for a device.
    """
    return thresholds == 0


@hold.register_fake
def _(thresholds: Tensor) -> Tensor:
    return torch.empty_like(thresholds, dtype=torch.bool)


# The two that run once for each backward, or oftener, are defined without custom_op, whose every call goes through
# several layers of Python; and numbers travel as text, which costs nothing to hand over and is parsed once.
torch.library.define("skiplora::evaluate_conditions", "(Tensor opens, str table, str roots) -> Tensor")
torch.library.define("skiplora::carry", "(Tensor[] operands, Tensor conditions, int[] which, bool zero) -> Tensor")


@torch.library.impl("skiplora::evaluate_conditions", "CompositeExplicitAutograd")
def evaluate_conditions(opens: Tensor, table: str, roots: str) -> Tensor:
    """Evaluate every condition of a predicated backward, on the host.

    The decisions are read from the copy that was begun after their forward, so that no work is waited for that was
    queued since; where there is none, as of a forward that is repeated for its backward, they are copied now.

    The conditions are Boolean functions of the decisions, given as one shared binary decision diagram
    (Bryant, "Graph-Based Algorithms for Boolean Function Manipulation", 1986), children before parents.

    Args:
        opens: bool ``[n]``, any device.
        table: three integers for each diagram node ``k``: the decision it tests, and the nodes that
            follow when that is False and True. Nodes 0 and 1 are the constants and have no row, so
            row ``r`` is node ``r + 2``.
        roots: the node of each condition.

    Returns:
        bool ``[len(roots)]`` on the CPU, where reading one of them does not wait for a GPU.
    """
    copy = copy_of(opens)
    decisions = opens.tolist() if copy is None else copy.tolist()
    values = [False, True]
    for tested, low, high in _rows(table):
        values.append(values[high] if decisions[tested] else values[low])
    return torch.tensor([values[root] for root in _numbers(roots)], dtype=torch.bool)


@torch.library.register_fake("skiplora::evaluate_conditions")
def _(opens: Tensor, table: str, roots: str) -> Tensor:
    return torch.empty(len(_numbers(roots)), dtype=torch.bool, device="cpu")


@lru_cache(maxsize=1024)
def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


@lru_cache(maxsize=1024)
def _rows(text: str) -> tuple[tuple[int, int, int], ...]:
    numbers = _numbers(text)
    return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


@torch.library.impl("skiplora::carry", "CompositeExplicitAutograd")
def carry(operands: Sequence[Tensor], conditions: Tensor, which: Sequence[int], zero: bool) -> Tensor:
    """Return what an addition is worth when not all of its operands were computed.

    Args:
        operands: the addends, all of one shape, dtype, device and stride.
        conditions: bool vector on the CPU, from :func:`evaluate_conditions`.
        which: for each operand the condition under which it holds a value that is not zero.
        zero: whether the result is read when no operand holds one; if so it is zeros, else uninitialised.

    Returns:
        A new tensor: a copy of the first operand whose condition holds.
    """
    for operand, condition in zip(operands, which, strict=True):
        if conditions[condition]:
            return operand.clone(memory_format=torch.preserve_format)
    return torch.zeros_like(operands[0]) if zero else torch.empty_like(operands[0])


@torch.library.register_fake("skiplora::carry")
def _(operands: Sequence[Tensor], conditions: Tensor, which: Sequence[int], zero: bool) -> Tensor:
    return torch.empty_like(operands[0])


torch.library.define("skiplora::release", "(Tensor[] values, Tensor after) -> ()")


@torch.library.impl("skiplora::release", "CompositeExplicitAutograd")
def release(values: Sequence[Tensor], after: Tensor) -> None:
    """Do nothing, as the last to read ``values``, once ``after`` has been computed."""


@torch.library.register_fake("skiplora::release")
def _(values: Sequence[Tensor], after: Tensor) -> None:
    pass


# Declared to write into the values, so that whoever reads them does so before; and into what is computed next, so that
# Inductor, which orders a graph for its peak and knows of nothing that is given back, does not leave it for the end.
torch.library.define(
    "skiplora::let_go",
    "(Tensor(a!)[] values, Tensor read, Tensor opens, int[] which, int size, Tensor(b!)[] next, Tensor[] after) -> ()",
)


@torch.library.impl("skiplora::let_go", "CompositeExplicitAutograd")
def let_go(
    values: Sequence[Tensor],
    read: Tensor,
    opens: Tensor,
    which: Sequence[int],
    size: int,
    next: Sequence[Tensor],
    after: Sequence[Tensor],
) -> None:
    """Have each value that nobody will read let go of its storage, as :func:`~.stand_in.let_storage_go` does.

    Args:
        values: what the forward saves for the backward.
        read: bool vector on the CPU, from :func:`evaluate_conditions`.
        opens: the decisions, by which a backward that was not predicated knows that it may not run.
        which: for each value the condition under which the backward reads it.
        size: of the largest such value of the graph, bytes.
        next: what is computed before, and read behind this; nothing is done to it.
        after: what is computed from the values, and has to be before they go; nothing is done to it.
    """
    conditions = read.tolist()
    for value, condition in zip(values, which, strict=True):
        if not conditions[condition]:
            let_storage_go(value, size)
            _gave_back.add(opens.untyped_storage())


@torch.library.register_fake("skiplora::let_go")
def _(*given: object) -> None:
    pass


GATE = torch.ops.skiplora.gate.default
GATE_BACKWARD = torch.ops.skiplora.gate_backward.default
HOLD = torch.ops.skiplora.hold.default
DECIDE = torch.ops.skiplora.decide.default
EVALUATE_CONDITIONS = torch.ops.skiplora.evaluate_conditions.default
CARRY = torch.ops.skiplora.carry.default
RELEASE = torch.ops.skiplora.release.default
LET_GO = torch.ops.skiplora.let_go.default
has_side_effect(RELEASE)
has_side_effect(LET_GO)
