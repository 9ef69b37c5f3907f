"""``explain`` says what is gated and what not, and counts what each gate saves as the compiled backward would run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import oracle
import pytest
import torch
import torch.nn.functional as F
from aten import CountCalls
from capture import QuickBackend
from lora_modules import WIDE, Around, Checkpointed, Linear, batch, peft
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx import ConfigError, UsageError
from skiplora_fx.explain import Explanation


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return models.with_lora(models.llama(3), models.QV).train(), models.tokens()


@pytest.fixture(scope="module")
def explained(llama: tuple[nn.Module, dict[str, Any]]) -> Explanation:
    model, inputs = llama
    return skiplora_fx.explain(model, **inputs)


def test_every_adapter_of_a_model_has_its_row(llama: tuple[nn.Module, dict[str, Any]], explained: Explanation) -> None:
    (graph,) = explained.graphs
    assert [site.name for site in graph.sites] == list(oracle.adapted_layers(llama[0]))
    assert {(site.kind, site.rank, site.dtype) for site in graph.sites} == {("linear→linear", 4, "float32")}
    assert graph.sites[0].shape == (2, 12, 32)
    assert graph.rejections == ()
    assert (explained.captured, explained.breaks) == (1, {})


def executed(backend: QuickBackend, model: nn.Module, compiled: nn.Module, inputs: Any, shut: set[int]) -> int:
    """Return the FLOPs that a backward of the whole pipeline really runs with some gates shut."""
    captured = backend.only
    values = [float("inf") if index in shut else 0.0 for index in range(len(captured.thresholds))]
    captured.thresholds.copy_(torch.tensor(values))
    model.zero_grad(set_to_none=True)
    loss = compiled(**inputs).loss
    with CountCalls() as counted:
        loss.backward()
    return counted.flops


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_the_counts_are_what_runs(scope: str) -> None:
    model = models.with_lora(models.llama(2, attn_implementation="eager"), models.QV).train()
    inputs = models.tokens()
    (graph,) = skiplora_fx.explain(model, **inputs, options={"scope": scope}).graphs
    backend = QuickBackend(scope)
    compiled = torch.compile(model, backend=backend)
    compiled(**inputs).loss.backward()
    number = len(graph.sites)

    def run(shut: set[int]) -> int:
        return executed(backend, model, compiled, inputs, shut)

    assert graph.backward == run(set())
    assert [site.saves for site in graph.sites] == [graph.backward - run({index}) for index in range(number)]
    prefixes = [run(set(range(length))) for length in range(number + 1)]
    assert [site.adds for site in graph.sites] == [more - less for more, less in itertools.pairwise(prefixes)]
    assert graph.best_cases["every adapter skipped"] == run(set(range(number)))
    assert graph.best_cases["the first half skipped"] == run(set(range(number // 2)))
    assert graph.best_cases["the last half skipped"] == run(set(range(number // 2, number)))
    assert graph.best_cases["every other one skipped"] == run(set(range(0, number, 2)))


def test_attention_is_counted_on_the_cpu_too() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = Linear(), Linear()

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x)[:, None], self.k(x)[:, None]
            return F.scaled_dot_product_attention(q, k, k)

    (graph,) = skiplora_fx.explain(Attention(), torch.randn(2, 8, WIDE)).graphs
    assert not any("attention" in name for name in graph.uncounted)
    # q: 3 products of rank 4 and, of attention, five of 8 × 8 × 16 for each of two sequences.
    linears = 2 * 3 * 2 * (16 * 4 * WIDE)
    assert graph.backward == linears + 5 * 2 * (2 * 8 * 8 * WIDE)


def test_regions_and_products_of_a_site() -> None:
    (graph,) = skiplora_fx.explain(Around(lambda layer, x: layer(x).sin()), batch()).graphs
    (site,) = graph.sites
    assert (site.regions, site.products) == (1, 3)  # dB, what goes on to A, dA
    assert site.saves == site.adds == graph.backward


def test_what_is_not_gated_is_listed_with_its_line() -> None:
    model = peft(modules_to_save=["second"])
    (graph,) = skiplora_fx.explain(model, batch()).graphs
    head = "base_model.model.second.modules_to_save.default"
    assert {miss.name for miss in graph.rejections} == {f"{head}.weight", f"{head}.bias"}
    assert all(miss.family == "no join" and miss.reason for miss in graph.rejections)
    text = str(skiplora_fx.explain(model, batch()))
    assert "Trained, but not gated: 2" in text
    assert "1 adapter gated (scope 'adapter'), 2 trained parameters not gated." in text


def test_the_source_of_a_near_miss() -> None:
    def forward(layer: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = layer.a(x)
        return layer.base(x) + layer.b(inner), inner.sum()

    (graph,) = skiplora_fx.explain(Around(forward), batch()).graphs
    assert {miss.family for miss in graph.rejections} == {"shared"}
    (source,) = {miss.source for miss in graph.rejections}
    assert source.startswith(__file__)
    assert Path(__file__).name in str(skiplora_fx.explain(Around(forward), batch())).replace("\n", "")


def test_graph_breaks_are_counted_and_named() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        x = layer(x)
        torch._dynamo.graph_break()
        return layer.base(x).sin()

    found = skiplora_fx.explain(Around(forward), batch())
    assert found.captured == 2
    assert sum(found.breaks.values()) == 1
    assert "2 graphs, 1 graph break" in str(found)
    assert sum(len(graph.sites) for graph in found.graphs) == 1


class Broken(nn.Module):
    """Layers that Dynamo compiles one by one, the second and the third as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            torch._dynamo.graph_break()
            x = layer(x).sin()
        return x


def test_a_graph_that_is_called_for_several_layers() -> None:
    found = skiplora_fx.explain(Broken(), batch())
    first, second, third = found.graphs
    assert [site.name for graph in found.graphs for site in graph.sites] == ["layers.0", "layers.1", "layers.2"]
    assert first.number != second.number == third.number
    assert found.backward == first.backward + 2 * second.backward
    # "The first half" of three is the first: nothing of it is left, and nothing of the others is saved.
    assert found.best_cases()["the first half skipped"] == first.backward / found.backward


def test_what_is_rejected_is_named_from_the_whole_model() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Broken()
            self.inner.layers[1].base.bias.requires_grad_(True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    _, second, _ = skiplora_fx.explain(Outer(), batch()).graphs
    assert {miss.name for miss in second.rejections} == {"inner.layers.1.base.bias"}


def test_checkpointed_layers() -> None:
    (graph,) = skiplora_fx.explain(Checkpointed(), batch().requires_grad_()).graphs
    assert [site.name for site in graph.sites] == ["layers.0", "layers.1"]


def test_nothing_is_changed_by_it(llama: tuple[nn.Module, dict[str, Any]]) -> None:
    model, inputs = llama
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    skiplora_fx.explain(model, **inputs)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert skiplora_fx.sites(model) == []


def test_a_model_that_is_compiled_already(llama: tuple[nn.Module, dict[str, Any]], explained: Explanation) -> None:
    model, inputs = llama
    model.compile(backend="eager")
    try:
        assert skiplora_fx.explain(model, **inputs) == explained
        assert model._compiled_call_impl is not None
    finally:
        model._compiled_call_impl = None
    assert skiplora_fx.explain(torch.compile(model, backend="eager"), **inputs) == explained


def test_on_the_meta_device_nothing_is_computed() -> None:
    with torch.device("meta"):
        model, x = Linear().train(), batch()
    (graph,) = skiplora_fx.explain(model, x).graphs
    assert (graph.sites[0].name, graph.sites[0].shape) == ("", (3, WIDE))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_json_has_all_of_it(explained: Explanation) -> None:
    read = json.loads(explained.to_json())
    assert read["backward"] == explained.backward
    assert read["share_left_out"] == explained.best_cases()
    assert [site["saves"] for site in read["graphs"][0]["sites"]] == [site.saves for site in explained.graphs[0].sites]


def test_shares_are_of_all_graphs(explained: Explanation) -> None:
    shares = explained.best_cases()
    assert shares["every adapter skipped"] == 1.0
    assert shares["the first half skipped"] > shares["the last half skipped"]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: skiplora_fx.explain("model"), UsageError, "explain needs a model, a torch.nn.Module, got str"),
        (
            lambda: skiplora_fx.explain(Linear(), torch.randn(3, WIDE + 1)),
            UsageError,
            r"explain: Linear does not run on these inputs: .*16.* Call explain\(model, \*args, \*\*kwargs\)",
        ),
        (lambda: skiplora_fx.explain(Linear()), UsageError, "explain: Linear does not run .* missing 1 required"),
        (lambda: skiplora_fx.explain(Linear(), batch(), options={"scop": 1}), ConfigError, "scop"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_a_model_in_which_nothing_trains() -> None:
    found = skiplora_fx.explain(Linear().requires_grad_(False), batch())
    assert found.graphs == ()
    assert found.backward == 0
    assert "Nothing is gated." in str(found)


SHELL = [sys.executable, "-m", "skiplora_fx.cli", "explain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    models.llama(2).config.save_pretrained(path)
    return str(path)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, check=False)


def test_the_command_reads_no_weights(folder: str) -> None:
    assert {path.name for path in Path(folder).iterdir()} <= {"config.json", "generation_config.json"}
    done = shell(folder, "--r", "2", "--length", "8", "--json")
    assert done.returncode == 0, done.stderr
    (graph,) = json.loads(done.stdout)["graphs"]
    assert [site["name"].rsplit(".", 1)[1] for site in graph["sites"]] == ["q_proj", "v_proj"] * 2
    assert {(site["rank"], site["shape"][1]) for site in graph["sites"]} == {(2, 8)}


def test_the_command_with_bad_input(folder: str) -> None:
    done = shell(folder, "--target-modules", "nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PEFT finds none of nonsense" in done.stderr
    assert "q_proj" in done.stderr
    assert "Traceback" not in done.stderr
