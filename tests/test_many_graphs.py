"""A model in several graphs: one policy, one order of its sites, one step for all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_modules import Linear, batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from two_layers import Broken, compiled, sgd, skipped, step

import skiplora_fx
from skiplora_fx.live import live_sites
from skiplora_fx.policy import Observation


class Layers(nn.Module):
    """Adapted layers in a row, each compiled by itself.

    Args:
        layers: how many.
        reentrant: of the checkpoint around each; None for no checkpoint.
        options: of the backend.
    """

    def __init__(self, layers: int = 4, reentrant: bool | None = None, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(layers))
        self.reentrant = reentrant
        for layer in self.layers:
            layer.compile(backend="skiplora", options={"warmup_steps": 0, "probe_every": 0, **options})

    def forward(this, x: Tensor) -> Tensor:
        for layer in this.layers:
            x = (layer(x) if this.reentrant is None else checkpoint(layer, x, use_reentrant=this.reentrant)).tanh()
        return x


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(batch().requires_grad_()).sum().backward()


class Recording:
    """Opens everything; keeps which sites it was shown in which step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []

    def decide(self, observation: Observation) -> list[float]:
        self.seen.append((observation.step, [site.name for site in observation.sites]))
        return [0.0] * len(observation.sites)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_backward_is_one_step_of_all_graphs(reentrant: bool | None) -> None:
    policy = Recording()
    model = Layers(3, reentrant, policy=policy)
    for _ in range(4):
        backward(model)
    assert {site.clock.steps for site in live_sites(model)} == {4}
    assert {site.backwards for site in live_sites(model)} == {4}
    names = [f"layers.{number}" for number in range(3)]
    assert policy.seen[-3:] == [(number, names) for number in (1, 2, 3)]


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_prefix_is_one_of_the_whole_model(reentrant: bool | None) -> None:
    model = Layers(4, reentrant, policy="freeze")
    backward(model)
    backward(model)
    assert skipped(model) == [True, True, False, False]


def test_a_layer_that_trains_later_takes_its_place_in_the_order() -> None:
    policy = Recording()
    model = Layers(3, policy=policy)
    lowest = [parameter for parameter in model.layers[0].parameters() if parameter.requires_grad]
    for parameter in lowest:
        parameter.requires_grad_(False)
    backward(model)
    backward(model)
    assert policy.seen[-1] == (1, ["layers.1", "layers.2"])
    for parameter in lowest:
        parameter.requires_grad_(True)
    backward(model)
    backward(model)
    assert policy.seen[-1] == (3, ["layers.0", "layers.1", "layers.2"])


class Fickle:
    """Shuts everything from the third time on that it is asked; what it has said in a step has to stand."""

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, observation: Observation) -> list[float]:
        self.asked += 1
        return [math.inf if self.asked > 2 else 0.0] * len(observation.sites)


def test_what_was_said_in_the_first_step_holds_for_all_of_its_micro_batches() -> None:
    model = compiled(Broken(), policy=Fickle())
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    step(model)
    assert skipped(model) == [False, False]
    step(model)
    assert skipped(model) == [False, False]
    optimizer.step()
    step(model)
    assert skipped(model) == [True, True]


def test_under_other_options_and_back_again_every_site_is_seen_once() -> None:
    policy = Recording()
    model = Broken()
    options = {"warmup_steps": 0, "probe_every": 0}
    for again in ({"policy": policy}, {"threshold": 0.5}, {"policy": policy}):
        model.compile(backend="skiplora", options={**options, **again})
        step(model)
        step(model)
    assert {tuple(names) for _, names in policy.seen} == {("lower",), ("lower", "upper")}
    assert [number for number, _ in policy.seen] == [0, 0, 1] * 2  # the sites are new, and so are their steps


def test_a_policy_that_decides_for_another_model_is_refused_with_a_way_out() -> None:
    policy = Recording()
    first, second = Layers(1, policy=policy), Layers(1, policy=policy)
    backward(first)
    with pytest.raises(skiplora_fx.UsageError, match=r"must not be equal: @dataclass\(eq=False\)"):
        backward(second)


def test_a_part_that_has_run_alone_is_decided_for_with_the_rest_of_the_model() -> None:
    model = Layers(4, policy="freeze")
    model.layers[3](batch()).sum().backward()
    backward(model)
    backward(model)
    assert skipped(model) == [True, True, False, False]


@pytest.mark.parametrize(
    "policy", [{"policy": "progressive", "policy_kwargs": {"window": 2, "bound": 0.9}}, {"policy": "prefix"}]
)
def test_a_resumed_run_decides_as_the_whole_one(policy: dict[str, Any]) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = Layers(4, **policy)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        return model, optimizer, skiplora_fx.attach(model, optimizer)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[list[bool]]:
        found = []
        for seed in seeds:
            torch.manual_seed(seed)
            backward(model)
            found.append(skipped(model))
            optimizer.step()
        return found

    model, optimizer, _ = fresh()
    whole = run(model, optimizer, range(10))
    for stopped in (3, 6):
        model, optimizer, attachment = fresh()
        run(model, optimizer, range(stopped))
        kept = model.state_dict(), optimizer.state_dict(), attachment.state_dict()
        model, optimizer, attachment = fresh()
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
        attachment.load_state_dict(kept[2])
        assert run(model, optimizer, range(stopped, 10)) == whole[stopped:]
    assert any(map(any, whole[6:]))


@pytest.mark.parametrize("attached", [False, True])
def test_a_second_model_of_the_same_kind_under_reentrant_checkpoints(attached: bool) -> None:
    """Its layers' graphs are compiled already, so the backend is not called again."""
    for _ in range(2):
        model = Layers(4, True, policy="freeze")
        optimizer = sgd(model)
        if attached:
            skiplora_fx.attach(model, optimizer)
        for _ in range(2):
            backward(model)
            optimizer.step()
        assert skipped(model) == [True, True, False, False]
        assert len({site.controller for site in live_sites(model)}) == 1


class PartlyCheckpointed(Layers):
    """The last layer is not in a checkpoint, so that its backward counts before the others' forwards run again."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = checkpoint(layer, x, use_reentrant=self.reentrant).tanh()
        return self.layers[-1](x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_around_a_part_of_the_model(reentrant: bool) -> None:
    model = PartlyCheckpointed(4, reentrant, policy="cyclic", policy_kwargs={"share": 0.25})
    found = []
    for _ in range(6):
        backward(model)
        found.append([number for number, shut in enumerate(skipped(model)) if not shut])
    assert found[1:] == [[1], [2], [3], [0], [1]]  # the first step met one layer after the other
    assert {site.clock.steps for site in live_sites(model)} == {6}


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def test_a_larger_model_that_is_met_later_goes_on_as_it_was() -> None:
    policy = Recording()
    model = compiled(Broken(), policy=policy, skipped_grad="none")
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    for run in (model, model, Wrapper(model)):
        run(batch(3 if run is model else 7)).sum().backward()
        optimizer.step()
    assert attachment.clock.steps == 3
    assert {site.clock for site in live_sites(model)} == {attachment.clock}
    assert len(attachment.sites()) == 2
    assert policy.seen[-1][0] == 2


class Inside(nn.Module):
    """A compiled layer inside of a checkpointed region."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = Linear()
        self.layer.compile(backend="skiplora", options={"warmup_steps": 0, "probe_every": 0, **options})

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.layer(x).tanh(), x, use_reentrant=False)


class Odd:
    """Shuts everything in odd steps."""

    def decide(self, observation: Observation) -> list[float]:
        return [math.inf if observation.step % 2 else 0.0] * len(observation.sites)


def test_a_repeated_forward_decides_as_its_own_first_one() -> None:
    model = Inside(policy=Odd())
    model(batch())  # has no backward: nobody waits for it
    first, second = model(batch()).sum(), model(batch()).sum()
    for loss in (first, second):  # of one step: both forwards ran before any backward
        model.zero_grad()
        loss.backward()
        assert skipped(model) == [False]
        assert bool(model.layer.a.weight.grad.any())
    model.zero_grad()
    model(batch()).sum().backward()
    assert skipped(model) == [True]
    assert not bool(model.layer.a.weight.grad.any())
    assert [site.backwards for site in skiplora_fx.sites(model)] == [3]


def test_a_repeated_forward_has_the_thresholds_of_its_own_first_one() -> None:
    model = Inside(threshold=0.0)
    skiplora_fx.attach(model, sgd(model))
    model(batch()).sum().backward()
    first = model(batch()).sum()
    skiplora_fx.set_threshold(model, math.inf)
    second = model(batch()).sum()
    for loss, shut in ((first, False), (second, True)):
        model.zero_grad()
        loss.backward()
        assert skipped(model) == [shut]
        assert bool(model.layer.a.weight.grad.any()) is not shut
