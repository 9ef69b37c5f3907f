"""A small adapted model whose batch is divided among ranks, and policies that say in advance what is shut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from models import with_lora
from peft import PeftModel
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.policy import Observation, Policy

BLOCKS, WIDTH = 2, 16
SITES = tuple(f"base_model.model.blocks.{block}.{name}" for block in range(BLOCKS) for name in ("up", "down"))
MASKS: dict[str, tuple[bool, ...]] = {
    "all open": (True, True, True, True),
    "all shut": (False, False, False, False),
    "a prefix shut": (False, False, True, True),
    "a suffix shut": (True, True, True, False),
    "at random": (True, False, False, True),
    "one open": (False, True, False, False),
}


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


class Blocks(nn.Module):
    """Some of them in a row; returns a loss, the mean over examples."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def adapted(width: int = WIDTH, rank: int = 4) -> PeftModel:
    """Return the model in training mode, with the same weights at each call."""
    torch.manual_seed(0)
    return with_lora(Blocks(width), ["up", "down"], rank=rank).train()


def batch(examples: int = 8, width: int = WIDTH) -> Tensor:
    """Return the whole batch, ``[examples, width]``, the same at each call."""
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(1))


def part(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """Return a rank's share of a batch."""
    return whole.chunk(ranks)[rank]


@dataclass(eq=False)
class Given(Policy):
    """Shuts in each step what it was told, whatever there is to see."""

    needs_history = False
    masks: Sequence[Sequence[bool]] = field(default_factory=lambda: tuple(MASKS.values()))

    def decide(self, observation: Observation) -> list[float]:
        mask = self.masks[observation.step % len(self.masks)]
        return [0.0 if mask[SITES.index(site.name)] else math.inf for site in observation.sites]


def options(**changed: Any) -> dict[str, Any]:
    """Return the backend's options, without warm-up and probing."""
    return {"warmup_steps": 0, "probe_every": 0, **changed}


def sgd(model: nn.Module, rate: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)


def seen(model: nn.Module) -> list[skiplora_fx.SiteState]:
    """Return what is known of each site."""
    return skiplora_fx.sites(model)
