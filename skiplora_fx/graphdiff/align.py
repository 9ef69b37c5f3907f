"""Which node of one graph is which of another, and what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Literal

from .fingerprints import condition_prints, downstream_prints, kind_of, literals, upstream_prints
from .records import Diagram, NodeRecord, StageRecord, without_number

Method = Literal["name", "structure"]
Change = Literal["same", "added", "removed", "rewired", "changed"]

_POPULAR = 2000  # items from which on difflib may leave frequent ones out: its time is quadratic in those


@dataclass(frozen=True)
class Pair:
    """A node before and after; None where it is not there.

    Attributes:
        before, after: one of the two is there.
        change: ``"rewired"``: it reads other nodes; ``"changed"``: it reads the same, and something else differs.
        fields: what differs: ``"inputs"`` and fields of :class:`NodeRecord`; ``"region"`` where it has come to run
            under a condition.
    """

    before: NodeRecord | None
    after: NodeRecord | None
    change: Change
    fields: tuple[str, ...] = ()

    @property
    def node(self) -> NodeRecord:
        """The node as it is after, or was if it is gone."""
        node = self.after if self.after is not None else self.before
        assert node is not None
        return node


@dataclass(frozen=True)
class Alignment:
    """Two stages, node by node.

    Attributes:
        method: ``"name"`` within one run, whose passes keep the names of nodes, else ``"structure"``.
        before, after: the two.
        pairs: each node of both in one pair, in the order of ``after``, what is gone where it was.
    """

    method: Method
    before: StageRecord
    after: StageRecord
    pairs: tuple[Pair, ...]

    @cached_property
    def counts(self) -> Mapping[Change, int]:
        """How many pairs there are of each change."""
        return Counter(pair.change for pair in self.pairs)

    @property
    def changed(self) -> bool:
        """Whether any node is not the same."""
        return any(pair.change != "same" for pair in self.pairs)

    @cached_property
    def after_of(self) -> Mapping[str, str]:
        """Names after, by names before."""
        return {pair.before.name: pair.after.name for pair in self.pairs if pair.before and pair.after}


def align(before: StageRecord, after: StageRecord, method: Method) -> Alignment:
    """Align two stages.

    Args:
        before, after: two stages.
        method: ``"name"`` if a pass made one graph of the other. ``"structure"`` knows nothing of names: inputs are
            aligned first, in order; then, module by module, what is computed alike from them and what is used alike,
            whose hashes are equal, and the longest common sequences of operators between (Ratcliff and Obershelp's
            method, as ``difflib`` has it); at last the same over all modules.
    """
    if method == "name":
        classify = _Classifier(before, after, _by_name(before, after))
    else:
        structure = _Structure(before, after)
        classify = _Classifier(before, after, structure.matched(), structure.alike)
    return Alignment(method, before, after, _in_order(before, after, classify))


def _by_name(before: StageRecord, after: StageRecord) -> dict[str, str]:
    return {name: name for name in before.by_name if name in after.by_name}


class _Classifier:
    """Says what became of each node, given which is which.

    Args:
        before, after: the stages.
        matched: names after, by names before.
        alike: across runs, whether two nodes compute the same from the same inputs, of which one may be a twin of the
            other; then conditions are compared too.
    """

    def __init__(
        self,
        before: StageRecord,
        after: StageRecord,
        matched: Mapping[str, str],
        alike: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.matched = matched
        self._alike = alike
        self._conditions = _Conditions.of(before), _Conditions.of(after)
        self._both = alike is not None and before.conditions is not None and after.conditions is not None

    def pair(self, before: NodeRecord, after: NodeRecord) -> Pair:
        fields = self._fields(before, after)
        change: Change = "rewired" if "inputs" in fields else "changed" if fields else "same"
        return Pair(before, after, change, fields)

    def _fields(self, before: NodeRecord, after: NodeRecord) -> tuple[str, ...]:
        differs = {
            "inputs": not self._same_inputs(before, after),
            "op": before.op != after.op,
            "target": _label(before) != _label(after),
            "args": literals(before.args) != literals(after.args),
            "kwargs": literals(before.kwargs) != literals(after.kwargs),
            "tensors": before.tensors != after.tensors,
            "region": (before.region is None) != (after.region is None),
            "condition": self._both and self._conditions[0](before) != self._conditions[1](after),
        }
        return tuple(name for name, found in differs.items() if found)

    def _same_inputs(self, before: NodeRecord, after: NodeRecord) -> bool:
        if self._alike is not None and self._alike(before.name, after.name):
            return True
        inputs = [self.matched.get(_without_copy(name), "") for name in before.inputs]
        return inputs == [_without_copy(name) for name in after.inputs]


@dataclass(frozen=True)
class _Conditions:
    """Tells conditions of different stages apart by what they mean, not by their numbers."""

    prints: Sequence[str]
    of_regions: Mapping[int, int]

    @classmethod
    def of(cls, stage: StageRecord) -> _Conditions:
        regions = {region.number: region.condition for region in stage.regions}
        return cls(condition_prints(stage.conditions or Diagram((), ())), regions)

    def __call__(self, node: NodeRecord) -> str | None:
        index = node.condition if node.region is None else self.of_regions[node.region]
        return None if index is None else self.prints[index]


def _without_copy(name: str) -> str:
    """Return the name that a node has where it is not one of several copies, one for each region."""
    return name.partition("@")[0]


def _label(node: NodeRecord) -> str:
    """Return the target, without the number that an input only has because others come before it."""
    return without_number(node.target) if node.op == "placeholder" else node.target


def _in_order(before: StageRecord, after: StageRecord, classify: _Classifier) -> tuple[Pair, ...]:
    """Return all pairs; what is gone stands after what it stood after."""
    gone: dict[str, list[Pair]] = defaultdict(list)
    last = ""
    for node in before.nodes:
        if node.name in classify.matched:
            last = classify.matched[node.name]
        else:
            gone[last].append(Pair(node, None, "removed"))
    origin = {there: here for here, there in classify.matched.items()}
    pairs = gone[""]
    for node in after.nodes:
        known = origin.get(node.name)
        pairs.append(Pair(None, node, "added") if known is None else classify.pair(before.by_name[known], node))
        pairs += gone[node.name]
    return tuple(pairs)


class _Structure:
    """Finds which node is which by what they compute and who uses it."""

    def __init__(self, before: StageRecord, after: StageRecord) -> None:
        self._before = before
        self._after = after
        self._matched: dict[str, str] = {}
        self._taken: set[str] = set()
        self._above: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
        self._below: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    def alike(self, before: str, after: str) -> bool:
        """Return whether two nodes compute the same from the same inputs."""
        return self._above[0][before] == self._above[1][after]

    def matched(self) -> dict[str, str]:
        self._match_signatures()
        users = _local_uses(self._before), _local_uses(self._after)
        self._match_inputs(lambda node, side: (_label(node), node.tensors, users[side][node.name]))
        self._match_inputs(lambda node, side: (_label(node), node.tensors))
        self._match_inputs(lambda node, side: _label(node))
        self._hash()
        self._match_hashes(lambda node: node.module)
        self._match_sequences(lambda node: (node.module, *kind_of(node)))
        self._match_sequences(lambda node: (node.module, node.op, node.target))
        self._match_hashes(lambda node: "")
        self._match_sequences(kind_of)
        return self._matched

    def _left(self) -> tuple[list[NodeRecord], list[NodeRecord]]:
        before = [node for node in self._before.nodes if node.name not in self._matched]
        return before, [node for node in self._after.nodes if node.name not in self._taken]

    def _match(self, before: NodeRecord, after: NodeRecord) -> None:
        self._matched[before.name] = after.name
        self._taken.add(after.name)

    def _match_signatures(self) -> None:
        """Match inputs by their places where both graphs take the same."""
        before, after = ([node for node in side if node.op == "placeholder"] for side in self._left())
        if [(_label(node), node.tensors) for node in before] == [(_label(node), node.tensors) for node in after]:
            for one, other in zip(before, after, strict=True):
                self._match(one, other)

    def _match_inputs(self, key: Callable[[NodeRecord, int], Hashable]) -> None:
        before, after = ([node for node in side if node.op in _GIVEN] for side in self._left())
        for one, other in _common(before, after, lambda node: key(node, 0), lambda node: key(node, 1)):
            self._match(one, other)

    def _hash(self) -> None:
        shared = {before: before for before in self._matched}
        back = {after: before for before, after in self._matched.items()}
        self._above = upstream_prints(self._before, shared), upstream_prints(self._after, back)
        self._below = downstream_prints(self._before), downstream_prints(self._after)

    def _match_hashes(self, group: Callable[[NodeRecord], str]) -> None:
        """Match what is computed and used alike, then what is computed alike, then what is used alike."""
        above, below = self._above, self._below
        self._match_equal(lambda node, side: (group(node), above[side][node.name], below[side][node.name]))
        self._match_equal(lambda node, side: (group(node), above[side][node.name]))
        self._match_equal(lambda node, side: (group(node), below[side][node.name]))

    def _match_equal(self, key: Callable[[NodeRecord, int], Hashable]) -> None:
        """Match the nodes of equal keys in their order, if both sides have as many of them."""
        groups: tuple[dict[Hashable, list[NodeRecord]], ...] = (defaultdict(list), defaultdict(list))
        for side, nodes in enumerate(self._left()):
            for node in nodes:
                groups[side][key(node, side)].append(node)
        for common, nodes in groups[0].items():
            others = groups[1].get(common, [])
            if len(nodes) == len(others):
                for one, other in zip(nodes, others, strict=True):
                    self._match(one, other)

    def _match_sequences(self, key: Callable[[NodeRecord], tuple[Any, ...]]) -> None:
        """Match the longest common sequences of keys, in each group of nodes whose keys begin alike."""
        before, after = map(_grouped_by_first(key), self._left())
        for first, nodes in before.items():
            for one, other in _common(nodes, after.get(first, ()), key, key):
                self._match(one, other)


_GIVEN = ("placeholder", "get_attr")


def _grouped_by_first(
    key: Callable[[NodeRecord], tuple[Any, ...]],
) -> Callable[[Collection[NodeRecord]], dict[Any, list[NodeRecord]]]:
    def grouped(nodes: Collection[NodeRecord]) -> dict[Any, list[NodeRecord]]:
        groups: dict[Any, list[NodeRecord]] = defaultdict(list)
        for node in nodes:
            groups[key(node)[0]].append(node)
        return groups

    return grouped


def _common(
    before: Sequence[NodeRecord],
    after: Sequence[NodeRecord],
    key_before: Callable[[NodeRecord], Hashable],
    key_after: Callable[[NodeRecord], Hashable],
) -> list[tuple[NodeRecord, NodeRecord]]:
    keys = list(map(key_before, before)), list(map(key_after, after))
    matcher = SequenceMatcher(None, *keys, autojunk=max(map(len, keys)) > _POPULAR)
    return [
        (before[block.a + step], after[block.b + step])
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    ]


def _local_uses(stage: StageRecord) -> dict[str, tuple[Any, ...]]:
    """Return for each node by which operators, in which modules, it is read."""
    uses: dict[str, list[Any]] = defaultdict(list)
    for node in stage.nodes:
        for place, name in enumerate(node.inputs):
            uses[name].append((node.target, node.module, place))
    return {node.name: tuple(sorted(uses[node.name])) for node in stage.nodes}
