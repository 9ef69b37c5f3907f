"""Which sizes are measured, and under which name each is kept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

AXES: Mapping[str, tuple[int, ...]] = {
    "layers": (2, 4, 8, 16, 32),
    "dim": (64, 128, 256),
    "adapters": (1, 2, 4, 7),
    "length": (32, 64, 128, 256),
}
"""What is varied, one at a time, and its values."""

TARGETS_OF = {1: "q", 2: "qv", 3: "mlp", 4: "attention", 7: "all"}
"""Which linears are adapted, by the number of adapters in a layer."""


@dataclass(frozen=True)
class Size:
    """A size that is measured, one point of a curve or of several.

    Attributes:
        layers: decoder layers.
        dim: hidden size.
        adapters: adapted linears in a layer.
        length: tokens in a sequence.
    """

    layers: int = 2
    dim: int = 64
    adapters: int = 2
    length: int = 64

    @property
    def name(self) -> str:
        """Under which it is kept."""
        return "-".join(f"{axis}{value}" for axis, value in asdict(self).items())

    def arguments(self, args: argparse.Namespace) -> argparse.Namespace:
        """Return the options of a model of this size, the others as in ``args``."""
        return argparse.Namespace(**{**vars(args), **asdict(self), "targets": TARGETS_OF[self.adapters]})


def sizes(base: Size, axis: str, values: Sequence[int]) -> list[Size]:
    """Return the sizes along an axis that goes through ``base``."""
    return [replace(base, **{axis: value}) for value in values]


def missing(base: Size, axes: Mapping[str, Sequence[int]], names: set[str]) -> Iterator[Size]:
    """Yield each size on the axes whose name is not among ``names``, once."""
    wanted = dict.fromkeys(size for axis, values in axes.items() for size in sizes(base, axis, values))
    yield from (size for size in wanted if size.name not in names)
