"""The forward loses its gates; the backward keeps a twin for each, or the compile stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aten import count
from capture import QuickBackend
from lora_modules import Around, Checkpointed, Linear, batch
from torch import Tensor, fx, nn

from skiplora_fx.errors import InternalError
from skiplora_fx.gate import DECIDE, GATE, GATE_BACKWARD
from skiplora_fx.passes import FoldedGates, Pipeline, fold_gates
from skiplora_fx.passes.fold_gates import check_consumed

aten = torch.ops.aten


def folded(model: nn.Module, scope: str = "adapter") -> fx.Graph:
    backend = QuickBackend(scope)
    torch.compile(model, backend=backend)(batch().requires_grad_())
    return backend.only.stages["fold_gates", "joint"]


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("build", [Linear, Checkpointed])
def test_the_forward_is_free_of_gates(build: Callable[[], nn.Module], scope: str) -> None:
    graph = folded(build(), scope)
    sites = 1 if build is Linear else 2
    assert count([graph], GATE) == count([graph], DECIDE) == 0
    assert count([graph], GATE_BACKWARD) == sites
    copies = graph.find_nodes(op="call_function", target=aten.clone.default)
    assert all(copy.meta["val"].numel() <= sites for copy in copies), "only ratios may be copied"


@pytest.mark.parametrize("build", [Linear, Checkpointed])
def test_twins_read_one_vector_that_is_saved(build: Callable[[], nn.Module]) -> None:
    graph = folded(build())
    twins = graph.find_nodes(op="call_function", target=GATE_BACKWARD)
    (opens,) = {twin.args[1] for twin in twins}
    assert opens.target is aten.logical_not.default
    assert opens.meta["val"].dtype is torch.bool
    assert opens.meta["val"].shape == (len(twins),)
    assert opens.meta["recompute"] is torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE
    assert sorted(site for twin in twins for site in twin.args[2]) == list(range(len(twins)))


def test_the_backward_does_not_compute_a_norm_again() -> None:
    backend = QuickBackend()
    model = Checkpointed()
    torch.compile(model, backend=backend)(batch().requires_grad_()).sum().backward()
    backward = backend.only.stages["backward", "backward"]
    assert count([backward], aten.lt.Tensor) == count([backward], aten.stack.default) == 0
    assert count([backward], aten.div.Tensor) == 0


def joint(gates: int = 1, twins: int = 1, decisions: int = 1, adapter_has_gradient: bool = True) -> fx.Graph:
    """Return a joint graph of one adapter, with so many of each operator."""
    graph = fx.Graph()
    adapter, ratios, thresholds = (graph.placeholder(f"primals_{number}") for number in (1, 2, 3))
    tangent = graph.placeholder("tangents_1")
    opens = [graph.call_function(DECIDE, (ratios, thresholds)) for _ in range(decisions)]
    decision = graph.call_function(aten.select.int, (ratios, 0, 0))
    output = adapter
    for _ in range(gates):
        output = graph.call_function(GATE, (output, decision, [0]))
    gradient = tangent
    for _ in range(twins):
        gradient = graph.call_function(GATE_BACKWARD, (gradient, decision, [0]))
    outputs = (output, *opens)
    graph.output((*outputs, gradient if adapter_has_gradient else None, None, None))
    return graph


def test_one_of_each_is_right() -> None:
    graph = joint()
    result = fold_gates(graph, [(0,)], [(0,)])
    assert (result.forward, result.backward) == (((0,),), ((0,),))
    graph.lint()
    assert count([graph], GATE) == 0


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        pytest.param(joint(gates=0), r"in the joint graph: 0; missing sites \[\(0,\)\]", id="a gate is missing"),
        pytest.param(joint(gates=2), r"in the joint graph: 2; .* surplus sites \[\(0,\)\]", id="a gate too many"),
        pytest.param(joint(twins=0), r"gates with a gradient: 1, gates in the backward: 0", id="a twin is missing"),
        pytest.param(joint(twins=2), r"gates with a gradient: 1, gates in the backward: 2", id="a twin too many"),
        pytest.param(joint(decisions=0), r"decide or hold in the joint graph, found 0", id="no decision"),
        pytest.param(joint(decisions=2), r"decide or hold in the joint graph, found 2", id="two decisions"),
    ],
)
def test_what_does_not_match_stops_the_compile(graph: fx.Graph, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        fold_gates(graph, [(0,)], [(0,)])


def backward(*gates: tuple[int, ...], takes: str = "tangents_1") -> fx.Graph:
    """Return a backward graph with these gates."""
    graph = fx.Graph()
    opens, gradient = graph.placeholder("opens"), graph.placeholder(takes)
    for sites in gates:
        gradient = graph.call_function(GATE_BACKWARD, (gradient, opens, list(sites)))
    graph.output((gradient,))
    return graph


def test_a_backward_with_the_gates_that_were_left_for_it_is_right() -> None:
    check_consumed(backward((0,), (1, 2)), FoldedGates(((0,), (1, 2)), ((1, 2), (0,))))


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        pytest.param([], r"for the backward: 1, gates in the backward graph: 0; missing sites \[\(0,\)\]", id="lost"),
        pytest.param([(0,), (0,)], r"gates in the backward graph: 2; .* surplus sites \[\(0,\)\]", id="twice"),
        pytest.param([(1,)], r"missing sites \[\(0,\)\], surplus sites \[\(1,\)\]", id="another's"),
    ],
)
def test_a_backward_with_other_gates_stops_the_compile(gates: list[tuple[int, ...]], message: str) -> None:
    pipeline = Pipeline("adapter")
    pipeline.folded = FoldedGates(((0,),), ((0,),))
    with pytest.raises(InternalError, match=message):
        pipeline.rewrite_backward(backward(*gates))


def test_a_forward_graph_is_not_asked_for_gates() -> None:
    check_consumed(backward(takes="primals_1"), FoldedGates(((0,),), ((0,),)))


def test_an_adapter_that_the_loss_does_not_depend_on_has_no_twin() -> None:
    result = fold_gates(joint(twins=0, adapter_has_gradient=False), [(0,)], [(0,)])
    assert result.backward == ()


def test_an_adapter_without_gradient_whose_weight_is_read_elsewhere_is_compiled() -> None:
    def forward(layer: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        return layer(x).detach(), (x * layer.a.weight[0]).sum()

    backend = QuickBackend()
    _, loss = torch.compile(Around(forward), backend=backend)(batch())
    loss.backward()
    assert count([backend.only.stages["fold_gates", "joint"]], GATE_BACKWARD) == 0
