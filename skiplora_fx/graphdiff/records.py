"""What a snapshot holds: plain data, written as JSON by ``files.py`` and read by everything else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

VERSION = 1
"""Of the JSON. It grows when a reader of the old one would misunderstand the new."""


@dataclass(frozen=True)
class TensorRecord:
    """A tensor's type; a size that may vary is text."""

    dtype: str
    shape: tuple[int | str, ...]
    stride: tuple[int | str, ...]
    device: str


@dataclass(frozen=True)
class NodeRecord:
    """One node of a graph.

    Attributes:
        name: unique in its stage.
        op: as in ``torch.fx``.
        target: qualified name of what is called, or what an input or attribute is called.
        args, kwargs: JSON. A node is ``{"node": name}``; what JSON has no word for is ``{"literal": text}``,
            ``{"slice": [start, stop, step]}`` or ``{"dict": {...}}``.
        tensors: types of the result: none for a number, several for an operator with several results.
        module: path of the module in whose forward the node, or what it is the derivative of, was traced.
        module_type: that module's class.
        source: ``file:line, code`` of the model.
        origin: names of the nodes that it came from in earlier graphs, the first one first.
        site: index of the site that it belongs to.
        condition: index, among its stage's conditions, of when it has to run; None where that was not asked.
        region: number of the region that it runs in; None where it always runs.
        flops: a multiplication and an addition as two; None where no formula covers it.
    """

    name: str
    op: str
    target: str
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    tensors: tuple[TensorRecord, ...] = ()
    module: str = ""
    module_type: str = ""
    source: str = ""
    origin: tuple[str, ...] = ()
    site: int | None = None
    condition: int | None = None
    region: int | None = None
    flops: int | None = None

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes that it reads, in the order of its arguments, as often as it reads them."""
        return tuple(nodes_in((self.args, self.kwargs)))


def nodes_in(argument: Any) -> Iterator[str]:
    """Yield the names of the nodes in an argument, which is JSON as in :class:`NodeRecord`."""
    if isinstance(argument, (list, tuple)):
        for part in argument:
            yield from nodes_in(part)
    elif isinstance(argument, Mapping):
        if isinstance(argument.get("node"), str) and len(argument) == 1:
            yield argument["node"]
        else:
            yield from nodes_in(list(argument.values()))


def without_number(name: str) -> str:
    """Return a node's or an input's name without the numbers that make it unique."""
    return re.sub(r"(_\d+)+$", "", name)


@dataclass(frozen=True)
class Diagram:
    """Conditions over the decisions, as the compiled backward evaluates them.

    To evaluate: ``values = [false, true]``; for each row ``(site, low, high)`` in order append
    ``values[high]`` if the site's gate is open, else ``values[low]``; condition ``k`` is ``values[roots[k]]``.
    """

    rows: tuple[tuple[int, int, int], ...]
    roots: tuple[int, ...]

    def under(self, opens: Sequence[bool]) -> list[bool]:
        """Return each condition under the decisions ``opens``, True where a gate is open."""
        values = [False, True]
        for site, low, high in self.rows:
            values.append(values[high] if opens[site] else values[low])
        return [values[root] for root in self.roots]


@dataclass(frozen=True)
class RegionRecord:
    """Part of a predicated backward that is executed under one condition.

    Attributes:
        number: as in the graph's ``skiplora_region_<number>_true``.
        condition: index among the stage's conditions.
        nodes: names of what it runs.
        outputs: for each of its results what stands in for it otherwise: the operator's name.
        flops: of its nodes.
    """

    number: int
    condition: int
    nodes: tuple[str, ...]
    outputs: Mapping[str, str]
    flops: int


@dataclass(frozen=True)
class StageRecord:
    """One graph at one point of the pipeline.

    Attributes:
        name: one of :data:`~skiplora_fx.graphdiff.stages.STAGES`.
        nodes: in the graph's order; what regions run stands where their ``cond`` does.
        conditions: those that nodes and regions refer to, if the stage has any.
        regions: of a predicated backward.
    """

    name: str
    nodes: tuple[NodeRecord, ...]
    conditions: Diagram | None = None
    regions: tuple[RegionRecord, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, NodeRecord]:
        """The nodes by their names."""
        return {node.name: node for node in self.nodes}


@dataclass(frozen=True)
class SiteRecord:
    """One adapter that is gated; ``join``, ``h`` and ``delta`` name nodes of the captured graph.

    Or, of kind ``"border"``, an input that another graph hands on, which ``join`` names.
    """

    index: int
    name: str
    adapter: str
    kind: str
    rank: int
    join: str
    h: str
    delta: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class RejectionRecord:
    """Something that trains and is not gated; fields as of :class:`~skiplora_fx.site.Rejection`."""

    name: str
    reason: str
    node: str
    family: str
    source: str = ""


@dataclass(frozen=True)
class GraphRecord:
    """One graph that Dynamo captured, at every stage that it reached.

    Attributes:
        number: in the order in which they were captured.
        sites: in the order of the forward; named as in the first call of the graph.
        rejections: what trains and is not gated.
        calls: for each call in a forward the names of its sites: layers that are alike may share a graph.
        stages: in the order in which they come about.
    """

    number: int
    sites: tuple[SiteRecord, ...]
    rejections: tuple[RejectionRecord, ...]
    calls: tuple[tuple[str, ...], ...]
    stages: tuple[StageRecord, ...]

    def stage(self, name: str) -> StageRecord | None:
        """Return the stage called ``name``, if the graph reached it."""
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True)
class Snapshot:
    """Every graph of one forward of a model, at every stage.

    Attributes:
        model: the model's class.
        scope: of the gates.
        versions: of torch and skiplora_fx.
        graphs: those with something to differentiate.
    """

    model: str
    scope: str
    versions: Mapping[str, str]
    graphs: tuple[GraphRecord, ...]
