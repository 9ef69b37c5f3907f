"""One graph among others: whether the gradient that it hands down is of use to anything below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from ._torch_compat import may_train_more

_USELESS = "skiplora: useless"
"""In the metadata of an autograd node through which a gradient reaches nothing that is not shut."""

_KEPT = "skiplora: kept"
"""In the metadata of a node whose output keeps its gradient. A checkpoint may hand that on as another tensor."""

_MOST_NODES = 64
"""Between two graphs. What lies behind more is not looked at, and counts as of use."""


@dataclass(frozen=True)
class Surroundings:
    """What a graph has to do with others.

    Attributes:
        borders: positions of the inputs whose gradients have gates: other graphs have computed them.
        all_gated: whether all else that trains does so through the gates of sites: with these shut nothing does.
    """

    borders: tuple[int, ...] = ()
    all_gated: bool = False

    def thresholds(self, inputs: Sequence[Any], training: bool) -> tuple[float, ...]:
        """Return for each border 0 if its gradient is of use, else infinity; 0 if gates may not be shut."""
        return tuple(0.0 if not training or _is_of_use(inputs[place]) else math.inf for place in self.borders)

    def note(self, outputs: Iterable[Any], thresholds: Sequence[float]) -> None:
        """Leave for the graphs above that a gradient of ``outputs`` is of no use, if that is so.

        Args:
            outputs: of the graph.
            thresholds: of its sites and its borders, as they were for this call.
        """
        if self.all_gated and all(thresholds):
            for node in _nodes(outputs):
                node.metadata[_USELESS] = True


def _is_of_use(value: Tensor) -> bool:
    """Return whether a gradient of ``value`` reaches something that trains, other than through gates that are shut."""
    if value.grad_fn is None:
        return True  # a leaf
    if value.retains_grad:
        value.grad_fn.metadata[_KEPT] = True
    ahead, seen = [value.grad_fn], 0
    while ahead:
        node = ahead.pop()
        seen += 1
        if node.metadata.get(_KEPT):
            return True
        if node.metadata.get(_USELESS):
            continue
        below = [function for function, _ in node.next_functions if function is not None]
        if not below or seen > _MOST_NODES or may_train_more(node):
            return True
        ahead += below
    return False


def _nodes(values: Iterable[Any]) -> Iterable[Node]:
    return (value.grad_fn for value in values if isinstance(value, Tensor) and value.grad_fn is not None)
