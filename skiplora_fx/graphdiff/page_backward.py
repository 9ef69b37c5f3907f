"""The backward of a graph for a page: its nodes as columns, and when its regions run."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

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


def _columns(stage: StageRecord, records: Records) -> dict[str, list[Any]]:
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
        "reads": [[places[name] for name in dict.fromkeys(node.inputs) if name in places] for node in nodes],
    }


def _modules(nodes: Sequence[NodeRecord]) -> dict[str, str]:
    """Return where each node is drawn: autograd's sums of gradients, which have no module, around what they add up."""
    found: dict[str, str] = {}
    for node in nodes:
        around = [found[name].split(".") for name in node.inputs if found.get(name)]
        found[node.name] = node.module or ".".join(commonprefix(around))
    return found
