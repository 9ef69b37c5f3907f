"""What becomes of parameters that rest in a step, beside having no gradient."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

MEMORY = 0.7
"""Decay of the mean update that parameters move by which drift or repeat it."""


class Updates:
    """Exponential means of the updates of parameters, over the steps in which each of them moved.

    Args:
        parameters: all that train.
        memory: decay of the means; with 0 they are the last updates.

    Attributes:
        means: of each parameter that has moved.
        moved: the parameters that moved in the last step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], memory: float) -> None:
        self._parameters = parameters
        self._memory = memory
        self._before: dict[nn.Parameter, Tensor] = {}
        self.means: dict[nn.Parameter, Tensor] = {}

    @property
    def moved(self) -> Collection[nn.Parameter]:
        return self._before.keys()

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        moving = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._before = {parameter: parameter.detach().clone() for parameter in moving}

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from those that moved."""
        for parameter, before in self._before.items():
            update = parameter - before
            known = self.means.get(parameter, update)
            self.means[parameter] = self._memory * known + (1 - self._memory) * update


class Drift:
    """Moves parameters that rest by a share of their mean update (linear drift: Vlaar and Leimkuhler, ICML 2022).

    Args:
        parameters: all that train.
        share: of the update; 0 does nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        self._parameters = parameters if share else []
        self._share = share
        self._updates = Updates(self._parameters, MEMORY)

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        self._updates.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from those that moved, and move those that rest."""
        self._updates.after_step()
        for parameter, mean in self._updates.means.items():
            if parameter not in self._updates.moved:
                parameter += self._share * mean


class CatchUp:
    """Takes the steps in which a parameter rested at once, when it moves again: its update, so many times more.

    Args:
        parameters: all that train; none for doing nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._rested = dict.fromkeys(parameters, 0)
        self._updates = Updates(parameters, memory=0.0)

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        self._updates.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move those on that had rested, and count for the others."""
        self._updates.after_step()
        for parameter, rested in self._rested.items():
            moved = parameter in self._updates.moved
            if moved:
                parameter += rested * self._updates.means[parameter]
            self._rested[parameter] = 0 if moved else rested + 1


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
