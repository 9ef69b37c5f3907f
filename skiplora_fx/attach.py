"""Steps are the optimizer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._torch_compat import unwrap_compiled
from .errors import UsageError
from .runtime import StepClock, learn_names, parameters_counted_by, set_clock, steps_of, trained_parameters


@dataclass(frozen=True)
class Attachment:
    """What :func:`attach` made; ``remove()`` undoes it."""

    clock: StepClock
    _handle: Any

    def remove(self) -> None:
        """Stop counting the optimizer's steps; backwards count again, from the number of steps there were."""
        self._handle.remove()
        for parameter in parameters_counted_by(self.clock):
            # One clock each: graphs that hold a part of the sites would otherwise count one backward several times.
            set_clock(parameter, StepClock(self.clock.steps))


def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Attachment:
    """Count the steps of ``optimizer`` as the model's training steps.

    Warm-up and probing are counted in steps. Without this each backward is one, which differs as soon as
    gradients are accumulated.

    Args:
        model: the model, before or after it is compiled.
        optimizer: an optimizer over its parameters; a wrapper with an ``.optimizer`` inside will do.

    Raises:
        UsageError: ``optimizer`` is none, or trains no parameter of ``model``.
    """
    model, optimizer = unwrap_compiled(model), _innermost(optimizer)
    trained = trained_parameters(model)
    _check_optimizer(optimizer, trained)
    learn_names(model)
    clock = StepClock(max(map(steps_of, trained), default=0), attached=True)
    for parameter in trained:
        set_clock(parameter, clock)

    def count(*_: Any) -> None:
        clock.steps += 1

    return Attachment(clock, optimizer.register_step_post_hook(count))


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in trained):
        raise UsageError("attach: the optimizer trains no parameter of this model; give the model's own optimizer")
