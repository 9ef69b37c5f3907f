"""decision="previous": what is decided before the forward holds for the whole step, and gradients stay exact."""

from __future__ import annotations

import math
import random

import models
import oracle
import pytest
import torch
from capture import QuickBackend
from lora_modules import Checkpointed, batch
from torch import Tensor, fx
from two_layers import Two, compiled, sgd, skipped, step

import skiplora_fx
from skiplora_fx.gate import GATE_BACKWARD

HELD = {"decision": "previous"}


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_gradients_equal_eager_detach(scope: str) -> None:
    torch.manual_seed(0)
    model = models.with_lora(models.llama(3), models.QV).double().train()
    inputs = models.tokens()
    backend = QuickBackend(scope, held=True)
    run = torch.compile(model, backend=backend)
    names = list(oracle.adapted_layers(model))
    draw = random.Random(1)
    for mask in [dict.fromkeys(names, True), dict.fromkeys(names, False)] + [
        {name: draw.random() < 0.5 for name in names} for _ in range(4)
    ]:
        backend.set_mask(mask)
        found = oracle.gradients(model, lambda: run(**inputs).loss)
        with oracle.detached(model, scope, mask):
            wanted = oracle.gradients(model, lambda: model(**inputs).loss)
        torch.testing.assert_close(found, wanted)
        assert backend.only.decisions(names) == mask


def test_decisions_do_not_wait_for_the_ratios() -> None:
    model = Two().train()
    backend = QuickBackend(held=True)
    torch.compile(model, backend=backend)(batch()).sum().backward()
    graph = backend.only.stages["fold_gates", "joint"]
    (decisions,) = {node.args[1] for node in graph.find_nodes(op="call_function", target=GATE_BACKWARD)}
    assert isinstance(decisions, fx.Node)
    assert {node.op for node in decisions.all_input_nodes} == {"placeholder"}
    assert decisions.meta["val"].device.type == "cpu"


def test_the_last_ratio_decides() -> None:
    model = compiled(threshold=math.inf, **HELD)
    step(model)
    assert skipped(model) == [True, True]
    last = [site.ratio for site in skiplora_fx.sites(model)]
    between = sum(last) / 2
    skiplora_fx.set_threshold(model, between)
    step(model)
    assert skipped(model) == [ratio < between for ratio in last]


def test_a_threshold_is_compared_in_float32() -> None:
    model = compiled(threshold=math.inf, **HELD)
    step(model)
    for site in skiplora_fx.sites(model):
        skiplora_fx.set_threshold(model, math.nextafter(site.ratio, math.inf), site.name)
    step(model)
    assert skipped(model) == [False, False]


def test_a_site_without_a_ratio_is_open() -> None:
    model = compiled(threshold=0.5, **HELD)
    step(model)
    assert skipped(model) == [False, False]


class Alternating:
    """Shuts everything in odd steps."""

    def decide(self, observation: skiplora_fx.policy.Observation) -> list[float]:
        return [math.inf if observation.step % 2 else 0.0] * len(observation.sites)


@pytest.mark.parametrize("decision", ["previous", "current"])
def test_all_micro_batches_of_a_step_are_alike(decision: str) -> None:
    model = compiled(policy=Alternating(), decision=decision)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    found = []
    for _ in range(4):
        for _ in range(3):
            step(model)
            found.append(skipped(model)[0])
        optimizer.step()
    assert found == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3


def test_thresholds_between_hold_for_the_step() -> None:
    """Under "current" the same run would decide by each micro-batch's own ratio."""
    model = compiled(threshold=math.inf, **HELD)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    step(model)
    optimizer.step()
    last = [site.ratio for site in skiplora_fx.sites(model)]
    between = sum(last) / 2
    skiplora_fx.set_threshold(model, between)
    for scale in (1.0, 100.0, 0.01):  # a bias in the frozen layer makes the ratio depend on the input's size
        model.zero_grad()
        model(batch() * scale).sum().backward()
        assert skipped(model) == [ratio < between for ratio in last]


def test_layers_that_share_a_graph_decide_each_for_itself() -> None:
    model = Two().train()
    options = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0, **HELD}
    for layer in (model.lower, model.upper):
        layer.compile(backend="skiplora", options=options)
    x = batch().requires_grad_()
    model(x).sum().backward()
    skiplora_fx.set_threshold(model, 0.0, sites="upper")
    model.zero_grad()
    model(x).sum().backward()
    assert skipped(model) == [True, False]


def test_in_checkpointed_layers() -> None:
    model = Checkpointed().double().train()
    backend = QuickBackend(held=True)
    run = torch.compile(model, backend=backend)
    x = batch().double().requires_grad_()

    def gradients(call: torch.nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        call(x).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    run(x).sum().backward()
    torch.testing.assert_close(gradients(run), gradients(model))
    backend.set_mask({"layers.0": False, "layers.1": True})
    found = gradients(run)
    assert not any(bool(g.any()) for name, g in found.items() if name.startswith("layers.0"))
    assert any(bool(g.any()) for name, g in found.items() if name.startswith("layers.1"))


def test_with_apply() -> None:
    model, x = Two().train(), batch()
    gated = skiplora_fx.apply(model, x, threshold=math.inf, warmup_steps=0, probe_every=0, **HELD)
    gated(x).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    last = [site.ratio for site in skiplora_fx.sites(gated)]
    between = sum(last) / 2
    skiplora_fx.set_threshold(gated, between)
    for run in (gated, torch.compile(gated, backend="aot_eager")):
        model.zero_grad()
        run(x).sum().backward()
        assert [site.skipped for site in skiplora_fx.sites(gated)] == [ratio < between for ratio in last]
