"""What the backward of a model costs under any decisions: the costs of its graphs, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .passes.flops import Flops


@dataclass(frozen=True)
class ModelCosts:
    """FLOPs of a model's backward.

    Attributes:
        parts: for each graph its FLOPs, and the positions of its sites among those of the model; None for one that is
            trained no more.
        sites: number of sites of the model.
    """

    parts: tuple[tuple[Flops, tuple[int | None, ...]], ...]
    sites: int

    @cached_property
    def total(self) -> int:
        """FLOPs with every gate open."""
        return sum(flops.total for flops, _ in self.parts)

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        """Return the FLOPs that remain under each of several sets of decisions, True where open.

        What goes down from one graph into others is taken to be of use while a site before its own is open, in the
        order in which the model registers them. If something without a gate trains below it always is, and more
        remains than this says.
        """
        found = [0] * len(decisions)
        for flops, positions in self.parts:
            first = min((at for at in positions if at is not None), default=0)
            masks = [
                [at is not None and opens[at] for at in positions] + [not first or any(opens[:first])] * flops.borders
                for opens in decisions
            ]
            found = [total + part for total, part in zip(found, flops.under(masks), strict=True)]
        return found

    @cached_property
    def alone(self) -> list[int]:
        """For each site the FLOPs that its gate alone saves, every other gate being open."""
        masks = [[other != site for other in range(self.sites)] for site in range(self.sites)]
        return [self.total - left for left in self.under(masks)]

    @cached_property
    def added(self) -> list[int]:
        """For each site the FLOPs that its gate saves when those of all sites before it are shut already."""
        masks = [[other >= length for other in range(self.sites)] for length in range(self.sites + 1)]
        left = self.under(masks)
        return [more - less for more, less in pairwise(left)]
