"""What a graph that ``apply`` has gated remembers from step to step, and what of it several results share."""

from __future__ import annotations

import copy
import math

import torch
from lora_modules import Linear, batch
from test_apply import AT_ONCE, gated_linear, step

import skiplora_fx


def test_warm_up_and_probing() -> None:
    _, gated = gated_linear(threshold=math.inf, warmup_steps=2, probe_every=3)
    assert [step(gated).skipped for _ in range(7)] == [False, False, True, True, False, True, True]


def test_attach_counts_the_optimizers_steps() -> None:
    model, gated = gated_linear(threshold=math.inf, warmup_steps=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    skiplora_fx.attach(gated, optimizer)
    found = [step(gated).skipped for _ in range(3)]
    optimizer.step()
    assert [*found, step(gated).skipped] == [False, False, False, True]


def test_in_eval_mode_and_under_no_grad_nothing_is_gated_or_counted() -> None:
    model, gated = gated_linear(threshold=math.inf)
    gated.eval()
    assert step(gated).backwards == 0
    assert model.a.weight.grad is not None
    gated.train()
    with torch.no_grad():
        gated(batch())
    assert skiplora_fx.sites(gated)[0].backwards == 0
    assert step(gated).skipped


def test_each_forward_keeps_its_own_decisions() -> None:
    model, gated = gated_linear(threshold=0.0)
    x = batch()
    first = gated(x).sum()
    skiplora_fx.set_threshold(gated, math.inf)
    second = gated(x).sum()
    second.backward()
    assert model.a.weight.grad is None
    first.backward()
    assert model.a.weight.grad is not None
    assert skiplora_fx.sites(gated)[0].backwards == 2


def test_two_results_of_one_model_share_nothing_but_parameters() -> None:
    model, x = Linear(), batch()
    first = skiplora_fx.apply(model, x, threshold=0.0, **AT_ONCE)
    skiplora_fx.set_threshold(first, math.inf)
    second = skiplora_fx.apply(model, x, threshold=0.0, **AT_ONCE)
    waiting = skiplora_fx.apply(model, x, threshold=math.inf, warmup_steps=2, probe_every=0)
    skipped = []
    for _ in range(4):
        step(first)
        skipped.append([step(gated).skipped for gated in (second, waiting)])
    assert skipped == [[False, False], [False, False], [False, True], [False, True]]
    states = [skiplora_fx.sites(gated)[0] for gated in (first, second, waiting)]
    assert [(site.threshold, site.backwards, site.skipped) for site in states] == [
        (math.inf, 4, True),
        (0.0, 4, False),
        (math.inf, 4, True),
    ]
    assert skiplora_fx.sites(model) == []


def test_attach_counts_for_one_result_alone() -> None:
    model, x = Linear(), batch()
    options = {"threshold": math.inf, "warmup_steps": 1, "probe_every": 0}
    attached, other = (skiplora_fx.apply(model, x, **options) for _ in range(2))
    skiplora_fx.attach(attached, torch.optim.SGD(model.parameters(), 0.1))
    assert [(step(attached).skipped, step(other).skipped) for _ in range(2)] == [(False, False), (False, True)]


def test_two_backwards_of_one_forward_are_one_step() -> None:
    _, gated = gated_linear(threshold=0.0)
    loss = gated(batch()).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert skiplora_fx.sites(gated)[0].backwards == 1


def test_a_copy_has_a_state_of_its_own() -> None:
    _, gated = gated_linear(threshold=0.0)
    copied = copy.deepcopy(gated)
    step(copied)
    skiplora_fx.set_threshold(copied, math.inf)
    assert skiplora_fx.sites(gated)[0].backwards == 0
    assert not step(gated).skipped
    assert step(copied).skipped
