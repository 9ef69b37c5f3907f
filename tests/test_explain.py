"""``explain`` says what is gated and what not, and counts what each gate saves as the compiled backward would run."""

from __future__ import annotations

import itertools
import json
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
from transformers import MixtralConfig, MixtralForCausalLM

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
    assert (explained.captured, explained.breaks, explained.outside) == (1, (), ())


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
    found = skiplora_fx.explain(model, **inputs, options={"scope": scope})
    (graph,) = found.graphs
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
    shut = {
        "every adapter skipped": range(number),
        "the first half skipped": range(number // 2),
        "the last half skipped": range(number // 2, number),
        "every other one skipped": range(0, number, 2),
    }
    assert found.masks == {case: pytest.approx(1 - run(set(sites)) / run(set())) for case, sites in shut.items()}


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


def test_the_experts_of_a_mixture_are_counted() -> None:
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=models.VOCABULARY,
        num_local_experts=4,
    )
    model = models.with_lora(MixtralForCausalLM._from_config(config, experts_implementation="grouped_mm"))
    (graph,) = skiplora_fx.explain(model.train(), **models.tokens()).graphs
    assert not any("mm" in name for name in graph.uncounted)


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


def test_checkpointed_layers() -> None:
    (graph,) = skiplora_fx.explain(Checkpointed(), batch().requires_grad_()).graphs
    assert [site.name for site in graph.sites] == ["layers.0", "layers.1"]


def test_an_input_that_wants_a_gradient_is_named() -> None:
    """Transformers' hook for activation checkpointing makes the embedding's output one."""
    torch.manual_seed(0)
    model = models.with_lora(models.llama(2)).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = skiplora_fx.explain(model, **models.tokens())
    assert [len(graph.wanted) for graph in found.graphs if graph.sites] == [1]
    assert "is no parameter and wants a gradient itself" in str(found)
    assert found.masks["the first half skipped"] < 0.05
    model.get_base_model().disable_input_require_grads()
    without = skiplora_fx.explain(model, **models.tokens())
    assert [graph.wanted for graph in without.graphs] == [()]
    assert "wants a gradient" not in str(without)
    assert without.masks["the first half skipped"] > 0.4


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


def test_any_number_of_calls_leaves_room_in_the_caches_of_dynamo() -> None:
    model = Linear()
    many = torch._dynamo.config.recompile_limit + 2
    assert all(skiplora_fx.explain(model, batch(rows)).graphs[0].sites for rows in range(2, 2 + many))
    model.compile(backend="skiplora", options={"warmup_steps": 0})
    model(batch()).sum().backward()
    assert [state.backwards for state in skiplora_fx.sites(model)] == [1]


@pytest.mark.skipif(torch.__version__ < "2.13", reason="isolate_recompiles is new in torch 2.13")
def test_a_compiled_model_does_not_compile_again_because_of_it() -> None:
    model = Linear()
    model.compile(backend="eager")
    model(batch())
    for rows in range(2, 12):
        skiplora_fx.explain(model, batch(rows))
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    model(batch())
    assert graphs["unique_graphs"] == before
    model(batch(20))  # its recompile limit is untouched
    assert graphs["unique_graphs"] == before + 1


def test_in_inference_mode() -> None:
    model, x = Linear(), batch()
    with torch.inference_mode():
        found = skiplora_fx.explain(model, x)
    assert len(found.graphs[0].sites) == 1


def test_an_exported_program() -> None:
    found = skiplora_fx.explain(torch.export.export(Linear(), (batch(),)), batch())
    assert len(found.graphs[0].sites) == 1


def test_a_graph_that_is_gated_already() -> None:
    model = Linear()
    (graph,) = skiplora_fx.explain(skiplora_fx.apply(model, batch()), batch()).graphs
    assert graph.sites == ()
    assert [(miss.name, miss.family) for miss in graph.rejections] == [
        ("a.weight", "already gated"),
        ("b.weight", "already gated"),
    ]
    assert graph.backward == skiplora_fx.explain(model, batch()).backward


def test_on_the_meta_device_nothing_is_computed() -> None:
    with torch.device("meta"):
        model, x = Linear().train(), batch()
    (graph,) = skiplora_fx.explain(model, x).graphs
    assert (graph.sites[0].name, graph.sites[0].shape) == ("", (3, WIDE))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_json_has_all_of_it(explained: Explanation) -> None:
    read = json.loads(explained.to_json())
    assert read["backward"] == explained.backward
    assert read["best_cases"] == explained.best_cases
    assert [site["saves"] for site in read["graphs"][0]["sites"]] == [site.saves for site in explained.graphs[0].sites]


def test_shares_are_of_all_graphs(explained: Explanation) -> None:
    shares = explained.masks
    assert shares["every adapter skipped"] == 1.0
    assert shares["the first half skipped"] > shares["the last half skipped"]


class Attending(nn.Module):
    """A layer whose adapter PEFT merges and unmerges in each forward, which AOTAutograd refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


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
        (
            lambda: skiplora_fx.explain(peft(Attending(), ["attention"]), batch()),
            UsageError,
            r"torch.compile fails on PeftModel, whatever .* AssertionError: Encountered a set_ .* in the graph\.$",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_names_are_shown_as_text() -> None:
    evil = "evil\x1b[2J"
    model = nn.Sequential()
    model.add_module(evil, Linear())
    model.add_module(f"{evil} head", nn.Linear(WIDE, 2))
    shown = str(skiplora_fx.explain(model, batch()))
    assert shown.count("evil\\x1b[2J") == 3  # a site, and a weight and a bias that train
    assert "\x1b" not in shown


def test_a_model_in_which_nothing_trains() -> None:
    found = skiplora_fx.explain(Linear().requires_grad_(False), batch())
    assert found.graphs == ()
    assert found.backward == 0
    assert "Nothing is gated." in str(found)
