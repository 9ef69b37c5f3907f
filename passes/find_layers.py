"""Find stretches of a graph that do the same over and over, as the layers of a model do."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby, pairwise

from torch import SymInt, Tensor, fx
from torch.fx.node import map_arg

from .alike import Read, hashable, kind_of
from .layer_steps import (
    belongs_in_layers,
    has_own_kernel,
    is_step,
    readers,
    stands_between_layers,
    stays_with_readers,
)
from .sizes import symbols_of

_FEWEST = 3
"""Layers: what stands in a graph less often is not worth a function."""
_SMALLEST = 4
"""Kernels of their own in a layer: what has fewer is better fused with what stands around it."""
_ALIGNMENT = 16
"""Bytes: at a multiple of so many begins what Inductor takes for the input of a function."""


@dataclass(frozen=True)
class Layer:
    """One of several stretches that are alike.

    Attributes:
        steps: what it computes, in the graph's order.
        operands: what it reads from outside.
    """

    steps: tuple[fx.Node, ...]
    operands: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Layers:
    """Stretches that compute the same of operands of the same kinds.

    Attributes:
        alike: the stretches, in the graph's order.
        results: what is read outside of any of them: the place of a step, and which part of it if it has several.
    """

    alike: tuple[Layer, ...]
    results: tuple[tuple[int, int | None], ...]


def find_layers(graph: fx.Graph) -> tuple[Layers, ...]:
    """Return the stretches of a graph that are alike.

    In:
        A graph, aten-level, as Inductor is about to lower it. It is not changed.
    Out:
        Disjoint stretches, each of which may become one call of a function on its operands. In none of them anything
        mutates, communicates or draws from a generator. Where each layer holds something that draws, the stretches are
        what lies between.
    Terms:
        *step*: a node that computes, see :func:`~.layer_steps.is_step`.
        *period*: the number of steps from one in a layer to the same in the next.
        *cut*: the place in a period where one layer ends and the next begins.
    """
    steps = _in_order([node for node in graph.nodes if is_step(node)])
    labels = _labels(steps)
    runs = _runs(labels, 0, len(labels))
    return tuple(layers for run in runs for layers in _layers(steps[run.start : run.stop], run.period))


def _in_order(steps: Sequence[fx.Node]) -> list[fx.Node]:
    """Return steps so that what follows from the inputs without a product stands first.

    The first layer that reads a mask or a table computes it, and is like the others without.
    """
    late: set[fx.Node] = set()
    for step in steps:
        if has_own_kernel(step) or not belongs_in_layers(step) or step in late:
            late.update((step, *readers(step)))
    return sorted(steps, key=late.__contains__)


def _labels(steps: Sequence[fx.Node]) -> list[int]:
    """Return a number for each step: the same for the same operator on arguments of the same kinds."""
    numbers: dict[Hashable, int] = {}
    kind = cache(lambda node: Read(node.target if _is_module(node) else kind_of(node.meta.get("val"))))

    def label(step: fx.Node) -> Hashable:
        if not (belongs_in_layers(step) or stands_between_layers(step)):
            return step
        arguments = hashable(map_arg((step.args, step.kwargs), kind))
        return (step.target, arguments, kind(step))

    return [numbers.setdefault(label(step), len(numbers)) for step in steps]


@dataclass(frozen=True)
class _Run:
    """Labels that repeat: each is that of the step a period further on, up to the last period."""

    start: int
    stop: int
    period: int

    @property
    def saved(self) -> int:
        """How many steps need not be compiled."""
        return ((self.stop - self.start) // self.period - 1) * self.period


def _runs(labels: Sequence[int], start: int, stop: int) -> Iterator[_Run]:
    """Yield the runs of some labels that save most, one after the other, in the labels' order."""
    best = max(_candidates(labels, start, stop), key=lambda run: (run.saved, -run.period), default=None)
    if best is not None:
        yield from _runs(labels, start, best.start)
        yield best
        yield from _runs(labels, best.stop, stop)


def _candidates(labels: Sequence[int], start: int, stop: int) -> Iterator[_Run]:
    """Yield for each period the longest run between two places, if there is one."""
    part = labels[start:stop]
    for period in range(_SMALLEST, len(part) // _FEWEST + 1):
        same = list(map(operator.eq, part[period:], part))
        enough = (_FEWEST - 1) * period
        if sum(same) >= enough:
            length, first = _longest(same)
            if length >= enough:
                yield _Run(start + first, start + first + length + period, period)


def _longest(same: Sequence[bool]) -> tuple[int, int]:
    """Return the length of the longest stretch of True, and where it begins."""
    best = (0, 0)
    place = 0
    for equal, group in groupby(same):
        length = len(list(group))
        best = max(best, (length * equal, -place))
        place += length
    return best[0], -best[1]


def _layers(steps: Sequence[fx.Node], period: int) -> Iterator[Layers]:
    """Yield the layers in steps whose labels repeat, without those that by what they read turn out not to be alike."""
    for start, length in _parts(steps, period):
        if sum(map(has_own_kernel, steps[start : start + length])) >= _SMALLEST:
            alike = _alike(steps[at : at + length] for at in range(start, len(steps) - length + 1, period))
            if len(alike) >= _FEWEST and alike[0].structure is not None:
                results = frozenset[tuple[int, int]]().union(*(stretch.results() for stretch in alike))
                yield Layers(
                    tuple(stretch.layer() for stretch in alike),
                    tuple((place, None if part < 0 else part) for place, part in sorted(results)),
                )


def _parts(steps: Sequence[fx.Node], period: int) -> Iterator[tuple[int, int]]:
    """Yield where the first layer, or the first of each part of a layer, begins, and how many steps it has."""
    between = [place for place, step in enumerate(steps[:period]) if not belongs_in_layers(step)]
    if not between:
        yield _best_cut(steps, period), period
    for place, following in pairwise((*between, *(place + period for place in between[:1]))):
        yield place + 1, following - place - 1


def _alike(stretches: Iterable[Sequence[fx.Node]]) -> list[_Stretch]:
    """Return the most stretches in a row that compute the same."""
    groups = groupby(map(_Stretch, stretches), key=lambda stretch: stretch.structure)
    return max((list(group) for _, group in groups), key=len)


def _best_cut(steps: Sequence[fx.Node], period: int) -> int:
    """Return where in the first period to cut: where the least is torn apart that Inductor would fuse.

    Of places that are equal in that, one that leaves the most layers, and where the fewest values pass.
    """
    lost, passing = _crossings(steps)

    def cost(cut: int) -> tuple[int, int, int]:
        count = (len(steps) - cut) // period
        border = cut + count // 2 * period
        return lost[border], -count, passing[border]

    return min(range(period), key=cost)


def _crossings(steps: Sequence[fx.Node]) -> tuple[list[int], list[int]]:
    """Return for the place before each step how many values are read across it, first those that it could be fused."""
    places = {step: place for place, step in enumerate(steps)}
    lost, passing = [0] * (len(steps) + 1), [0] * (len(steps) + 1)
    for step, place in places.items():
        read = [places[reader] for reader in readers(step) if reader in places]
        fused = [reader for reader in read if not (has_own_kernel(step) or has_own_kernel(steps[reader]))]
        for changes, last in ((passing, max(read, default=place)), *((lost, reader) for reader in fused)):
            changes[place + 1] += last > place
            changes[last + 1 if last < len(steps) else last] -= last > place
    return list(accumulate(lost)), list(accumulate(passing))


class _Stretch:
    """Steps that may be a layer.

    Attributes:
        structure: equal for stretches that compute the same; None if no function could.
    """

    def __init__(self, steps: Sequence[fx.Node]) -> None:
        self._steps = tuple(steps)
        self._places = {step: place for place, step in enumerate(steps)}
        self._operands: dict[fx.Node, int] = {}
        self.structure = self._structure()

    def layer(self) -> Layer:
        return Layer(self._steps, tuple(self._operands))

    def _structure(self) -> Hashable:
        structure = tuple(hashable(map_arg((step.args, step.kwargs), self._read)) for step in self._steps)
        return structure if all(map(_may_be_operand, self._operands)) else None

    def _read(self, node: fx.Node) -> Read:
        """Return what a node is to this stretch, whatever it is called."""
        if node in self._places:
            return Read(self._places[node])
        if _is_module(node):
            return Read(node.target)
        if stays_with_readers(node, self._places):
            return Read((node.target, hashable(map_arg((node.args, node.kwargs), self._read))))
        place = self._operands.setdefault(node, len(self._operands))
        return Read(("operand", place, kind_of(node.meta.get("val"))))

    def results(self) -> Iterator[tuple[int, int]]:
        """Yield the place of each step that is read outside, and which part of it, or -1."""
        for step, place in self._places.items():
            if isinstance(step.meta.get("val"), Tensor):
                if self._is_read_outside(step):
                    yield place, -1
                continue
            for part in step.users:
                if self._is_read_outside(part):
                    yield place, part.args[1]

    def _is_read_outside(self, node: fx.Node) -> bool:
        return any(reader not in self._places for reader in readers(node))


def _is_module(node: fx.Node) -> bool:
    return node.op == "get_attr" and not isinstance(node.meta.get("val"), Tensor)


def _may_be_operand(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return isinstance(value, SymInt)
    if symbols_of([node]):
        return False
    offset = value.storage_offset() * value.element_size()
    aligned = isinstance(offset, int) and offset % _ALIGNMENT == 0
    return aligned or value.dim() == 0 or value.device.type == "cpu"
