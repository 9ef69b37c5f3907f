"""An optimizer counts a model's steps: whatever trains later, whoever was attached before, whatever it was given."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_modules import Linear, batch
from torch import Tensor, nn
from two_layers import Two, compiled, sgd, skipped, step

import skiplora_fx
from skiplora_fx import ConfigError
from skiplora_fx.policy import Observation

NONE = {"skipped_grad": "none"}


def adapters(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


def test_what_trains_only_later_is_counted_and_dropped_too() -> None:
    model = compiled(**NONE)
    later = adapters(model.lower)
    for parameter in later:
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD([*later, *adapters(model.upper)], lr=0.1)
    attachment = skiplora_fx.attach(model, optimizer)
    step(model)
    optimizer.step()
    for parameter in later:
        parameter.requires_grad_(True)
    step(model)
    optimizer.step()
    assert all(parameter.grad is None for parameter in later)
    assert [site.clock is attachment.clock for site in attachment.sites()] == [True, True]
    assert attachment.clock.steps == 2


def test_an_adapter_that_is_added_later_is_counted_too() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Linear()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    grown = compiled(Growing(), **NONE)
    optimizer = torch.optim.SGD(adapters(grown), lr=0.1)
    attachment = skiplora_fx.attach(grown, optimizer)
    step(grown)
    optimizer.step()
    grown.layers.append(Linear())
    optimizer.add_param_group({"params": adapters(grown.layers[1])})
    step(grown)
    optimizer.step()
    assert all(parameter.grad is None for parameter in adapters(grown.layers[1]))
    assert [saved["name"] for saved in attachment.state_dict()["controllers"][0]["sites"]] == ["layers.0", "layers.1"]


def test_the_last_attached_counts_alone(tmp_path: Path) -> None:
    model = compiled()
    first, second = sgd(model), sgd(model)
    before = skiplora_fx.attach(model, first, log=tmp_path / "first.jsonl")
    step(model)
    first.step()
    after = skiplora_fx.attach(model, second)
    step(model)
    first.step()
    second.step()
    assert (before.clock.steps, after.clock.steps) == (1, 2)
    assert list(before.clock.controllers()) == []
    steps = [
        line for line in map(json.loads, (tmp_path / "first.jsonl").read_text().splitlines()) if "loss" not in line
    ]
    assert sum("step" in line for line in steps) == 1


class ShutAfter:
    """Opens everything the first time that it is asked, and shuts it from then on."""

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, observation: Observation) -> list[float]:
        self.asked += 1
        return [0.0 if self.asked == 1 else math.inf] * len(observation.sites)


@pytest.mark.parametrize("left_out", [True, False])
def test_a_step_that_was_left_out_leaves_nothing_to_the_next(left_out: bool) -> None:
    """As a GradScaler does when it meets an infinite gradient: the optimizer is not asked to step."""
    model = compiled(policy=ShutAfter(), **NONE)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    step(model)  # open
    if left_out:
        model.zero_grad()
    site, *_ = skiplora_fx.live.live_sites(model)
    site.controller.forget()
    model(batch()).sum().backward()  # shut
    assert skipped(model) == [True, True]
    optimizer.step()
    assert [parameter.grad is None for parameter in adapters(model)] == [left_out] * 4


def test_gradients_that_a_closure_computes_are_dropped_before_the_optimizer_reads_them() -> None:
    model = compiled(**NONE)
    optimizer = torch.optim.AdamW(adapters(model), lr=0.1, weight_decay=0.5)
    attachment = skiplora_fx.attach(model, optimizer)
    before = [parameter.detach().clone() for parameter in adapters(model)]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch()).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert optimizer.step(closure=closure) is not None
    assert all(parameter.grad is None for parameter in adapters(model))
    torch.testing.assert_close(before, [parameter.detach() for parameter in adapters(model)], rtol=0, atol=0)
    assert attachment.clock.steps == 2


def test_thresholds_set_in_the_middle_of_a_step() -> None:
    for decision, shut in (("current", True), ("previous", False)):
        model = compiled(threshold=0.0, decision=decision)
        optimizer = sgd(model)
        skiplora_fx.attach(model, optimizer)
        step(model)
        skiplora_fx.set_threshold(model, math.inf)
        step(model)
        assert skipped(model) == [shut, shut], decision
        optimizer.step()
        step(model)
        assert skipped(model) == [True, True], decision


def test_measured_gradients_are_not_held_on_to(tmp_path: Path) -> None:
    model = compiled(threshold=0.0)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=tmp_path / "log.jsonl")
    step(model)
    gradient = weakref.ref(model.lower.a.weight.grad)
    optimizer.step()
    model.zero_grad()
    gc.collect()
    assert gradient() is None
    assert attachment.grad_norm() > 0


class TwoParts(nn.Module):
    """Two parts, compiled under different options."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Two(), Two()
        options = {"warmup_steps": 0, "probe_every": 0}
        self.encoder.compile(backend="skiplora", options={**options, "policy": "quantile"})
        self.decoder.compile(backend="skiplora", options={**options, "policy": "progressive"})

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_the_policies_of_both_parts_are_saved() -> None:
    model = TwoParts()
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    state = json.loads(json.dumps(attachment.state_dict()))
    assert [saved["policy"] for saved in state["controllers"]] == ["Quantile", "Progressive"]
    other = TwoParts()
    resumed = skiplora_fx.attach(other, sgd(other))
    resumed.load_state_dict(state)
    step(other)
    assert [site.backwards for site in skiplora_fx.sites(other)] == [2] * 4
    assert len(resumed.sites()) == 4


def test_a_checkpoint_is_taken_once_and_a_new_threshold_option_holds() -> None:
    model = compiled(threshold=0.1)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    skiplora_fx.set_threshold(model, 0.7, sites="upper")
    state = attachment.state_dict()
    other = compiled(threshold=0.2)
    resumed = skiplora_fx.attach(other, sgd(other))
    resumed.load_state_dict(state)
    step(other)
    assert [(site.threshold, site.backwards) for site in skiplora_fx.sites(other)] == [(0.2, 2), (0.7, 2)]
    other.compile(backend="skiplora", options={"threshold": 0.3, "warmup_steps": 0})
    step(other)
    assert [(site.threshold, site.backwards) for site in skiplora_fx.sites(other)] == [(0.3, 1)] * 2


WRONG = [
    (lambda state: [], "it is a list"),
    (lambda state: {**state, "format": 1}, "its format is 1, and this version writes 2"),
    (lambda state: {**state, "steps": -1}, "its number of steps is -1"),
    (lambda state: {**state, "controllers": {}}, "its controllers are a dict"),
    (lambda state: {**state, "controllers": [{"policy": "Threshold"}]}, "a controller in it is"),
    (lambda state: _with_site(state, mean="much"), "mean of lower in it is 'much'"),
    (lambda state: _with_site(state, ratio=[1.0]), "ratio of lower in it is"),
    (lambda state: _with_site(state, backwards=None), "backwards of lower in it is None"),
    (lambda state: _with_site(state, name=None), "name of None in it is None"),
]


def _with_site(state: dict[str, Any], **changed: Any) -> dict[str, Any]:
    (controller,) = state["controllers"]
    first, *others = controller["sites"]
    return {**state, "controllers": [{**controller, "sites": [{**first, **changed}, *others]}]}


@pytest.mark.parametrize(("spoil", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_a_state_that_is_none_is_refused_and_changes_nothing(spoil: Any, reason: str) -> None:
    model = compiled(threshold=0.0)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    before = attachment.state_dict()
    with pytest.raises(
        ConfigError, match=rf"this is not what Attachment.state_dict\(\) of this version returns: {reason}"
    ):
        attachment.load_state_dict(spoil(json.loads(json.dumps(before))))
    assert attachment.state_dict() == before


@pytest.mark.parametrize("policy", ["progressive", "quantile", "budget"])
@pytest.mark.parametrize("met", [True, False])
def test_a_policys_state_that_is_none_is_refused_and_changes_nothing(policy: str, met: bool) -> None:
    model = compiled(policy=policy)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    state = attachment.state_dict()
    wrong = {**state, "steps": 99, "controllers": [{**state["controllers"][0], "state": {}}]}
    refused = pytest.raises(ConfigError, match=rf"state of policy {policy.title()} cannot be loaded \(KeyError: ")
    if met:
        with refused:
            attachment.load_state_dict(wrong)
        assert attachment.state_dict() == state
        return
    other = compiled(policy=policy)
    skiplora_fx.attach(other, sgd(other)).load_state_dict(wrong)
    for _ in range(2):  # the second time too
        with pytest.raises(ConfigError, match="cannot be loaded"):
            step(other)


def test_what_was_loaded_and_not_met_yet_is_saved_and_handed_on() -> None:
    model = compiled(threshold=0.0)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    state = attachment.state_dict()
    other = compiled(threshold=0.0)
    resumed = skiplora_fx.attach(other, sgd(other))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    again = skiplora_fx.attach(other, sgd(other))
    assert again.state_dict() == state
    step(other)
    assert [site.backwards for site in skiplora_fx.sites(other)] == [2, 2]


def test_an_adapter_that_rests_is_saved_with_the_others() -> None:
    model = compiled(threshold=0.0)
    resting = adapters(model.lower)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    for parameter in resting:
        parameter.requires_grad_(False)
    step(model)
    saved = {site["name"]: site for site in attachment.state_dict()["controllers"][0]["sites"]}
    assert {name: (site["trains"], site["backwards"]) for name, site in saved.items()} == {
        "lower": (False, 1),
        "upper": (True, 2),
    }


@pytest.mark.parametrize("answer", [None, 0.5, [0.0, None], [0.0, "1"], [0.0, math.nan]])
def test_an_answer_that_is_none_is_refused(answer: Any) -> None:
    class Wrong:
        def decide(self, observation: Observation) -> Any:
            return answer

    with pytest.raises(ConfigError, match=r"policy Wrong: decide\(\) returned "):
        step(compiled(policy=Wrong(), warmup_steps=5, probe_every=2, min_active=1))


def test_numbers_of_numpy_are_an_answer() -> None:
    numpy = pytest.importorskip("numpy")

    class Numbers:
        def decide(self, observation: Observation) -> Any:
            return numpy.full(len(observation.sites), numpy.inf, dtype=numpy.float32)

    model = compiled(policy=Numbers())
    step(model)
    assert skipped(model) == [True, True]
