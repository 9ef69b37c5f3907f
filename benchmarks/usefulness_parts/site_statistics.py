"""What is known of each site in a step without any further forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

STATISTICS = {
    "norm": "the gradient's L2 norm",
    "promise": "minus the gradient times the optimizer's update: the drop to first order",
    "cosine": "of the gradient with that of the step before",
    "ratio": "M",
    "change": "of M, relative to its moving mean some steps before",
}
"""Each, by name."""

_LEAST = 1e-30
"""The norm below which a gradient has no direction."""

_DECAY = 0.9
"""Of M's moving mean, as the library's."""

_BACK = 10
"""Steps by which the mean that a change is relative to lies back."""


@dataclass
class Statistics:
    """Follows the sites of a run.

    Attributes:
        sites: the parameters of each.
        gradients: of each site in the last step, in one vector.
        means: the moving means of M of the last steps.
    """

    sites: Sequence[Sequence[nn.Parameter]]
    gradients: list[Tensor] = field(default_factory=list)
    means: deque[list[float]] = field(default_factory=lambda: deque(maxlen=_BACK))

    def of_step(self, ratios: Sequence[float]) -> dict[str, list[float]]:
        """Return all but ``promise``, of gradients that are about to be used, and go on to the next step."""
        gradients = [torch.cat([_gradient(parameter) for parameter in site]) for site in self.sites]
        before = self.gradients or [torch.zeros_like(gradient) for gradient in gradients]
        found = {
            "norm": [float(gradient.norm()) for gradient in gradients],
            "cosine": [
                float(functional.cosine_similarity(now, then, dim=0, eps=_LEAST))
                for now, then in zip(gradients, before, strict=True)
            ],
            "ratio": list(ratios),
            "change": self._changes(ratios),
        }
        self.gradients = gradients
        return found

    def promise(self, updates: Sequence[Tensor]) -> list[float]:
        """Return by how much the loss falls to first order, by the updates that the last gradients have led to."""
        return [-float(gradient @ update) for gradient, update in zip(self.gradients, updates, strict=True)]

    def _changes(self, ratios: Sequence[float]) -> list[float]:
        if not self.means:
            self.means.append(list(ratios))
        last = self.means[-1]
        reference = self.means[0]
        mean = [_DECAY * old + (1 - _DECAY) * new for old, new in zip(last, ratios, strict=True)]
        self.means.append(mean)
        return [abs(now - then) / max(now, then, 1e-12) for now, then in zip(mean, reference, strict=True)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    return gradient.detach().flatten().clone()
