"""The smallest modules with one adapted layer: what the tests of the search and of the gates compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDE, RANK = 16, 4


class Linear(nn.Module):
    """A frozen linear with a branch: ``h + B(A(x)) * 2``, each of the two trained unless said otherwise."""

    def __init__(self, rank: int = RANK, train_a: bool = True, train_b: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
        self.a = nn.Linear(WIDE, rank, bias=False).requires_grad_(train_a)
        self.b = nn.Linear(rank, WIDE, bias=False).requires_grad_(train_b)

    def delta(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.delta(x)


class Around(nn.Module):
    """An adapted layer called ``layer``, and a function of it and the input that is the forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **options: Any) -> None:
        super().__init__()
        self.layer = Linear(**options)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.layer, x)


class Plain(nn.Module):
    """Two linears and a residual, for PEFT to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDE, WIDE)
        self.second = nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Checkpointed(nn.Module):
    """A residual layer under activation checkpointing, ``times`` times."""

    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(times))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + checkpoint(layer, x, use_reentrant=False)
        return x


def peft(base: nn.Module | None = None, targets: Any = ("first",), **options: Any) -> nn.Module:
    """Return ``base``, or a :class:`Plain`, with PEFT's adapters on ``targets``, all drawn at random."""
    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(targets), **options}
    model = get_peft_model(base or Plain(), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def batch(rows: int = 3) -> Tensor:
    """Return an input: float32 ``[rows, WIDE]``."""
    return torch.randn(rows, WIDE)
