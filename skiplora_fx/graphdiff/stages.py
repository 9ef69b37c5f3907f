"""The stages of one compile, recorded between the passes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import fx

from ..gate import EVALUATE_CONDITIONS
from ..passes.conditions import flatten
from ..passes.liveness import Liveness, gate_sites, is_gate, liveness
from ..passes.operators import COND
from ..site import Site
from .record_nodes import record_node, target_name
from .records import Diagram, NodeRecord, RegionRecord, StageRecord

STAGES: Mapping[str, str] = {
    "captured": "the forward as Dynamo captured it, and as the search for adapters sees it",
    "gated": "the same with a gate at each site",
    "merged": "the same, the products that sibling adapters make of one input in one",
    "joint": "forward and backward in one, as autograd wrote them",
    "folded": "the same without the forward's gates",
    "forward": "the partitioned forward",
    "backward": "the partitioned backward, its gates in it",
    "predicated": "the backward with a cond for each region: what is compiled",
}
"""Every stage, in the order in which they come about, and what it is."""

_STAGE_AFTER: Mapping[str, str] = {
    "find_lora": "captured",
    "insert_gates": "gated",
    "merge_siblings": "merged",
    "joint": "joint",
    "fold_gates": "folded",
    "forward": "forward",
    "backward": "backward",
    "predicate_backward": "predicated",
}
"""What :data:`~skiplora_fx.passes.OnPass` calls the moment, and the stage that there is then."""


class StageRecorder:
    """A callback for :class:`~skiplora_fx.passes.Pipeline` that records each stage.

    Args:
        on_stage: called with each stage, if given.

    Attributes:
        stages: so far.
    """

    def __init__(self, on_stage: Callable[[StageRecord], None] = lambda stage: None) -> None:
        self.stages: list[StageRecord] = []
        self._on_stage = on_stage

    def __call__(self, name: str, kind: str, graph: fx.Graph) -> None:
        if name in _STAGE_AFTER:
            stage = record_stage(_STAGE_AFTER[name], graph)
            self.stages.append(stage)
            self._on_stage(stage)


def record_stage(name: str, graph: fx.Graph) -> StageRecord:
    """Record a graph.

    Args:
        name: of the stage; ``"backward"`` is analysed for when its nodes have to run, and of a graph with regions
            the true branches are written out.
        graph: it is not changed.
    """
    if name == "backward":
        return _backward(graph)
    return _predicated(name, graph)


def with_sites(stages: Sequence[StageRecord], sites: Sequence[Site]) -> tuple[StageRecord, ...]:
    """Return ``stages`` with the site of each node: of its module, of a module around it, or of the gate that it is."""
    prefixes = {site.name: site.index for site in reversed(sites) if site.name}
    found = (replace(stage, nodes=tuple(_with_site(node, prefixes) for node in stage.nodes)) for stage in stages)
    return tuple(found)


def _with_site(node: NodeRecord, prefixes: Mapping[str, int]) -> NodeRecord:
    path = node.module
    while path and node.site is None:
        if path in prefixes:
            return replace(node, site=prefixes[path])
        path = path.rpartition(".")[0]
    return node


def _site_of_gate(node: fx.Node) -> int | None:
    if node.op != "call_function" or getattr(node.target, "namespace", None) != "skiplora" or len(node.args) != 3:
        return None
    sites = node.args[2]
    return cast(int, sites[0]) if isinstance(sites, (list, tuple)) and sites else None


def _backward(graph: fx.Graph) -> StageRecord:
    sites = 1 + max((site for node in graph.nodes if is_gate(node) for site in gate_sites(node)), default=-1)
    analysis = liveness(graph, sites)
    found = list(dict.fromkeys(analysis.live[node] for node in graph.nodes if node.op == "call_function"))
    indices = {condition: index for index, condition in enumerate(found)}
    nodes = tuple(_analysed(node, analysis, indices) for node in graph.nodes)
    return StageRecord("backward", nodes, diagram(*flatten(found)))


def _analysed(node: fx.Node, analysis: Liveness, indices: Mapping[Any, int]) -> NodeRecord:
    condition = indices[analysis.live[node]] if node.op == "call_function" else None
    return record_node(node, _own_name, condition=condition, site=_site_of_gate(node))


def _own_name(node: fx.Node) -> str:
    return node.name


def diagram(table: str, roots: str) -> Diagram:
    """Return the conditions that ``skiplora::evaluate_conditions`` takes as text."""
    numbers = list(map(int, table.split()))
    rows = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    return Diagram(rows, tuple(map(int, roots.split())))


def _predicated(name: str, graph: fx.Graph) -> StageRecord:
    evaluated = next((node for node in graph.nodes if node.target is EVALUATE_CONDITIONS), None)
    if evaluated is None:
        return StageRecord(name, tuple(record_node(node, _own_name, site=_site_of_gate(node)) for node in graph.nodes))
    conditions = diagram(*cast(tuple[str, str], evaluated.args[1:]))
    return _WrittenOut(graph, evaluated).stage(name, conditions)


class _WrittenOut:
    """The state of recording one predicated backward, the true branch of each ``cond`` in its place."""

    def __init__(self, graph: fx.Graph, evaluated: fx.Node) -> None:
        self._graph = graph
        self._evaluated = evaluated
        self._names: dict[fx.Node, str] = {node: node.name for node in graph.nodes}
        self._taken = set(self._names.values()) - {node.name for node in graph.nodes if self._is_plumbing(node)}
        self._nodes: list[NodeRecord] = []
        self._regions: list[RegionRecord] = []

    def stage(self, name: str, conditions: Diagram) -> StageRecord:
        for node in self._graph.nodes:
            if _is_cond(node):
                self._add_region(node)
            elif not self._is_plumbing(node):
                self._nodes.append(record_node(node, self._names.__getitem__))
        return StageRecord(name, tuple(self._nodes), conditions, tuple(self._regions))

    def _is_plumbing(self, node: fx.Node) -> bool:
        """Return whether a node only ties a cond to the graph."""
        if node.op == "get_attr":
            return bool(node.users) and all(map(_is_cond, node.users))
        if node.op != "call_function":
            return False
        selects = node.target is torch.ops.aten.select.int and node.args[0] is self._evaluated
        return _is_cond(node) or selects or (node.target is operator.getitem and _is_cond(node.args[0]))

    def _add_region(self, cond: fx.Node) -> None:
        predicate, true, false, operands = cond.args
        number = int(str(cast(fx.Node, true).target).split("_")[-2])
        graph = _branch(true).graph
        self._name_inputs(graph, cast(Sequence[fx.Node], operands))
        inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        for node in inner:
            self._names[node] = self._free_name(node.name, number)
        records = [record_node(node, self._names.__getitem__, region=number) for node in inner]
        results = _results(graph)
        self._name_results(cond, results)
        self._nodes += records
        outputs = {
            self._names[node]: target_name(fill.target)
            for node, fill in zip(results, _results(_branch(false).graph), strict=True)
        }
        self._regions.append(
            RegionRecord(
                number=number,
                condition=cast(int, cast(fx.Node, predicate).args[2]),
                nodes=tuple(record.name for record in records),
                outputs=outputs,
                flops=sum(record.flops or 0 for record in records),
            )
        )

    def _name_inputs(self, graph: fx.Graph, operands: Sequence[fx.Node]) -> None:
        for inner, outer in zip(graph.find_nodes(op="placeholder"), operands, strict=True):
            self._names[inner] = self._names[outer]

    def _name_results(self, cond: fx.Node, results: Sequence[fx.Node]) -> None:
        for part in cond.users:
            self._names[part] = self._names[results[cast(int, part.args[1])]]

    def _free_name(self, name: str, region: int) -> str:
        free = name if name not in self._taken else f"{name}@{region}"
        self._taken.add(free)
        return free


def _is_cond(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is COND


def _branch(attribute: Any) -> fx.GraphModule:
    owner = attribute.graph.owning_module
    return cast(fx.GraphModule, getattr(owner, attribute.target))


def _results(graph: fx.Graph) -> list[fx.Node]:
    return list(cast(Sequence[fx.Node], graph.output_node().args[0]))
