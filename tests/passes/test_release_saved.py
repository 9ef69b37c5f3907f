"""What the forward saved for regions that will not run is given back, and nobody reads what stands in for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import models
import oracle
import pytest
import torch
from aten import gate, masks, trace
from lora_modules import WIDE, peft
from memory import peak_of
from torch import Tensor, fx, nn

import skiplora_fx
from skiplora_fx._torch_compat import CustomPartitionerFn, dynamo_counters, min_cut_partition
from skiplora_fx.errors import InternalError, UsageError
from skiplora_fx.gate import EVALUATE_CONDITIONS, LET_GO
from skiplora_fx.passes import find_regions, liveness, release_saved
from skiplora_fx.passes.release_saved import Released, check_released, settle_released
from skiplora_fx.stand_in import let_storage_go, stand_in

MIB = 2**20
AT_ONCE = {"decision": "previous", "warmup_steps": 0, "probe_every": 0, "strict": True}

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


def test_sizes_that_vary_are_left_out() -> None:
    graph = forward_of(lambda x, w: (x.mm(w), x.sin(), torch.ones(4, 8).mul(2.0)), mode="symbolic")

    def backward(opens: Tensor, grad: Tensor, sin: Tensor, fixed: Tensor) -> Any:
        return gate(grad, opens, 0).mm(sin), gate(grad, opens, 1).mm(fixed)

    assert isinstance(graph.output_node().args[0][1].meta["val"].shape[0], torch.SymInt)
    assert release_saved(graph, backward_of(graph, backward), 1, SITES) is not None
    (call,) = graph.find_nodes(op="call_function", target=LET_GO)
    assert ([value.name for value in call.args[0]], call.args[4]) == (["sin", "mul"], 4 * 8 * 4)


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


def build(targets: Any = models.QV, checkpointing: bool = False, layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = models.with_lora(models.llama(layers), targets)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def ratios(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"M of {site.name}": torch.tensor(site.ratio) for site in skiplora_fx.sites(model)}


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits.square().mean()


@pytest.fixture
def poisoned() -> Iterator[torch.UntypedStorage]:
    """Have memory that is no number stand in."""
    storage = stand_in(torch.device("cpu"), 4 * MIB)
    storage.fill_(0xFF)
    yield storage
    assert bytes(storage[:16]) == b"\xff" * 16, "somebody has written there"


def test_others_keep_what_one_lets_go() -> None:
    value = torch.arange(6.0).view(2, 3)
    other = value.t()
    held = stand_in(value.device, MIB)
    let_storage_go(value, MIB)
    assert value.untyped_storage().data_ptr() == held.data_ptr()
    assert value.shape == (2, 3)
    assert other.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_what_stands_in_is_as_large_as_it_has_to_be() -> None:
    """Sizes that are known only when a graph runs are in no plan."""
    small, large = torch.empty(4), torch.empty(MIB, dtype=torch.uint8)
    for value in (small, large):
        let_storage_go(value, 16)
    assert large.untyped_storage().nbytes() >= MIB
    assert large.fill_(1).sum() == MIB
    assert small.untyped_storage().data_ptr() != large.untyped_storage().data_ptr()


def test_what_stands_in_is_one_and_goes_with_the_last_that_has_it() -> None:
    def run() -> None:
        values = [torch.empty(MIB, dtype=torch.uint8) for _ in range(4)]
        for value in values:
            let_storage_go(value, MIB)
        assert len({value.untyped_storage().data_ptr() for value in values}) == 1
        del value, values
        torch.empty(5 * MIB, dtype=torch.uint8)

    assert peak_of(run, "cpu") == 5 * MIB


@pytest.mark.parametrize(
    ("targets", "checkpointing", "scope"),
    [
        (models.QV, False, "adapter"),
        (models.ALL_LINEAR, False, "layer"),
        (models.QV, False, "input"),
        (models.ALL_LINEAR, True, "adapter"),
        pytest.param(models.ALL_LINEAR, False, "adapter", marks=pytest.mark.slow),
        pytest.param(models.QV, False, "layer", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, False, "input", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, True, "layer", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, True, "input", marks=pytest.mark.slow),
    ],
)
def test_no_gradient_sees_what_stands_in(
    targets: Any, checkpointing: bool, scope: str, poisoned: torch.UntypedStorage
) -> None:
    eager, compiled, batch = build(targets, checkpointing), build(targets, checkpointing), models.tokens(2, 16)
    sites = list(oracle.adapted_layers(eager))
    compiled.compile(backend="skiplora", options={**AT_ONCE, "scope": scope, "threshold": 0.0})
    half = len(sites) // 2
    generator = torch.Generator().manual_seed(1)
    random = [(torch.rand(len(sites), generator=generator) < 0.5).tolist() for _ in range(4)]
    oracle.gradients(compiled, lambda: loss_of(compiled, batch))
    measured = ratios(compiled)
    for opens in ([False] * half + [True] * (len(sites) - half), [True] * len(sites), [False] * len(sites), *random):
        mask = dict(zip(sites, opens, strict=True))
        for name, open in mask.items():
            skiplora_fx.set_threshold(compiled, 0.0 if open else math.inf, sites=name)
        for _ in range(2):
            found = oracle.gradients(compiled, lambda: loss_of(compiled, batch))
            found |= ratios(compiled)
        with oracle.detached(eager, scope, mask):
            expected = oracle.gradients(eager, lambda: loss_of(eager, batch))
        expected |= measured
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


class ThreeLinears(nn.Module):
    """Two of one input, and one of their product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDE, WIDE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.third(self.first(x).relu() * self.second(x))


SITES_OF_THREE = ["first", "second", "third"]


class Exact:
    """A small model under the backend, and the same one eager."""

    def __init__(
        self, poisoned: torch.UntypedStorage, scope: str = "adapter", dtype: Any = torch.float32, dropout: float = 0.0
    ) -> None:
        torch.manual_seed(0)
        self.eager = peft(ThreeLinears(), SITES_OF_THREE, lora_dropout=dropout).to(dtype)
        self.compiled = copy.deepcopy(self.eager)
        self._scope, self._dtype, self._poisoned = scope, dtype, poisoned

    def compile(self, dynamic: bool | None = None, **options: Any) -> None:
        options = {**AT_ONCE, "scope": self._scope, "threshold": 0.0, **options}
        self.compiled.compile(backend="skiplora", dynamic=dynamic, options=options)

    def check(self, rows: int = 48, tolerance: float = 1e-5) -> None:
        """Compare the gradients under every mask; ``tolerance`` is relative to the largest of each gradient."""
        x = torch.randn(rows, WIDE, generator=torch.Generator().manual_seed(rows)).to(self._dtype)
        self._run(self.compiled, x)
        for opens in masks(3):
            mask = {site.name: open for site, open in zip(skiplora_fx.sites(self.compiled), opens, strict=True)}
            for name, open in mask.items():
                skiplora_fx.set_threshold(self.compiled, 0.0 if open else math.inf, sites=name)
            self._run(self.compiled, x)
            found, stands_in = self._run(self.compiled, x)
            if len(set(opens)) == 1:  # some may leave nothing: what siblings share is read while one is open
                assert stands_in is not opens[0]
            with oracle.detached(self.eager, self._scope, mask):
                wanted, _ = self._run(self.eager, x)
            for name, want in wanted.items():
                torch.testing.assert_close(found[name], want, rtol=0, atol=tolerance * max(float(want.abs().max()), 1))

    def _run(self, model: nn.Module, x: Tensor) -> tuple[oracle.Gradients, bool]:
        """Return the gradients of a step, and whether something stands in for what the forward has saved."""
        torch.manual_seed(1)
        output = model(x)
        saved = getattr(output.grad_fn, "saved_tensors", ())
        stands_in = self._poisoned.data_ptr() in [value.untyped_storage().data_ptr() for value in saved]
        return oracle.gradients(model, output.square().mean), stands_in


@pytest.mark.slow
def test_with_dropout(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned, dropout=0.5)
    pair.compile(fallback_random=True)  # so that Inductor draws what eager does
    pair.check()


@pytest.mark.slow
def test_in_bfloat16(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned, "layer", dtype=torch.bfloat16)
    pair.compile()
    pair.check(tolerance=5e-2)


@pytest.mark.slow
def test_with_siblings_merged(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned)
    pair.compile(merge_siblings=True)
    pair.check()


@pytest.mark.slow
def test_with_sizes_that_vary(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned)
    pair.compile(dynamic=True)
    before = dynamo_counters["stats"]["unique_graphs"]
    pair.check(48)
    pair.check(96)
    assert dynamo_counters["stats"]["unique_graphs"] == before + 1


class Counting(CustomPartitionerFn):
    """A user's own partitioner, which counts what it has cut."""

    def __init__(self) -> None:
        self.cut = 0

    def __call__(self, gm: fx.GraphModule, joint_inputs: Any, **options: Any) -> Any:
        self.cut += 1
        return min_cut_partition(gm, joint_inputs, **options)

    def uuid(self) -> None:
        return None  # keeps the graph out of the caches


def test_with_the_users_own_partitioner(poisoned: torch.UntypedStorage) -> None:
    pair, theirs = Exact(poisoned), Counting()
    pair.compile(custom_partitioner_fn=theirs)
    pair.check()
    assert theirs.cut == 1


@pytest.mark.parametrize("hooks", [nullcontext, torch.autograd.graph.save_on_cpu])
def test_a_graph_that_is_kept_and_hooks_on_what_is_saved(hooks: Any, poisoned: torch.UntypedStorage) -> None:
    model, batch = build(), models.tokens(2, 16)
    model.compile(backend="skiplora", options={**AT_ONCE, "threshold": {"*.layers.0.*": math.inf, "*": 0.0}})
    once = [oracle.gradients(model, lambda: loss_of(model, batch)) for _ in range(2)][1]
    model.zero_grad()
    with hooks():
        loss = loss_of(model, batch)
    loss.backward(retain_graph=True)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_a_backward_that_was_not_predicated_is_refused() -> None:
    """As compiled autograd has it, which takes the backward as it was before the backend saw it."""
    value, opens = torch.ones(4), torch.tensor([False, True])
    read = torch.ops.skiplora.evaluate_conditions(opens, "", "0")
    torch.ops.skiplora.let_go([value], read, opens, [0], 16, [], [])
    with pytest.raises(UsageError, match="release_saved"):
        torch.ops.skiplora.gate_backward(torch.ones(4), opens, [0])
    torch.ops.skiplora.gate_backward(torch.ones(4), opens.clone(), [0])


def peaks(options: dict[str, Any], checkpointing: bool = False) -> tuple[int, int]:
    """Return the peak of a step with every gate open, and with the lower half shut, bytes."""
    torch.compiler.reset()
    model, batch = build(models.ALL_LINEAR, checkpointing, layers=4), models.tokens(8, 48)
    model.compile(backend="skiplora", options={**AT_ONCE, "threshold": 0.0, **options})

    def step() -> None:
        loss_of(model, batch).backward()

    def settled() -> int:
        for _ in range(3):
            step()
        model.zero_grad(set_to_none=True)
        return peak_of(step, "cpu")

    open = settled()
    skiplora_fx.set_threshold(model, math.inf, sites="*.layers.[01].*")
    return open, settled()


def test_memory_is_given_back() -> None:
    open, shut = peaks({})
    kept_open, kept_shut = peaks({"disable_passes": ["release_saved"]})
    assert open == kept_open
    assert shut < 0.75 * kept_shut


def test_a_compile_from_caches_gives_it_back_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    first = peaks({})
    hits = torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
    assert peaks({}) == first
    assert torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"] > hits
