"""What draws nothing needs no state of the generator, and is left out where nobody reads it."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from aten import assert_same_under_all_masks, copied, gate, predicated, trace
from torch import Tensor, fx
from torch._prims.rng_prims import graphsafe_run_with_rng_state, run_with_rng_state

from skiplora_fx.passes import drop_rng_states, liveness

ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
Q, STATE = torch.randn(1, 2, 4, 8), torch.get_rng_state()


def calls(graph: fx.Graph) -> list[object]:
    called = graph.find_nodes(op="call_function", target=operator.getitem)
    return [node.target for node in graph.nodes if node.op == "call_function" and node not in called]


def on_cpu(dropout: float) -> fx.Graph:
    return trace(lambda q, state: run_with_rng_state(state, ATTEND, q, q, q, dropout)[0], Q, STATE).graph


def on_gpu(dropout: float) -> fx.Graph:
    """Return what torch writes for a CUDA device, where the state is a generator."""
    graph = fx.Graph()
    q, generator = graph.placeholder("q"), graph.placeholder("bwd_rng_state_0")
    call = graph.call_function(graphsafe_run_with_rng_state, (ATTEND, q, q, q, dropout), {"rng_state": generator})
    q.meta["val"] = Q
    graph.output(call)
    return graph


@pytest.mark.parametrize("traced", [on_cpu, on_gpu])
def test_attention_that_drops_nothing_is_called_as_it_is(traced: Callable[[float], fx.Graph]) -> None:
    graph = traced(0.0)
    inputs = [node.name for node in graph.find_nodes(op="placeholder")]
    assert calls(graph) != [ATTEND]
    drop_rng_states(graph)
    graph.lint()
    assert calls(graph) == [ATTEND]
    (attention,) = graph.find_nodes(op="call_function", target=ATTEND)
    assert [value.shape for value in attention.meta["val"]] == [value.shape for value in ATTEND(Q, Q, Q, 0.0)]
    assert [node.name for node in graph.find_nodes(op="placeholder")] == inputs


@pytest.mark.parametrize("traced", [on_cpu, on_gpu])
def test_what_draws_keeps_its_state(traced: Callable[[float], fx.Graph]) -> None:
    """A state on a GPU has to advance with that of the forward, whoever reads what was drawn."""
    graph = traced(0.5)
    before = str(graph)
    drop_rng_states(graph)
    assert str(graph) == before
    found = liveness(graph, 1)
    (call,) = (node for node in graph.nodes if "rng_state" in str(node.target) and node.op == "call_function")
    assert found.live[call] == found.conditions.true


def test_noise_is_drawn_from_its_state() -> None:
    def noise(x: Tensor, state: Tensor) -> Tensor:
        return run_with_rng_state(state, torch.ops.aten.bernoulli.default, x)

    gm = trace(noise, Q.sigmoid(), STATE)
    drop_rng_states(gm.graph)
    gm.recompile()
    found = gm(Q.sigmoid(), STATE)
    torch.set_rng_state(STATE)
    torch.testing.assert_close(found, torch.bernoulli(Q.sigmoid()))


def test_recomputed_attention_is_skipped_with_its_readers() -> None:
    def backward(opens: Tensor, q: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        again = run_with_rng_state(state, ATTEND, q @ weight, q, q)[0]
        return gate(again @ weight, opens, 0).sum(0)

    inputs = Q, torch.randn(8, 8), STATE
    gm = trace(backward, torch.ones(1, dtype=torch.bool), *inputs)
    before = fx.GraphModule(gm, copied(gm.graph))
    drop_rng_states(gm.graph)
    found = liveness(gm.graph, 1)
    (attention,) = gm.graph.find_nodes(op="call_function", target=ATTEND)
    assert found.conditions.text(found.demanded[attention]) == "s0"
    assert_same_under_all_masks(before, predicated(gm, 1), 1, inputs)
