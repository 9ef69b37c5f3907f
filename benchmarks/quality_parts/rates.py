"""Learning rates: of all that trains, or of each block up to the step at which it rests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from skiplora_fx.policy import Schedule
from skiplora_fx.policy.base import block_of


def scheduled(optimizer: Optimizer, warmup: int, ends: Sequence[int]) -> LambdaLR:
    """Return what moves the learning rate of each of an optimizer's groups, see :func:`share_of_rate`."""
    return LambdaLR(optimizer, [partial(share_of_rate, warmup=warmup, end=end) for end in ends])


def share_of_rate(step: int, warmup: int, end: int) -> float:
    """Return the share of the learning rate: up in the warm-up, then linearly down to 0 at ``end``."""
    if step < warmup:
        return (step + 1) / warmup
    return max(end - step, 0) / (end - warmup)


def trained_until(policy: Schedule, block: int, blocks: int) -> int:
    """Return the step at which a depth that grows reaches a block, and it is trained no more."""
    return next((step for step in range(policy.steps) if policy.depth(step, blocks) > block), policy.steps)


def by_block(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return what trains, by its repeated layer, in their order; by "" what lies in none."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = block_of(name)
            groups.setdefault("" if block == name else block, []).append(parameter)
    return groups
