"""Ratios come out: what is counted, in training and in eval mode, and whose state is whose."""

from __future__ import annotations

import concurrent.futures
import gc
import math
import threading

import pytest
import torch
from lora_modules import Around, Linear, batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from two_layers import Broken, Two, compiled, has_gradient, skipped, step, steps_skipped

import skiplora_fx
from skiplora_fx import SiteState, registry
from skiplora_fx._torch_compat import dynamo_counters


def test_an_adapter_used_twice_has_the_larger_ratio() -> None:
    model = compiled(Around(lambda layer, x: layer(100 * x) + layer(x)), threshold=0.0)
    with torch.no_grad():
        model.layer.base.bias.fill_(10.0)
    x = batch()
    model(x).sum().backward()
    with torch.no_grad():
        ratios = [float(model.layer.delta(y).norm() / model.layer.base(y).norm()) for y in (x, 100 * x)]
    assert ratios[0] < ratios[1]
    (site,) = skiplora_fx.sites(model)
    assert site.ratio == pytest.approx(ratios[1], rel=1e-5)


class Wrapper(nn.Module):
    """A module that stays in training mode around a model that does not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize("kind", ["function", "module"])
def test_a_model_in_eval_mode_is_not_gated_whoever_calls_it(kind: str) -> None:
    model = Two()
    wrapper = Wrapper(model)
    model.eval()
    options = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0}

    def function(x: Tensor) -> Tensor:
        return model(x)

    run = torch.compile(function if kind == "function" else wrapper, backend="skiplora", options=options)
    run(batch()).sum().backward()
    assert has_gradient(model)
    assert {site.backwards for site in skiplora_fx.sites(model)} == {0}
    model.train().zero_grad()
    run(batch()).sum().backward()
    assert not has_gradient(model)
    assert [(site.skipped, site.backwards) for site in skiplora_fx.sites(model)] == [(True, 1)] * 2


def test_a_teacher_in_eval_mode_does_not_keep_the_student_from_being_gated() -> None:
    teacher, student = Two().eval().requires_grad_(False), Two()

    def distance(x: Tensor) -> Tensor:
        return (teacher(x) - student(x)).square().sum()

    options = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0}
    torch.compile(distance, backend="skiplora", options=options)(batch()).backward()
    assert skipped(student) == [True, True]


def test_names_are_those_of_named_modules() -> None:
    model = nn.ModuleDict({"inner": Two()})
    compiled(model["inner"])
    step(model["inner"])
    paths = dict(model.named_modules())
    names = [site.name for site in skiplora_fx.sites(model)]
    assert names == ["inner.lower", "inner.upper"]
    assert all(isinstance(paths[name], Linear) for name in names)


def test_the_ratio_is_that_of_the_last_forward_with_a_backward() -> None:
    model = compiled(Around(lambda layer, x: layer(x)))
    x = batch()
    model(x).sum().backward()
    with torch.no_grad():
        expected = model.layer.delta(x).norm() / model.layer.base(x).norm()
    model(100 + batch())  # no backward follows
    assert skiplora_fx.sites(model)[0].ratio == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_counted() -> None:
    model = compiled(Around(lambda layer, x: layer(x)), warmup_steps=2)
    step(model)
    assert skiplora_fx.sites(model)[0].skip_rate == 0.0
    for _ in range(3):
        step(model)
    skiplora_fx.set_threshold(model, 0.0)
    step(model)
    (site,) = skiplora_fx.sites(model)
    assert (site.backwards, site.skipped, site.skip_rate) == (5, False, pytest.approx(2 / 3))


def test_before_the_first_backward_there_is_no_ratio() -> None:
    model = compiled(Around(lambda layer, x: layer(x)))
    model(batch())
    (site,) = skiplora_fx.sites(model)
    assert math.isnan(site.ratio)
    assert (site.backwards, site.skipped, site.skip_rate) == (0, False, 0.0)


def test_two_forwards_before_their_backwards_count_twice() -> None:
    model = compiled(Around(lambda layer, x: layer(x)))
    (model(batch()).sum() + model(batch()).sum()).backward()
    assert skiplora_fx.sites(model)[0].backwards == 2


def test_eval_gates_nothing_and_counts_nothing() -> None:
    model = compiled()
    step(model)
    before = skiplora_fx.sites(model)
    model.eval()
    assert steps_skipped(model, 2) == [False, False]
    with torch.no_grad():
        model(batch())
    assert skiplora_fx.sites(model) == before
    model.train()
    assert steps_skipped(model, 1) == [True]


def test_eval_gates_nothing_in_what_a_checkpoint_repeats() -> None:
    """It is repeated in a backward, as a training forward is, which takes the decisions that it took before."""
    model = compiled(Linear())
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        checkpoint(model, batch().requires_grad_(), use_reentrant=False).sum().backward()
        assert has_gradient(model) is not training


def test_graphs_on_both_sides_of_a_break_have_each_their_site() -> None:
    model = compiled(Broken())
    step(model)
    assert [site.name for site in skiplora_fx.sites(model)] == ["lower", "upper"]
    assert skipped(model) == [True, True]
    assert not has_gradient(model)


def test_layers_that_share_a_graph_have_each_their_state() -> None:
    model = Two()
    for layer in (model.lower, model.upper):
        compiled(layer)
    before = dynamo_counters["stats"]["unique_graphs"]
    step(model)  # two graphs: the first layer's input needs no gradient
    step(model)
    assert dynamo_counters["stats"]["unique_graphs"] - before == 2
    skiplora_fx.set_threshold(model, 0.0, sites="lower")
    step(model)
    assert skipped(model) == [False, True]


def test_two_models_share_nothing() -> None:
    one, other = compiled(), compiled()
    step(one)
    step(other)
    skiplora_fx.set_threshold(one, 0.0)
    step(one)
    step(other)
    assert (skipped(one), skipped(other)) == ([False, False], [True, True])
    assert [site.backwards for site in skiplora_fx.sites(one)] == [2, 2]


def test_state_goes_with_the_model() -> None:
    gc.collect()
    before = len(list(registry._registry.sites.parameters()))
    model = compiled()
    step(model)
    skiplora_fx.sites(model)  # what is not read yet keeps what it is to be written to
    assert len(list(registry._registry.sites.parameters())) == before + 2
    del model
    torch._dynamo.reset()
    gc.collect()
    assert len(list(registry._registry.sites.parameters())) == before


def test_compiled_anew_under_other_options_a_site_starts_afresh() -> None:
    model = compiled()
    step(model)
    torch._dynamo.reset()
    compiled(model, threshold=0.0)
    step(model)
    found = skiplora_fx.sites(model)
    assert all(isinstance(site, SiteState) for site in found)
    assert [(site.threshold, site.backwards, site.skipped) for site in found] == [(0.0, 1, False)] * 2


def test_what_was_frozen_since_is_listed_no_more() -> None:
    model = compiled(Around(lambda layer, x: layer(x)))
    step(model)
    model.layer.a.weight.requires_grad_(False)  # from here on the site is known by B
    step(model)
    assert [(site.name, site.backwards) for site in skiplora_fx.sites(model)] == [("layer", 1)]
    model.layer.requires_grad_(False)
    assert skiplora_fx.sites(model) == []


def test_what_another_thread_is_reading_is_waited_for() -> None:
    begun, may_end = threading.Event(), threading.Event()
    read: list[bool] = []

    def slowly() -> None:
        begun.set()
        read.append(may_end.wait(60))

    registry.leave_to_read(slowly)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threads.submit(registry.flush)
        assert begun.wait(60)
        found = threads.submit(lambda: (registry.flush(), list(read))[1])
        concurrent.futures.wait([found], timeout=0.2)  # long enough to come back too soon
        may_end.set()
        assert found.result() == [True]
