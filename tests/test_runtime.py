"""Thresholds in, ratios out: what is counted, when gates may shut, and whose state is whose."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lora_modules import Around, Linear, batch
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx import ConfigError, SiteState, UsageError, runtime
from skiplora_fx._torch_compat import dynamo_counters

SHARES_COMPILED = True
"""Every test compiles the same two small modules, so most find their code in Inductor's cache."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Two(nn.Module):
    """Two adapted layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = Linear(), Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.lower(x).relu())


def compiled(model: nn.Module | None = None, **options: Any) -> nn.Module:
    """Return a model, by default a :class:`Two`, that skips everything from the first step on unless told otherwise."""
    model = Two() if model is None else model
    model.compile(backend="skiplora", options={"threshold": math.inf, "warmup_steps": 0, "probe_every": 0, **options})
    return model


def step(model: nn.Module) -> None:
    model.zero_grad()
    model(batch()).sum().backward()


def skipped(model: nn.Module) -> list[bool]:
    return [site.skipped for site in skiplora_fx.sites(model)]


def has_gradient(model: nn.Module) -> bool:
    return any(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)


def steps_skipped(model: nn.Module, steps: int) -> list[bool]:
    """Return for each of so many backwards whether it skipped all adapters, as the gradients show it."""
    found = []
    for _ in range(steps):
        step(model)
        found.append(not has_gradient(model))
    return found


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)


def test_the_warm_up_keeps_every_gate_open() -> None:
    assert steps_skipped(compiled(warmup_steps=2), 4) == [False, False, True, True]


def test_probing_opens_every_gate_for_one_step_in_so_many() -> None:
    assert steps_skipped(compiled(probe_every=3), 6) == [True, True, False, True, True, False]


def test_without_an_optimizer_each_backward_is_a_step() -> None:
    model = compiled(warmup_steps=2)
    assert steps_skipped(model, 3) == [False, False, True]


def test_attached_to_an_optimizer_its_steps_are_counted() -> None:
    model = compiled(warmup_steps=2)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    found = []
    for _ in range(3):
        found += steps_skipped(model, 2)  # gradients accumulated over two backwards
        optimizer.step()
    assert found == [False, False, False, False, True, True]
    assert attachment.clock.steps == 3


def test_attaching_later_goes_on_counting() -> None:
    model = compiled(warmup_steps=3)
    assert steps_skipped(model, 2) == [False, False]
    attachment = skiplora_fx.attach(model, sgd(model))
    assert attachment.clock.steps == 2


def test_after_remove_backwards_count_again_one_each() -> None:
    model = compiled(warmup_steps=4)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)  # two sites, which shared the optimizer's clock: it has not stepped
    attachment.remove()
    shut = []
    for _ in range(6):
        step(model)
        shut.append(skipped(model)[0])
    assert shut == [False, False, False, False, True, True]


def test_an_adapter_used_twice_counts_a_backward_once() -> None:
    model = compiled(Around(lambda layer, x: layer(layer(x).relu())), warmup_steps=3)
    shut = []
    for _ in range(5):
        step(model)
        shut.append(skipped(model)[0])
    assert shut == [False, False, False, True, True]
    (backwards,) = {site.backwards for site in skiplora_fx.sites(model)}
    assert backwards == 5


def test_an_adapter_used_twice_has_the_larger_ratio() -> None:
    model = compiled(Around(lambda layer, x: layer(x) + layer(100 * x)), threshold=0.0)
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


def test_attach_takes_the_wrapper_of_an_optimizer() -> None:
    model, inner = compiled(), sgd(Two())

    class Wrapper:
        optimizer = inner

    with pytest.raises(UsageError, match="trains no parameter of this model"):
        skiplora_fx.attach(model, Wrapper())
    Wrapper.optimizer = sgd(model)
    assert skiplora_fx.attach(model, Wrapper()).clock.attached


def test_attach_refuses_what_is_no_optimizer() -> None:
    with pytest.raises(UsageError, match="got list"):
        skiplora_fx.attach(compiled(), [])


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


def test_a_new_threshold_holds_from_the_next_step_on_without_a_recompile() -> None:
    model = compiled()
    step(model)
    graphs = dynamo_counters["stats"]["unique_graphs"]
    for name, expected in (("upper", [True, False]), ("lower", [False, False])):
        skiplora_fx.set_threshold(model, 0.0, sites=name)
        step(model)
        assert skipped(model) == expected
    assert dynamo_counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("threshold", [-1, math.nan, "0.1"])
def test_a_bad_threshold_changes_nothing(threshold: Any) -> None:
    model = compiled()
    step(model)
    with pytest.raises(ConfigError, match="threshold must be a number >= 0"):
        skiplora_fx.set_threshold(model, threshold)
    assert [site.threshold for site in skiplora_fx.sites(model)] == [math.inf, math.inf]


def test_a_glob_that_matches_no_site_names_those_there_are() -> None:
    model = compiled()
    step(model)
    with pytest.raises(ConfigError, match=r"'\*.nowhere'. The sites are:\n  lower\n  upper"):
        skiplora_fx.set_threshold(model, 0.0, sites="*.nowhere")


def test_before_any_forward_no_site_is_known() -> None:
    model = compiled()
    assert skiplora_fx.sites(model) == []
    with pytest.raises(UsageError, match="no gated adapter is known yet"):
        skiplora_fx.set_threshold(model, 0.0)


def test_thresholds_by_glob_leave_the_other_sites_open() -> None:
    model = compiled(threshold={"low*": math.inf})
    step(model)
    assert [site.threshold for site in skiplora_fx.sites(model)] == [math.inf, 0.0]
    assert skipped(model) == [True, False]


class Stack(nn.Module):
    """Two layers that are compiled one by one."""

    def __init__(self, thresholds: dict[str, float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Two(), Two()])
        for layer in self.layers:
            compiled(layer, threshold=thresholds)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_globs_name_sites_of_the_whole_model_where_layers_are_compiled_one_by_one() -> None:
    model = Stack({"layers.0.*": math.inf, "layers.1.upper": math.inf, "*": 0.0})
    step(model)
    assert [(site.name, site.skipped) for site in skiplora_fx.sites(model)] == [
        ("layers.0.lower", True),
        ("layers.0.upper", True),
        ("layers.1.lower", False),
        ("layers.1.upper", True),
    ]


def test_a_mistyped_glob_is_reported_where_layers_are_compiled_one_by_one() -> None:
    with pytest.raises(Exception, match=r"no site matches the glob 'layer\.0\.\*'"):
        step(Stack({"layer.0.*": math.inf}))


def test_a_mistyped_glob_is_reported_where_a_break_leaves_several_graphs() -> None:
    class Broken(Two):
        def forward(self, x: Tensor) -> Tensor:
            x = self.lower(x)
            torch._dynamo.graph_break()
            return self.upper(x.relu())

    with pytest.raises(Exception, match="no site matches the glob 'uper'"):
        step(compiled(Broken(), threshold={"uper": 1.0, "lower": 1.0}))


def test_graphs_on_both_sides_of_a_break_have_each_their_site() -> None:
    class Broken(Two):
        def forward(self, x: Tensor) -> Tensor:
            x = self.lower(x)
            torch._dynamo.graph_break()
            return self.upper(x.relu())

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
    before = len(runtime._registry.sites)
    model = compiled()
    step(model)
    skiplora_fx.sites(model)  # what is not read yet keeps what it is to be written to
    assert len(runtime._registry.sites) == before + 2
    del model
    torch._dynamo.reset()
    gc.collect()
    assert len(runtime._registry.sites) == before


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
