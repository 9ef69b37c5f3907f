"""Take the forward gates out of the joint graph again, and leave their backward twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from .._torch_compat import save_not_recompute
from ..errors import InternalError
from ..gate import DECIDE, GATE, GATE_BACKWARD, HOLD


@dataclass(frozen=True)
class FoldedGates:
    """What ``fold_gates`` did.

    Attributes:
        forward: for each gate folded the indices of its sites.
        backward: the same for each gate that is left in the backward.
    """

    forward: tuple[tuple[int, ...], ...]
    backward: tuple[tuple[int, ...], ...]


def fold_gates(
    graph: fx.Graph,
    gates: Sequence[tuple[int, ...]],
    inputs: Sequence[Sequence[int]],
    optional: Collection[tuple[int, ...]] = (),
) -> FoldedGates:
    """Replace each forward gate by its input, and have each backward gate read the vector of decisions.

    In:
        AOTAutograd's joint graph (or, without a backward, the forward), aten-level, before the partitioner;
        ``gates``, the gates that ``insert_gates`` wrote, each as the indices of its sites; ``inputs``, for
        each gate the positions among the graph's inputs of parameters whose gradients show that it must have a twin;
        which of them are ``optional``: a border's is gone if only sizes were read of what it gates.
    Out:
        The same graph, edited. No ``gate`` is left, so the forward makes no copy. Each
        ``gate_backward(grad, opens, sites)`` reads one vector, ``opens = ~(ratios < thresholds)``, or
        ``thresholds == 0`` where decisions were taken before the forward. The partitioner is told to save it:
        recomputing it would compute every ratio again in the backward.
    Terms:
        *twin*: the ``gate_backward`` that autograd wrote for a ``gate``. A gate has none only where no gradient reaches
        its adapter at all, because the loss does not depend on it, or, where an input is gated, if that wants none.

    Raises:
        InternalError: gates and twins do not match those inserted. Training on would give wrong gradients.
    """
    decisions = _fold_decisions(graph)
    forward = tuple(_fold_forward(node) for node in _nodes(graph, GATE))
    present = [gate for gate in gates if gate in forward or gate not in optional]
    _check_same(present, forward, "gates inserted", "gates in the joint graph")
    backward = tuple(_relink(node, decisions) for node in _nodes(graph, GATE_BACKWARD))
    if _has_backward(graph):
        shown_by = zip(gates, inputs, strict=True)
        _check_twins(graph, [(gate, own) for gate, own in shown_by if gate in present], backward)
    graph.eliminate_dead_code()
    return FoldedGates(forward, backward)


def check_consumed(graph: fx.Graph, folded: FoldedGates) -> None:
    """Raise if a backward graph does not hold exactly the gates that ``fold_gates`` left for it.

    Any other graph, which takes no tangents, is not looked at.

    Raises:
        InternalError: the partitioner lost a gate, or put one into the backward twice.
    """
    if _has_backward(graph):
        found = [tuple(gate.args[2]) for gate in _nodes(graph, GATE_BACKWARD)]
        _check_same(folded.backward, found, "gates left for the backward", "gates in the backward graph")


def _nodes(graph: fx.Graph, target: object) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function" and node.target is target]


def _fold_decisions(graph: fx.Graph) -> fx.Node:
    found = [*_nodes(graph, DECIDE), *_nodes(graph, HOLD)]
    if len(found) != 1:
        raise InternalError(f"expected one skiplora.decide or hold in the joint graph, found {len(found)}")
    (decide,) = found
    with graph.inserting_before(decide):
        opens = _decisions(graph, decide)
    save_not_recompute(opens)
    decide.replace_all_uses_with(opens)
    graph.erase_node(decide)
    return opens


def _decisions(graph: fx.Graph, decide: fx.Node) -> fx.Node:
    """Write the decisions in operators that Inductor fuses."""
    if decide.target is HOLD:
        written = [graph.call_function(torch.ops.aten.eq.Scalar, (decide.args[0], 0))]
    else:
        written = [graph.call_function(torch.ops.aten.lt.Tensor, decide.args)]
        written.append(graph.call_function(torch.ops.aten.logical_not.default, (written[0],)))
    for node in written:
        node.meta = dict(decide.meta)
    return written[-1]


def _fold_forward(gate: fx.Node) -> tuple[int, ...]:
    source, _, sites = gate.args
    assert isinstance(source, fx.Node)
    gate.replace_all_uses_with(source)
    gate.graph.erase_node(gate)
    return tuple(sites)


def _relink(twin: fx.Node, decisions: fx.Node) -> tuple[int, ...]:
    twin.update_arg(1, decisions)
    twin.meta.pop("eager_input_vals", None)  # Inductor would ask for the strides of what it took before
    return tuple(twin.args[2])


def _has_backward(graph: fx.Graph) -> bool:
    return any("tangents" in str(node.target) for node in graph.nodes if node.op == "placeholder")


def _check_twins(
    graph: fx.Graph,
    gates: Sequence[tuple[tuple[int, ...], Sequence[int]]],
    backward: Sequence[tuple[int, ...]],
) -> None:
    gradients = _gradients(graph)
    needed = [gate for gate, own in gates if _reached(gradients, own)]
    others = (Counter(gate for gate, _ in gates) - Counter(needed)) & (Counter(backward) - Counter(needed))
    _check_same([*needed, *others.elements()], backward, "gates with a gradient", "gates in the backward")


def _gradients(graph: fx.Graph) -> list[object]:
    """Return the gradient of each input of the joint graph, in the order of the inputs."""
    count = sum(node.op == "placeholder" and "tangents" not in str(node.target) for node in graph.nodes)
    outputs = graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    return list(outputs)[-count:]


def _reached(gradients: list[object], positions: Sequence[int]) -> bool:
    return any(gradients[position] is not None for position in positions)


def _check_same(
    expected: Sequence[tuple[int, ...]], found: Sequence[tuple[int, ...]], expected_name: str, found_name: str
) -> None:
    missing, surplus = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    if missing or surplus:
        raise InternalError(
            f"{expected_name}: {len(expected)}, {found_name}: {len(found)}; "
            f"missing sites {sorted(missing.elements())}, surplus sites {sorted(surplus.elements())}. "
            "This is a bug of skiplora_fx, or a torch that it does not know: please report it. "
            'Until it is mended, backend="inductor" trains the same model without skipping.'
        )
