"""Two small adapted layers under the backend, and what a step of them does: what the tests of the runtime run."""

from __future__ import annotations

import math
from typing import Any

import torch
from lora_modules import Linear, batch
from torch import Tensor, nn

import skiplora_fx


class Two(nn.Module):
    """Two adapted layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = Linear(), Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.lower(x).relu())


class Broken(Two):
    """The same in two graphs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.lower(x)
        torch._dynamo.graph_break()
        return self.upper(x.relu())


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
