"""What changed, in pieces: connected nodes that changed, pieces of one shape told once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .align import Alignment, Pair
from .records import nodes_in

_HUB = 3
"""A node that so many changed nodes of one operator read, or are read by, joins no hunks, nor does one that takes a
list of nodes: what hands each site its threshold, or gathers the ratios, would else make one hunk of all sites."""


@dataclass(frozen=True)
class Hunk:
    """Connected nodes that changed.

    Attributes:
        pairs: those nodes and, where ``context`` says so, what they read and what reads them, in order.
        context: for each pair whether it is the same before and after.
    """

    pairs: tuple[Pair, ...]
    context: tuple[bool, ...]

    @property
    def changed(self) -> tuple[Pair, ...]:
        """The pairs that changed."""
        return tuple(pair for pair, same in zip(self.pairs, self.context, strict=True) if not same)

    @property
    def sites(self) -> tuple[int, ...]:
        """The sites of its nodes, of those that changed if they have any."""
        found = {pair.node.site for pair in self.changed} - {None} or {pair.node.site for pair in self.pairs} - {None}
        return tuple(sorted(site for site in found if site is not None))


@dataclass(frozen=True)
class Shape:
    """Hunks that are alike but for names, numbers and sizes."""

    hunks: tuple[Hunk, ...]

    @property
    def example(self) -> Hunk:
        """The first of them."""
        return self.hunks[0]


def find_hunks(alignment: Alignment) -> tuple[Hunk, ...]:
    """Return the connected components of what changed, each with its neighbours, in the order of the graph.

    Nodes of different regions are not connected.
    """
    return _Hunks(alignment).found()


def fold(hunks: Sequence[Hunk]) -> tuple[Shape, ...]:
    """Group hunks of one shape, the first of each in order."""
    groups: dict[tuple[object, ...], list[Hunk]] = defaultdict(list)
    for hunk in hunks:
        groups[_shape(hunk)].append(hunk)
    return tuple(Shape(tuple(group)) for group in groups.values())


class _Hunks:
    """The state of one call of ``find_hunks``; nodes go by their place among the pairs."""

    def __init__(self, alignment: Alignment) -> None:
        self._pairs = alignment.pairs
        self._before = {pair.before.name: at for at, pair in enumerate(self._pairs) if pair.before}
        self._after = {pair.after.name: at for at, pair in enumerate(self._pairs) if pair.after}
        self._neighbours: dict[int, set[int]] = defaultdict(set)
        for at, source in self._edges():
            self._neighbours[at].add(source)
            self._neighbours[source].add(at)
        self._changed = [at for at, pair in enumerate(self._pairs) if pair.change != "same"]
        self._hubs = {at for at in self._changed if self._is_hub(at)}

    def _edges(self) -> Iterator[tuple[int, int]]:
        for at, pair in enumerate(self._pairs):
            for side, places in ((pair.before, self._before), (pair.after, self._after)):
                for name in side.inputs if side else ():
                    yield at, places[name]

    def _is_hub(self, at: int) -> bool:
        changed = [self._pairs[other].node for other in self._neighbours[at] if self._pairs[other].change != "same"]
        alike = Counter(node.target for node in changed).values()
        node = self._pairs[at].node
        gathers = any(isinstance(part, list) and len(list(nodes_in(part))) > 1 for part in node.args)
        return node.op in ("placeholder", "output") or gathers or max(alike, default=0) >= _HUB

    def found(self) -> tuple[Hunk, ...]:
        seen: set[int] = set()
        hunks = []
        for at in self._changed:
            if at not in seen:
                component = self._component(at)
                seen |= component
                hunks.append(self._hunk(component))
        return tuple(hunks)

    def _component(self, start: int) -> set[int]:
        found, ahead = {start}, [start]
        while ahead:
            at = ahead.pop()
            for other in self._neighbours[at]:
                if other not in found and self._joins(at, other):
                    found.add(other)
                    ahead.append(other)
        return found

    def _joins(self, at: int, other: int) -> bool:
        one, two = self._pairs[at], self._pairs[other]
        return two.change != "same" and not {at, other} & self._hubs and one.node.region == two.node.region

    def _hunk(self, component: set[int]) -> Hunk:
        # A hub's neighbours are no context: there are too many, and each has its own hunk.
        around = {other for at in component - self._hubs for other in self._neighbours[at]}
        context = {at for at in around if self._pairs[at].change == "same"}
        order = sorted(component | context)
        return Hunk(tuple(self._pairs[at] for at in order), tuple(at not in component for at in order))


def _shape(hunk: Hunk) -> tuple[object, ...]:
    changed = hunk.changed
    before = {pair.before.name: place for place, pair in enumerate(changed) if pair.before}
    after = {pair.after.name: place for place, pair in enumerate(changed) if pair.after}

    def side(pair: Pair, is_after: bool) -> object:
        node, places = (pair.after, after) if is_after else (pair.before, before)
        if node is None:
            return None
        target = "" if node.op in ("placeholder", "get_attr") else node.target
        return node.op, target, tuple(places.get(name, -1) for name in nodes_in((node.args, node.kwargs)))

    return tuple((pair.change, pair.fields, side(pair, False), side(pair, True)) for pair in changed)
