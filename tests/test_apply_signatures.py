"""What ``symbolic_trace`` keeps of a forward's arguments ``apply`` keeps too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_modules import Linear, batch
from torch import Tensor, fx

import skiplora_fx

AT_ONCE = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0}


class Default(Linear):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(x) * scale


class KeywordOnly(Linear):
    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        return super().forward(x) * scale


class Masked(Linear):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) if mask is None else super().forward(x) * mask


class Starred(Linear):
    def forward(self, *xs: Tensor, **others: Any) -> Tensor:
        return super().forward(xs[0])


def check(gated: fx.GraphModule, model: Linear, *args: Any, **kwargs: Any) -> None:
    found = gated(*args, **kwargs)
    torch.testing.assert_close(found, model(*args, **kwargs), rtol=0, atol=0)
    found.sum().backward()
    assert model.a.weight.grad is None
    assert skiplora_fx.sites(gated)[0].skipped


@pytest.mark.parametrize("given", [(), (3.0,)], ids=["default", "given"])
@pytest.mark.parametrize("build", [Default, KeywordOnly])
def test_an_argument_with_a_default(build: type[Linear], given: tuple[float, ...]) -> None:
    model, x = build(), batch()
    gated = skiplora_fx.apply(fx.symbolic_trace(model), x, *given, **AT_ONCE)
    check(gated, model, x)
    check(gated, model, x, scale=3.0)
    if build is Default:
        check(gated, model, x, 3.0)


def test_an_argument_that_the_trace_was_told() -> None:
    model, x = Masked(), batch()
    traced = fx.symbolic_trace(model, concrete_args={"mask": None})
    check(skiplora_fx.apply(traced, x, **AT_ONCE), model, x)


def test_any_number_of_arguments() -> None:
    model, x = Starred(), batch()
    gated = skiplora_fx.apply(fx.symbolic_trace(model), x, x, **AT_ONCE)
    check(gated, model, x)
    check(gated, model, x, x, other=1)


def test_what_any_number_of_arguments_brings_may_want_a_gradient() -> None:
    class Lower(Starred):
        def forward(self, *xs: Tensor, **others: Any) -> Tensor:
            return super().forward(xs[0].tanh())

    x = batch().requires_grad_()
    skiplora_fx.apply(fx.symbolic_trace(Lower()), x, **AT_ONCE)(x).sum().backward()
    assert x.grad is not None
