"""What becomes of parameters that rest in a step, beside having no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MEMORY = 0.7
"""Decay of the mean update that drifting parameters move by."""


class Drift:
    """Moves parameters that rest by a share of their mean update (linear drift: Vlaar and Leimkuhler, ICML 2022).

    Args:
        parameters: all that train.
        share: of the update; 0 does nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        self._parameters = parameters if share else []
        self._share = share
        self._updates: dict[nn.Parameter, Tensor] = {}
        self._before: dict[nn.Parameter, Tensor] = {}

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        moving = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._before = {parameter: parameter.detach().clone() for parameter in moving}

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from those that moved, and move those that rest."""
        for parameter in self._parameters:
            if parameter in self._before:
                update = parameter - self._before[parameter]
                known = self._updates.get(parameter, update)
                self._updates[parameter] = _MEMORY * known + (1 - _MEMORY) * update
            elif parameter in self._updates:
                parameter += self._share * self._updates[parameter]


def fill_with_zeros(parameters: Sequence[nn.Parameter]) -> None:
    """Give what has no gradient one of zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def scale_to_all_rows(model: nn.Module, names: Sequence[str], opened: Sequence[int], parts: int) -> None:
    """Scale gradients that come from a part of the rows to what all rows would have given in the mean."""
    for name, count in zip(names, opened, strict=True):
        if 0 < count < parts:
            for parameter in model.get_submodule(name).parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(parts / count)
