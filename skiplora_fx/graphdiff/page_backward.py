"""The backward of a graph for a page: its nodes as columns, and when its regions run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from ..passes.operators import VIEWS
from ..policy.base import block_of
from .page_records import Records, types
from .records import Diagram, GraphRecord, NodeRecord, StageRecord

_NOT_COMPUTED = ("placeholder", "get_attr", "output")


def backward_data(graph: GraphRecord, records: Records) -> dict[str, Any] | None:
    """Return what a page evaluates and draws of a graph's backward; None if it has none.

    Args:
        graph: its predicated backward is taken, or the one without regions.
        records: takes in the texts.
    """
    stage = graph.stage("predicated") or graph.stage("backward")
    if stage is None:
        return None
    conditions = stage.conditions if stage.regions and stage.conditions else Diagram((), ())
    return {
        "stage": stage.name,
        "rows": [list(row) for row in conditions.rows],
        "roots": list(conditions.roots),
        "regions": [
            {
                "number": region.number,
                "condition": region.condition,
                "flops": region.flops,
                "nodes": len(region.nodes),
                "otherwise": [[records.text(name), records.text(fill)] for name, fill in region.outputs.items()],
            }
            for region in stage.regions
        ],
        "nodes": _columns(stage, records),
    }


def _columns(stage: StageRecord, records: Records) -> dict[str, Any]:
    """Return the nodes that compute something as columns of equal length; ``reads`` are places in them."""
    nodes = [node for node in stage.nodes if node.op not in _NOT_COMPUTED]
    places = {node.name: place for place, node in enumerate(nodes)}
    modules = _modules(nodes)
    return {
        "name": [records.text(node.name) for node in nodes],
        "target": [records.text(node.target) for node in nodes],
        "types": [records.text(types(node)) for node in nodes],
        "module": [records.text(modules[node.name]) for node in nodes],
        "region": [node.region for node in nodes],
        "flops": [node.flops or 0 for node in nodes],
        "view": "".join("01"[_is_view(node)] for node in nodes),
        "reads": [[places[name] for name in dict.fromkeys(node.inputs) if name in places] for node in nodes],
    }


def _is_view(node: NodeRecord) -> bool:
    """Return whether a node only renames memory: one that always runs costs nothing."""
    return ".".join(node.target.split(".")[:2]) in VIEWS


def _modules(nodes: Sequence[NodeRecord]) -> dict[str, str]:
    """Return where each node is drawn: sums of gradients, which have no module, around what they add up."""
    found: dict[str, str] = {}
    for node in nodes:
        read = [found[name] for name in node.inputs if found.get(name)]
        found[node.name] = node.module or (_around(read) if read else "")
    return found


def _around(modules: Sequence[str]) -> str:
    """Return the module around some, no further out than the layer of the last: there a residual's gradients meet."""
    parts = zip(*(module.split(".") for module in modules), strict=False)
    common = ".".join(same[0] for same in takewhile(lambda some: len(set(some)) == 1, parts))
    layer = block_of(modules[-1])
    return common if f"{common}.".startswith(f"{layer}.") else layer
