"""What the forward saved for regions that will not run is planned to be given back: the pass on small graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten import gate, trace
from torch import Tensor, fx

from skiplora_fx.errors import InternalError
from skiplora_fx.gate import EVALUATE_CONDITIONS, LET_GO
from skiplora_fx.passes import find_regions, liveness, release_saved
from skiplora_fx.passes.release_saved import Released, check_released, settle_released

X, W = torch.randn(4, 4), torch.randn(4, 4)
SITES = 2
hold = torch.ops.skiplora.hold


def forward_of(function: Callable[..., Any], x: Tensor = X, mode: str = "fake") -> fx.Graph:
    """Return a forward of a matrix and a weight: the user's output, what is saved, and last the decisions."""

    def forward(thresholds: Tensor, x: Tensor, w: Tensor) -> Any:
        return *function(x, w), hold(thresholds)

    return trace(forward, torch.zeros(SITES), x, W, mode=mode).graph


def backward_of(forward: fx.Graph, function: Callable[..., Any]) -> fx.Graph:
    """Return a backward of the decisions, the tangent, and what is saved, which is called as it is in the forward."""
    _, *saved, opens = forward.output_node().args[0]
    values = [torch.empty([int(size) for size in node.meta["val"].shape]) for node in saved]
    graph = trace(function, torch.ones(SITES, dtype=torch.bool), X, *values).graph
    first, _, *others = graph.find_nodes(op="placeholder")
    for placeholder, node in zip([first, *others], [opens, *saved], strict=True):
        placeholder._rename(node.name)
    return graph


def lower_and_upper(opens: Tensor, grad: Tensor, *saved: Tensor) -> list[Tensor]:
    """Read the first of what is saved if site 0 is open, and so on."""
    return [gate(grad, opens, site).mm(value) for site, value in enumerate(saved)]


def let_go_in(graph: fx.Graph) -> dict[str, int]:
    """Return what is given back, by name, with the number of its condition."""
    calls = graph.find_nodes(op="call_function", target=LET_GO)
    return {value.name: number for call in calls for value, number in zip(call.args[0], call.args[3], strict=True)}


def given_back(forward: Callable[..., Any], backward: Callable[..., Any], x: Tensor = X) -> dict[str, str]:
    """Return what is given back of what a forward saves, by name, and when it is not."""
    graph = forward_of(forward, x)
    released = release_saved(graph, backward_of(graph, backward), 1, SITES)
    assert (released is None) == (not let_go_in(graph))
    return {} if released is None else {n: released.conditions.text(read) for n, read in released.read.items()}


def released_in(forward: Callable[..., Any], backward: Callable[..., Any] = lower_and_upper) -> tuple[fx.Graph, Any]:
    graph = forward_of(forward)
    return graph, release_saved(graph, backward_of(graph, backward), 1, SITES)


def order_in(graph: fx.Graph) -> list[str]:
    short = {EVALUATE_CONDITIONS: "evaluate"}
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [short.get(node.target, node.name.replace("_default", "")) for node in calls]


def test_what_a_region_reads_is_given_back_when_it_does_not_run() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        return (x + w).sum(), x.sin(), x.cos()

    assert given_back(forward, lower_and_upper) == {"sin": "s0", "cos": "s1"}


def test_what_is_read_in_any_case_stays() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        return (x + w).sum(), x.sin(), x.cos()

    def backward(opens: Tensor, grad: Tensor, sin: Tensor, cos: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), grad.mm(cos)

    assert given_back(forward, backward) == {"sin": "s0"}


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda x, w: ((x + w).sum(), x), id="an input"),
        pytest.param(lambda x, w: ((x + w).sum(), x.t()), id="a view of an input"),
        pytest.param(lambda x, w: ((x + w).sum(), x.clone()), id="a copy of an input that may not be made"),
        pytest.param(lambda x, w: [x.sin()] * 2, id="an output of the user's"),
        pytest.param(lambda x, w: (lambda value: (value, value.t()))(x.sin()), id="a view of such an output"),
    ],
)
def test_what_others_may_have_stays(forward: Callable[..., Any]) -> None:
    assert given_back(forward, lower_and_upper) == {}


def test_two_names_of_one_buffer_are_given_back_together() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        value = x.sin()
        return value.sum(), value, value.t()

    assert given_back(forward, lower_and_upper) == {"sin": "any of s0, s1", "t": "any of s0, s1"}


def test_what_is_small_stays() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        return x.sum(), x[:4].sin(), x.cos()

    def backward(opens: Tensor, grad: Tensor, sin: Tensor, cos: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), gate(grad, opens, 1).mm(cos.t())

    assert given_back(forward, backward, torch.randn(4 * 64, 4)) == {"sin": "s0", "cos": "s1"}
    assert given_back(forward, backward, torch.randn(4 * 65, 4)) == {"cos": "s1"}


def test_decisions_are_taken_first_and_memory_goes_behind_its_last_reader() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        lower = x.sin()
        upper = lower.exp().mm(w).cos()
        return upper.mm(w).tanh(), lower, upper

    graph, _ = released_in(forward)
    assert order_in(graph) == ["hold", "evaluate", "sin", "exp", "mm", "cos", "mm_1", "let_go_1", "let_go", "tanh"]


def test_sizes_that_vary_are_left_out_of_what_stands_in() -> None:
    graph = forward_of(lambda x, w: (x.mm(w), x.sin(), torch.ones(4, 8).mul(2.0)), mode="symbolic")

    def backward(opens: Tensor, grad: Tensor, sin: Tensor, fixed: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), gate(grad, opens, 1).mm(fixed)

    assert isinstance(graph.output_node().args[0][1].meta["val"].shape[0], torch.SymInt)
    assert release_saved(graph, backward_of(graph, backward), 1, SITES) is not None
    assert set(let_go_in(graph)) == {"sin", "mul"}
    assert {call.args[4] for call in graph.find_nodes(op="call_function", target=LET_GO)} == {4 * 8 * 4}


@pytest.mark.parametrize(("columns", "found"), [(64, {"sin", "mul"}), (2, {"mul"})])
def test_sizes_that_vary_are_small_or_not_as_they_were_traced(columns: int, found: set[str]) -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        return x.sum(), x.sin(), torch.ones(64, 64).mul(2.0)

    graph = forward_of(forward, torch.randn(4, columns), mode="symbolic")

    def backward(opens: Tensor, grad: Tensor, sin: Tensor, fixed: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), gate(grad, opens, 1).mm(fixed[:4])

    assert isinstance(graph.output_node().args[0][1].meta["val"].shape[0], torch.SymInt)
    assert release_saved(graph, backward_of(graph, backward), 1, SITES) is not None
    assert set(let_go_in(graph)) == found


def test_the_calls_are_few() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        values = [x := x.sin() for _ in range(60)]
        return x.mm(w), *values

    def backward(opens: Tensor, grad: Tensor, *saved: Tensor) -> Any:
        return [gate(grad, opens, 0).mm(value) for value in saved]

    graph, _ = released_in(forward, backward)
    assert len(let_go_in(graph)) == 60
    assert len(graph.find_nodes(op="call_function", target=LET_GO)) == 15


def test_a_backward_with_decisions_of_its_own_is_refused() -> None:
    graph = forward_of(lambda x, w: (x.sum(), x.sin()))
    backward = backward_of(graph, lower_and_upper)
    backward.find_nodes(op="placeholder")[0]._rename("elsewhere")
    with pytest.raises(InternalError, match="expected the decisions of the backward's gates in the forward"):
        release_saved(graph, backward, 1, SITES)


def sines(x: Tensor, w: Tensor) -> Any:
    """Save two values, and return what is computed from them."""
    lower, upper = x.sin(), x.cos()
    return lower.mm(w) + upper.mm(w), lower, upper


class TestSettled:
    """After Inductor's passes, which have edited the forward."""

    def settled(self, edit: Callable[[fx.Graph, dict[str, fx.Node]], None]) -> fx.Graph:
        graph, released = released_in(sines)
        edit(graph, {node.name: node for node in graph.nodes})
        settle_released(graph, released)
        graph.lint()
        return graph

    def test_as_it_was(self) -> None:
        graph = self.settled(lambda graph, nodes: None)
        assert let_go_in(graph) == {"sin": 0, "cos": 1}

    def test_behind_those_who_read_it_since(self) -> None:
        def read_late(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
            with graph.inserting_before(graph.output_node()):
                late = graph.call_function(torch.ops.aten.mm.default, (nodes["sin"], nodes["w_1"]))
                later = graph.call_function(torch.ops.aten.exp.default, (nodes["sin"],))
                latest = graph.call_function(torch.ops.aten.mm.default, (later, nodes["w_1"]))
            for node in (late, later, latest):
                node.meta["val"] = nodes["sin"].meta["val"]

        graph = self.settled(read_late)
        (call,) = (user for node in graph.nodes if node.name == "sin" for user in node.users if user.target is LET_GO)
        order = list(graph.nodes)
        # The exponential is computed with the product that reads it, as far as Inductor is asked.
        assert all(order.index(call) > order.index(node) for node in order if node.name.startswith(("mm", "exp")))

    @pytest.mark.parametrize("taken", [torch.ops.aten.clone.default, torch.ops.aten.t.default])
    def test_what_lies_in_an_input_since_stays(self, taken: Any) -> None:
        def lies_in_input(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
            nodes["sin"].target, nodes["sin"].args = taken, (nodes["x_1"],)

        assert let_go_in(self.settled(lies_in_input)) == {"cos": 1}

    def test_what_lies_in_another_output_since_stays(self) -> None:
        def lies_in_output(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
            (_, *others), output = graph.output_node().args[0], graph.output_node()
            with graph.inserting_before(output):
                view = graph.call_function(torch.ops.aten.t.default, (nodes["sin"],))
            view.meta["val"] = nodes["sin"].meta["val"].t()
            output.args = ((view, *others),)

        assert let_go_in(self.settled(lies_in_output)) == {"cos": 1}

    def test_what_two_conditions_share_since_stays(self) -> None:
        def one_for_both(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
            output = graph.output_node()
            output.args = ([nodes["sin"] if node is nodes["cos"] else node for node in output.args[0]],)

        assert let_go_in(self.settled(one_for_both)) == {"cos": 1}  # which is nobody's now

    def test_nothing_is_left_of_a_call_that_gives_nothing_back(self) -> None:
        def lie_in_input(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
            for name in ("sin", "cos"):
                nodes[name].target, nodes[name].args = torch.ops.aten.clone.default, (nodes["x_1"],)

        graph = self.settled(lie_in_input)
        assert not graph.find_nodes(op="call_function", target=LET_GO)

    def test_what_is_computed_from_it_and_kept_is_waited_for(self) -> None:
        graph, released = released_in(lambda x, w: ((value := x.sin()).exp(), value))
        settle_released(graph, released)
        (call,) = graph.find_nodes(op="call_function", target=LET_GO)
        assert [node.name for node in call.args[-1]] == ["exp"]


def checked(backward: Callable[..., Any], later: Callable[..., Any]) -> None:
    """Check what was planned with one backward against what has become of it."""
    forward = forward_of(sines)
    released = release_saved(forward, backward_of(forward, backward), 1, SITES)
    assert isinstance(released, Released)
    graph = backward_of(forward, later)
    analysis = liveness(graph, SITES, released.conditions)
    check_released(graph, released, analysis, find_regions(graph, analysis))


def test_a_backward_that_reads_what_was_planned_or_less_passes() -> None:
    checked(lower_and_upper, lower_and_upper)
    checked(lower_and_upper, lambda o, grad, sin, cos: (gate(gate(grad, o, 0), o, 1).mm(sin), gate(grad, o, 1).mm(cos)))


def test_a_backward_that_reads_more_than_was_planned_is_refused() -> None:
    def later(opens: Tensor, grad: Tensor, sin: Tensor, cos: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), gate(grad, opens, 0, 1).mm(cos)

    with pytest.raises(InternalError, match=r"the backward reads what the forward gave back: cos$"):
        checked(lower_and_upper, later)


def test_a_backward_that_calls_it_otherwise_is_refused() -> None:
    forward = forward_of(sines)
    graph = backward_of(forward, lower_and_upper)
    released = release_saved(forward, graph, 1, SITES)
    assert released is not None
    graph.find_nodes(op="placeholder")[2]._rename("elsewhere")
    analysis = liveness(graph, SITES, released.conditions)
    with pytest.raises(InternalError, match=r"gave back: sin$"):
        check_released(graph, released, analysis, find_regions(graph, analysis))
