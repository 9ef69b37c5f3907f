"""What is said to be zero is zero, and what is said not to be needed is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten import gate, holds, masks, trace
from hypothesis import assume, given, settings
from programs import Program, inputs, programs
from torch import Tensor, fx

from skiplora_fx.passes import Liveness, liveness
from skiplora_fx.passes.liveness import gate_sites, is_gate

SITES = 3
OPENS = torch.ones(SITES, dtype=torch.bool)
A, B, W, V = inputs()
Texts = dict[str, tuple[str, str]]


def analyse(function: Callable[..., Any], *values: Tensor, sites: int = 2) -> tuple[fx.GraphModule, Liveness]:
    gm = trace(function, torch.ones(sites, dtype=torch.bool), *values)
    return gm, liveness(gm.graph, sites)


def texts(function: Callable[..., Any], *values: Tensor, sites: int = 2) -> Texts:
    """Return ``(nonzero, demanded)`` of each operator but the gates, by the node's name."""
    gm, found = analyse(function, *values, sites=sites)
    say = found.conditions.text
    computed = [node for node in gm.graph.nodes if node.op == "call_function" and not is_gate(node)]
    return {node.name: (say(found.nonzero[node]), say(found.demanded[node])) for node in computed}


def test_what_only_a_gate_reads_is_needed_while_it_is_open() -> None:
    assert texts(lambda o, grad, w: gate(grad.mm(w), o, 0), A, W) == {"mm": ("always", "s0")}


def test_what_comes_out_of_a_gate_is_zero_while_it_is_shut() -> None:
    assert texts(lambda o, grad, w: gate(grad, o, 0).mm(w), A, W) == {"mm": ("s0", "always")}


def test_gates_in_a_row_need_all_to_be_open() -> None:
    found = texts(lambda o, grad, w: gate(gate(grad.mm(w), o, 0).mm(w), o, 1).mm(w), A, W)
    both = "s0 and s1"
    assert found == {"mm": ("always", both), "mm_1": ("s0", both), "mm_2": (both, "always")}


def test_a_sum_needs_any() -> None:
    found = texts(lambda o, a, b, w: (gate(a, o, 0) + gate(b, o, 1)).mm(w), A, B, W)
    assert found["add"] == ("any of s0, s1", "any of s0, s1")


def test_a_product_of_two_needs_both() -> None:
    assert texts(lambda o, a, b: gate(a, o, 0) * gate(b, o, 1), A, B)["mul"][0] == "s0 and s1"


def test_a_gate_of_two_sites_needs_either() -> None:
    assert texts(lambda o, a, w: gate(a, o, 0, 1).mm(w), A, W)["mm"][0] == "any of s0, s1"


@pytest.mark.parametrize(
    ("operator", "nonzero"),
    [
        pytest.param(lambda a, b, w: torch.cat([a, b]), "either", id="cat"),
        pytest.param(lambda a, b, w: torch.where(w > 0, a, b), "either", id="where"),
        pytest.param(lambda a, b, w: torch.where(w > 0, a, 1.0), "always", id="where or a number"),
        pytest.param(lambda a, b, w: a + 1, "always", id="a number added"),
        pytest.param(lambda a, b, w: a - b, "either", id="sub"),
        pytest.param(lambda a, b, w: torch.addmm(a, b, w), "either", id="addmm"),
        pytest.param(lambda a, b, w: torch.addmm(w, a, b), "always", id="addmm onto a weight"),
        pytest.param(lambda a, b, w: torch.addcmul(a, b, w), "either", id="addcmul"),
        pytest.param(lambda a, b, w: a.t().reshape(-1).view(2, 8).sum(0), "s0", id="views and a sum"),
        pytest.param(lambda a, b, w: w / (a + w), "always", id="zero in the denominator only"),
        pytest.param(lambda a, b, w: a / w, "s0", id="zero in the numerator"),
        pytest.param(lambda a, b, w: a.cos(), "always", id="not listed"),
        pytest.param(lambda a, b, w: a.pow(2), "always", id="not listed though zero"),
        pytest.param(lambda a, b, w: a > 0, "always", id="comparison"),
        pytest.param(lambda a, b, w: torch.ops.aten.index_put(w, [torch.tensor([0])], a[:1]), "always", id="index_put"),
        pytest.param(lambda a, b, w: torch.ops.aten.silu_backward(a, w), "s0", id="gradient of silu"),
        pytest.param(lambda a, b, w: torch.ops.aten.silu_backward(w, a), "always", id="silu at zero"),
    ],
)
def test_how_zeros_move(operator: Callable[..., Tensor], nonzero: str) -> None:
    gm, found = analyse(lambda o, a, b, w: operator(gate(a, o, 0), gate(b, o, 1), w), A, B, W)
    ((result,),) = (gm.graph.output_node().all_input_nodes,)
    expected = {"either": "any of s0, s1"}.get(nonzero, nonzero)
    assert found.conditions.text(found.nonzero[result]) == expected


def test_random_numbers_are_always_drawn() -> None:
    found = texts(lambda o, grad: gate(grad * torch.rand_like(grad), o, 0), A)
    assert found == {"rand_like": ("always", "always"), "mul": ("always", "s0")}


ATTENTION = torch.randn(1, 2, 4, 8)
BIAS, LOGSUMEXP, SEED = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4), torch.zeros((), dtype=torch.long)
aten = torch.ops.aten


def efficient_backward(q: Tensor, bias: Tensor, sums: Tensor, seed: Tensor, dropout: float) -> Tensor:
    rest = (seed, seed, dropout, [True, True, True, False])
    return aten._scaled_dot_product_efficient_attention_backward(q, q, q, q, bias, q, sums, *rest)[0]


def cudnn_backward(q: Tensor, bias: Tensor, sums: Tensor, seed: Tensor, dropout: float) -> Tensor:
    rest = (seed, seed, bias, seed, seed, 4, 4, dropout, False)
    return aten._scaled_dot_product_cudnn_attention_backward(q, q, q, q, q, sums, *rest)[0]


def flash_backward(q: Tensor, bias: Tensor, sums: Tensor, seed: Tensor, dropout: float) -> Tensor:
    rest = (seed, seed, 4, 4, dropout, False, seed, seed)
    return aten._scaled_dot_product_flash_attention_backward(q, q, q, q, q, sums, *rest)[0]


def cpu_backward(q: Tensor, bias: Tensor, sums: Tensor, seed: Tensor, dropout: float) -> Tensor:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(q, q, q, q, q, sums, dropout, False)[0]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("backward", [efficient_backward, cudnn_backward, flash_backward, cpu_backward])
def test_a_backward_of_attention_takes_the_seed_of_its_forward(backward: Callable[..., Tensor], dropout: float) -> None:
    def graph(opens: Tensor, grad: Tensor, *saved: Tensor) -> Tensor:
        return gate(backward(grad, *saved, dropout), opens, 0)

    found = texts(graph, ATTENTION, BIAS, LOGSUMEXP, SEED)
    assert len(found) == 2  # the operator, and the part of its result that is read
    assert set(found.values()) == {("always", "s0")}


@pytest.mark.parametrize(
    ("forward", "dropout", "demanded"),
    [
        pytest.param(forward, dropout, demanded, id=f"{forward}, {dropout}")
        for forward in ("efficient_attention", "cudnn_attention", "flash_attention", "flash_attention_for_cpu")
        for dropout, demanded in (((), "s0"), ((0.0,), "s0"), ((0.5,), "always"))
    ],
)
def test_attention_that_is_recomputed_draws_only_what_it_drops(
    forward: str, dropout: tuple[float, ...], demanded: str
) -> None:
    operator = getattr(aten, f"_scaled_dot_product_{forward}").default
    arguments = (*((None, True) if forward in ("efficient_attention", "cudnn_attention") else ()), *dropout)
    gm, found = analyse(lambda o, q: gate(operator(q, q, q, *arguments)[0], o, 0), ATTENTION)
    (node,) = gm.graph.find_nodes(op="call_function", target=operator)
    assert found.conditions.text(found.demanded[node]) == demanded


def test_numbers_of_a_given_seed_are_drawn_for_their_readers_alone() -> None:
    def graph(opens: Tensor, grad: Tensor) -> Tensor:
        seed = torch.ops.prims.inductor_seed(torch.device("cpu"))
        return gate(grad * torch.ops.prims.inductor_random([8, 8], seed, "rand"), opens, 0)

    found = texts(graph, torch.randn(8, 8))
    assert [demanded for _, demanded in found.values()] == ["always", "s0", "s0"]


def test_what_writes_to_memory_always_runs() -> None:
    def mutating(opens: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
        torch.ops.aten.add_.Tensor(weight, grad.mm(weight))
        return gate(grad, opens, 0)

    found = texts(mutating, A, W)
    assert found["mm"] == found["add_"] == ("always", "always")


def test_sizes_are_always_computed() -> None:
    def flattened(opens: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
        return gate(grad.mm(weight).view(grad.shape[0] * grad.shape[1]), opens, 0)

    gm = trace(flattened, OPENS, A, W, mode="symbolic")
    found = liveness(gm.graph, SITES)
    sizes = [node for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    assert sizes
    assert all(found.live[node] == found.conditions.true for node in sizes)


def test_the_graph_is_not_changed() -> None:
    gm = trace(lambda o, grad, w: gate(grad, o, 0).mm(w), OPENS, A, W)
    before = str(gm.graph)
    liveness(gm.graph, SITES)
    assert str(gm.graph) == before


class _OnlyWhatIsLive(fx.Interpreter):
    """Runs live nodes only: what else is demanded is zero, and what is not demanded is NaN."""

    def __init__(self, gm: fx.GraphModule, found: Liveness, mask: tuple[bool, ...]) -> None:
        super().__init__(gm)
        self._found = found
        self._mask = mask

    def run_node(self, node: fx.Node) -> Any:
        if node.op != "call_function" or holds(self._found.live[node], self._mask):
            return super().run_node(node)
        fill = 0.0 if holds(self._found.demanded[node], self._mask) else torch.nan
        return _filled(node.meta["val"], fill)


def _filled(value: Any, fill: float) -> Any:
    if isinstance(value, (tuple, list)):
        return [None if part is None else _filled(part, fill) for part in value]
    return torch.full(value.shape, fill, dtype=value.dtype) if value.is_floating_point() else torch.zeros(value.shape)


class _CheckZeros(fx.Interpreter):
    """Runs everything, and checks that only what may differ from zero does."""

    def __init__(self, gm: fx.GraphModule, found: Liveness, mask: tuple[bool, ...]) -> None:
        super().__init__(gm)
        self._found = found
        self._mask = mask

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.any():
            assert holds(self._found.nonzero[node], self._mask), f"{node} under {self._mask}"
        return value


@settings(max_examples=100)
@given(programs(SITES))
def test_random_graphs(program: Program) -> None:
    gm = trace(program, OPENS, A, B, W, V)
    assume(any(map(is_gate, gm.graph.nodes)))
    found = liveness(gm.graph, SITES)
    for mask in masks(SITES):
        values = torch.tensor(mask), A, B, W, V
        expected = _CheckZeros(gm, found, mask).run(*values)
        assume(all(result.abs().max() < 1e9 for result in expected))
        torch.testing.assert_close(_OnlyWhatIsLive(gm, found, mask).run(*values), expected, rtol=0, atol=0)


def test_the_sites_of_a_gate() -> None:
    gm = trace(lambda o, grad: gate(grad, o, 2, 0), OPENS, A)
    (node,) = filter(is_gate, gm.graph.nodes)
    assert gate_sites(node) == [2, 0]
