"""scope="input": a shut gate detaches what its layer reads; every adapter trains, and no product with W goes down."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import models
import oracle
import pytest
import torch
from capture import QuickBackend, dynamo_call
from lora_modules import Linear, batch
from test_gradients_quick import assert_same_gradients, in_float64, loss_of
from test_work_not_done import products_in_backward
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from two_layers import compiled, sgd, skipped, step

import skiplora_fx
from skiplora_fx.passes import find_lora
from skiplora_fx.policy import CyclicBlocks

SHARES_COMPILED = True
INPUT = {"scope": "input", "decision": "previous", "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
INNER = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def llama(targets: Any = models.ALL_LINEAR, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return models.with_lora(models.llama(layers), targets).train()


def shut(model: nn.Module, names: list[str]) -> None:
    for site in skiplora_fx.sites(model):
        skiplora_fx.set_threshold(model, math.inf if site.name in names else 0.0, site.name)


def check(gated: nn.Module, eager: nn.Module, mask: oracle.Mask, owner: nn.Module | None = None) -> None:
    """Check a step under a mask against eager ``layer(x.detach())``, and what the sites say of it.

    Args:
        gated: what runs.
        eager: the same without gates.
        mask: which gates are open.
        owner: whose parameters those of ``gated`` are, if not its own.
    """
    shut(gated, [name for name, is_open in mask.items() if not is_open])
    found = oracle.gradients(owner or gated, lambda: gated(**models.tokens()).loss)
    with oracle.detached(eager, "input", mask):
        expected = oracle.gradients(eager, lambda: eager(**models.tokens()).loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert {site.name: not site.skipped for site in skiplora_fx.sites(gated)} == mask


looks_at_pair = pytest.mark.xdist_group("input_scope")  # another worker would compile it again


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[nn.Module, nn.Module]]:
    eager = llama(models.QV)
    gated = copy.deepcopy(eager)
    gated.compile(backend="skiplora", options={**INPUT, "strict": True})
    products_in_backward(gated)
    yield eager, gated
    torch.compiler.reset()


@looks_at_pair
def test_gradients_of_compiled_code_under_every_mask(pair: tuple[nn.Module, nn.Module]) -> None:
    eager, gated = pair
    names = list(oracle.adapted_layers(eager))
    for opens in itertools.product([True, False], repeat=len(names)):
        mask = dict(zip(names, opens, strict=True))
        check(gated, eager, mask)
        assert [not site.skipped for site in skiplora_fx.sites(gated)] == list(opens)


def test_gradients_where_each_block_is_compiled_by_itself() -> None:
    eager = llama(("q_proj", "v_proj", "down_proj"), layers=3)
    gated = copy.deepcopy(eager)
    for block in gated.get_base_model().model.layers:
        block.compile(backend="skiplora", options={**INPUT, "strict": True})
    gated(**models.tokens()).loss.backward()
    names = list(oracle.adapted_layers(eager))
    for mask in (
        dict.fromkeys(names, True),
        dict.fromkeys(names, False),
        {name: ".layers.1." not in name for name in names},
        {name: not name.endswith(INNER) for name in names},
        {name: place % 3 > 0 for place, name in enumerate(names)},
    ):
        check(gated, eager, mask)


@looks_at_pair
@pytest.mark.parametrize("chosen", [("q_proj",), ("q_proj", "v_proj")], ids=str)
def test_a_shut_gate_runs_two_products_fewer(pair: tuple[nn.Module, nn.Module], chosen: tuple[str, ...]) -> None:
    """Those of W and of A, in the upper layer: the lower one reads what wants no gradient."""
    _, gated = pair
    shut(gated, [])
    whole = products_in_backward(gated)
    shut(gated, [site.name for site in skiplora_fx.sites(gated) if site.name.endswith(chosen)])
    left = products_in_backward(gated)
    assert left == {**whole, "products": whole["products"] - 2 * len(chosen)}


@pytest.mark.parametrize("targets", [models.QV, models.ALL_LINEAR], ids=["q and v", "all"])
def test_gradients_of_an_applied_graph(targets: Any) -> None:
    model = llama(targets)
    names = list(oracle.adapted_layers(model))
    gated = skiplora_fx.apply(torch.export.export(model, (), models.tokens()), **INPUT)
    for mask in (
        dict.fromkeys(names, True),
        dict.fromkeys(names, False),
        {name: not name.endswith(INNER) for name in names},
        {name: place % 3 > 0 for place, name in enumerate(names)},
    ):
        check(gated, model, mask, owner=model)
    assert [site.backwards for site in skiplora_fx.sites(gated)] == [4] * len(names)


def test_an_applied_graph_runs_no_product_for_a_detached_input() -> None:
    model = llama()
    gated = skiplora_fx.apply(torch.export.export(model, (), models.tokens()), **INPUT)
    mask = {name: not name.endswith(INNER) for name in oracle.adapted_layers(model)}
    shut(gated, [name for name, is_open in mask.items() if not is_open])
    found = products_in_backward(gated)
    with oracle.detached(model, "input", mask):
        assert found == products_in_backward(model)


def test_an_applied_graph_decides_alike_when_it_is_repeated_for_the_backward() -> None:
    model = llama(models.QV)
    policy = CyclicBlocks(share=0.5)
    gated = skiplora_fx.apply(torch.export.export(model, (), models.tokens()), **{**INPUT, "policy": policy})
    inputs = models.tokens()
    for number in range(1, 4):
        loss = checkpoint(lambda: gated(**inputs).loss, use_reentrant=False)
        loss.backward()
        assert [site.backwards for site in skiplora_fx.sites(gated)] == [number] * 4
        assert [site.skipped for site in skiplora_fx.sites(gated)] == ([False] * 2 + [True] * 2)[
            :: (-1) ** (number - 1)
        ]


def test_chained_adapters_share_the_frozen_layers_gate() -> None:
    def build() -> nn.Module:
        model = llama(models.QV)
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
        models.randomise_b(model)
        return in_float64(model)

    eager, gated = build(), build()
    backend = QuickBackend("input", held=True)
    gated.compile(backend=backend)
    loss_of(gated, {})
    sites, layers = backend.only.findings.sites, oracle.adapted_layers(eager)
    for opens in (
        [True] * 8,
        [False] * 8,
        [True, False] * 4,
        [False, True, True, True] * 2,
        [False, False, True, False] * 2,
    ):
        backend.only.thresholds.copy_(torch.tensor([0.0 if open else math.inf for open in opens]))
        found = oracle.gradients(gated, lambda: loss_of(gated, {}))
        closed = [site for site, open in zip(sites, opens, strict=True) if not open]
        modules = [layers[site.name].lora_A[site.adapter] for site in closed]
        names = [site.name for site in closed]
        modules += [layers[name].base_layer for name in set(names) if names.count(name) == 2]
        handles = [module.register_forward_pre_hook(lambda module, inputs: inputs[0].detach()) for module in modules]
        expected = oracle.gradients(eager, lambda: loss_of(eager, {}))
        for handle in handles:
            handle.remove()
        assert_same_gradients(found, expected)


def test_where_a_layer_reads_its_input() -> None:
    call = dynamo_call(llama(("q_proj",), layers=1), **models.tokens())
    (site,) = find_lora(call.gm).sites
    (read,), (beside,) = site.reads, site.layer_reads
    assert read.source is beside.source
    assert beside.reader is site.h


class WrittenBetween(nn.Module):
    """What the frozen layer reads is overwritten before the adapter reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.first, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.shut = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * 1.0
        h = self.base(x.detach() if self.shut else x)
        x.neg_()
        return h + self.b(self.a(x.detach() if self.shut else x)) + x


@pytest.mark.parametrize("closed", [False, True])
def test_an_input_that_is_written_between_its_reads(closed: bool) -> None:
    model, x = WrittenBetween(), torch.randn(3, 8)
    backend = QuickBackend("input", held=True)
    run = torch.compile(model, backend=backend)
    out = run(x)
    backend.only.thresholds.fill_(math.inf if closed else 0.0)
    torch.testing.assert_close(out, model(x))
    found = oracle.gradients(model, lambda: run(x).sin().sum())
    torch._dynamo.reset()
    model.shut = closed
    torch.testing.assert_close(found, oracle.gradients(model, lambda: model(x).sin().sum()))


def test_what_is_below_a_shut_layer_alone_gets_zeros_and_its_own_adapter_trains() -> None:
    model = compiled(scope="input", decision="previous")
    step(model)
    assert skipped(model) == [True, True]
    grads = {name: bool(p.grad.any()) for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, any_ in grads.items() if any_} == {"upper.a.weight", "upper.b.weight"}


def test_the_gradient_norm_is_that_of_all_that_trains(tmp_path: Any) -> None:
    model = compiled(scope="input", decision="previous")
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=tmp_path / "log.jsonl")
    step(model)
    expected = math.hypot(*(float(p.grad.norm()) for p in model.parameters() if p.grad is not None))
    optimizer.step()
    assert attachment.grad_norm() == pytest.approx(expected, rel=1e-5)
    attachment.remove()


def test_explain_counts_what_runs() -> None:
    model, inputs = llama(), models.tokens()
    names = list(oracle.adapted_layers(model))
    only = [f"*.{name}" for name in INNER]
    found = skiplora_fx.explain(model, **inputs, options={"scope": "input", "decision": "previous", "only": only})
    # A frozen product for each of 24 tokens: 2 · 24 · 32 · 48 FLOPs, and the adapter's own, 2 · 24 · 4 · 32.
    saves = {site.name: site.saves for site in found.graphs[0].sites}
    gate = next(name for name in names if name.endswith("layers.1.mlp.gate_proj"))
    assert saves[gate] == 2 * 24 * (32 * 48 + 4 * 32)
    taken = skiplora_fx.diff(model, kwargs=inputs, scope="input", decision="previous")
    left = taken.what_if({f"*.{name}": False for name in INNER}).share
    assert 1 - left == pytest.approx(found.best_cases["threshold"])


def test_eval_gates_nothing_in_what_a_checkpoint_repeats() -> None:
    """It is repeated in a backward, as a training forward is, which takes the decisions that it took before."""
    gated = skiplora_fx.apply(Linear(), batch(), **{**INPUT, "threshold": math.inf})
    for training in (True, False):
        gated.train(training)
        x = batch().requires_grad_()
        checkpoint(gated, x, use_reentrant=False).sum().backward()
        assert (x.grad is not None and bool(x.grad.any())) is not training


def test_budget_keeps_to_its_target() -> None:
    model = compiled(
        llama(),
        policy="budget",
        policy_kwargs={"target": 0.9, "every": 1},
        **{"scope": "input", "decision": "previous", "only": [f"*.{name}" for name in INNER]},
    )
    for _ in range(3):
        model(**models.tokens()).loss.backward()
    sites = skiplora_fx.sites(model)
    mask = {site.name: not site.skipped for site in sites}
    assert any(site.skipped for site in sites)
    assert all(is_open for name, is_open in mask.items() if name.endswith(("o_proj", "down_proj")))
    taken = skiplora_fx.diff(llama(), kwargs=models.tokens(), scope="input", decision="previous")
    assert taken.what_if(mask).share <= 0.9
