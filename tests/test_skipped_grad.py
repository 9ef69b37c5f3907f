"""What an optimizer finds in ``.grad`` of what was skipped, and what it makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_modules import batch
from torch import Tensor, nn
from two_layers import Two, compiled

import skiplora_fx

NONE = {"skipped_grad": "none"}


class Script:
    """A policy that follows a script: for each step which of the two sites are shut."""

    def __init__(self, *steps: tuple[bool, bool]) -> None:
        self.steps = steps

    def decide(self, observation: skiplora_fx.policy.Observation) -> list[float]:
        shut = self.steps[min(observation.step, len(self.steps) - 1)]
        return [math.inf if is_shut else 0.0 for is_shut in shut[: len(observation.sites)]]


def trained(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained(model), lr=0.1, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, accumulated: int = 1) -> None:
    optimizer.zero_grad()
    for _ in range(accumulated):
        model(batch()).sum().backward()
    optimizer.step()


def state(optimizer: torch.optim.Optimizer, layer: nn.Module) -> list[Any]:
    """Return weights, moments and step counts of a layer's adapter."""
    found: list[Any] = []
    for parameter in trained(layer):
        found += [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]
    return found


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("skipped_grad", "expected"), [("none", False), ("zero", True)])
def test_adamw_leaves_alone_what_has_no_gradient(skipped_grad: str, expected: bool) -> None:
    model = compiled(policy=Script((False, False), (True, False)), skipped_grad=skipped_grad)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    train(model, optimizer)  # so that there are moments to be moved by
    before = [state(optimizer, layer) for layer in (model.lower, model.upper)]
    train(model, optimizer)
    after = [state(optimizer, layer) for layer in (model.lower, model.upper)]
    assert [moved(*pair) for pair in zip(before, after, strict=True)] == [expected, True]
    assert all((parameter.grad is None) is not expected for parameter in trained(model.lower))


def test_open_in_one_micro_batch_it_keeps_the_gradient_of_that_one() -> None:
    model = compiled(threshold=math.inf, **NONE)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    x, y = batch(), batch()
    model(x).sum().backward()
    skiplora_fx.set_threshold(model, 0.0, sites="lower")
    model(y).sum().backward()
    inner = model.lower(y).relu()
    loss = (model.upper.base(inner) + model.upper.delta(inner).detach()).sum()
    wanted = torch.autograd.grad(loss, trained(model.lower))
    optimizer.step()
    torch.testing.assert_close([parameter.grad for parameter in trained(model.lower)], list(wanted))
    assert all(parameter.grad is None for parameter in trained(model.upper))


def test_a_parameter_that_an_open_site_shares_is_kept() -> None:
    class Shared(Two):
        def __init__(self) -> None:
            super().__init__()
            self.upper.a = self.lower.a

    model = compiled(Shared(), policy=Script((True, False)), **NONE)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    train(model, optimizer)
    assert model.lower.a.weight.grad is not None
    assert model.lower.b.weight.grad is None


def test_what_had_no_backward_in_a_step_is_left_as_it_is() -> None:
    model = compiled(threshold=math.inf, **NONE)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    train(model, optimizer)
    kept = torch.ones_like(model.lower.a.weight)
    model.lower.a.weight.grad = kept
    optimizer.step()
    assert model.lower.a.weight.grad is kept


def test_with_a_gradient_scaler_and_everything_shut() -> None:
    model = compiled(threshold=math.inf, **NONE)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    before = [parameter.detach().clone() for parameter in trained(model)]
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(model(batch()).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained(model), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert not moved(before, trained(model))
    assert scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


def test_min_active_leaves_something_to_learn_from() -> None:
    model = compiled(threshold=math.inf, min_active=1, **NONE)
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    train(model, optimizer)
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, False]
    assert all(parameter.grad is not None for parameter in trained(model.upper))


def test_clipping_and_the_norm_are_those_of_what_is_open(tmp_path: Any) -> None:
    model = compiled(policy=Script((True, False)))
    optimizer = adamw(model)
    attachment = skiplora_fx.attach(model, optimizer, log=tmp_path / "log.jsonl")
    model(batch()).sum().backward()
    total = torch.nn.utils.clip_grad_norm_(trained(model), 1.0)
    of_open = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained(model.upper)])
    optimizer.step()
    assert total > 1.0
    torch.testing.assert_close(of_open, torch.tensor(1.0), rtol=1e-4, atol=0)
    assert attachment.grad_norm() == pytest.approx(float(of_open), rel=1e-4)


def test_a_policy_that_asks_for_gradient_norms_is_given_them() -> None:
    seen: list[list[float]] = []

    class Asking(Script):
        needs_gradients = True

        def decide(self, observation: skiplora_fx.policy.Observation) -> list[float]:
            seen.append([site.gradient_norm for site in observation.sites])
            return super().decide(observation)

    model = compiled(policy=Asking((False, False), (True, False)))
    optimizer = adamw(model)
    skiplora_fx.attach(model, optimizer)
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).sum().backward()
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in trained(layer)]) for layer in (model.lower, model.upper)
        ]
        expected.append([float(norm) for norm in norms])
        optimizer.step()
    model(batch())
    after_first, after_second, after_third = seen[-3:]
    assert after_first == pytest.approx(expected[0])
    assert after_second == pytest.approx([expected[0][0], expected[1][1]])  # shut: the norm it had
    assert after_third == pytest.approx([expected[0][0], expected[2][1]])


@pytest.mark.parametrize("attached", [False, True])
def test_none_without_an_optimizer_is_said(attached: bool, recwarn: pytest.WarningsRecorder) -> None:
    model = compiled(threshold=math.inf, **NONE)
    if attached:
        skiplora_fx.attach(model, adamw(model))
    for _ in range(3):
        model(batch()).sum().backward()
    said = [str(warning.message) for warning in recwarn if "skipped_grad" in str(warning.message)]
    assert len(said) == (0 if attached else 1)
    assert all("skiplora_fx.attach(model, optimizer)" in text for text in said)
