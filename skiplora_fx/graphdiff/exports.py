"""Graphs for other viewers: Graphviz, and Model Explorer (google-ai-edge)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..visible import visible
from .align import Change, Pair
from .graph_diff import Transition
from .records import NodeRecord, StageRecord
from .text import node_line

_COLOURS: Mapping[Change, str] = {
    "added": "#b7e4b0",
    "removed": "#f4b6b6",
    "rewired": "#f7dd9a",
    "changed": "#b9d4f5",
    "same": "#eeeeee",
}


def dot(transition: Transition) -> str:
    """Return what changed, one hunk of each shape, in Graphviz's language; colours say what became of a node."""
    lines = ["digraph changes {", '  node [shape=box, style=filled, fontname="monospace"];']
    for number, shape in enumerate(transition.shapes):
        lines += [f"  subgraph cluster_{number} {{", f'    label="×{len(shape.hunks)}";']
        places = {id(pair): f"n{number}_{place}" for place, pair in enumerate(shape.example.pairs)}
        lines += [f"    {places[id(pair)]} [{_attributes(pair)}];" for pair in shape.example.pairs]
        lines += [f"    {edge};" for edge in _edges(shape.example.pairs, places)]
        lines.append("  }")
    return "\n".join([*lines, "}"])


def _attributes(pair: Pair) -> str:
    label = f"{pair.node.name}\n{pair.node.target}"
    return (
        f"label={_quoted(label)}, tooltip={_quoted(node_line(pair.node))}, fillcolor={_quoted(_COLOURS[pair.change])}"
    )


def _quoted(text: str) -> str:
    lines = (visible(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'


def _edges(pairs: tuple[Pair, ...], places: Mapping[int, str]) -> Iterator[str]:
    """Yield the edges between some pairs: dashed red where they are gone, green where they are new."""
    for pair in pairs:
        before, after = _sources(pair, pairs, before=True), _sources(pair, pairs, before=False)
        for source in dict.fromkeys([*before, *after]):
            style = "" if source in before and source in after else ' [color="green"]'
            style = ' [color="red", style=dashed]' if source not in after else style
            yield f"{places[source]} -> {places[id(pair)]}{style}"


def _sources(pair: Pair, pairs: tuple[Pair, ...], before: bool) -> list[int]:
    node = pair.before if before else pair.after
    if node is None:
        return []
    known = {side.name: id(one) for one in pairs if (side := one.before if before else one.after) is not None}
    return [known[name] for name in node.inputs if name in known]


def model_explorer(stage: StageRecord) -> list[dict[str, Any]]:
    """Return a stage as Model Explorer's built-in JSON adapter takes it; modules are its layers."""
    nodes = [_explorer_node(node) for node in stage.nodes]
    return [{"label": stage.name, "graphs": [{"id": stage.name, "nodes": nodes}]}]


def _explorer_node(node: NodeRecord) -> dict[str, Any]:
    attributes = {
        "call": node_line(node),
        "source": node.source,
        "module class": node.module_type,
        "region": "" if node.region is None else str(node.region),
        "FLOPs": "" if node.flops is None else str(node.flops),
    }
    edges = [
        {"sourceNodeId": source, "sourceNodeOutputId": "0", "targetNodeInputId": str(place)}
        for place, source in enumerate(node.inputs)
    ]
    return {
        "id": node.name,
        "label": visible(node.target),
        "namespace": visible(node.module).replace(".", "/"),
        "attrs": [{"key": key, "value": visible(value)} for key, value in attributes.items() if value],
        "incomingEdges": edges,
        "outputsMetadata": [
            {
                "id": str(place),
                "attrs": [{"key": "tensor_shape", "value": f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"}],
            }
            for place, tensor in enumerate(node.tensors)
        ],
    }


def model_explorer_mapping(transition: Transition) -> dict[str, Any]:
    """Return the mapping that Model Explorer's split view takes: which node on the left is which on the right."""
    return {"type": "sync_navigation", "mapping": dict(transition.alignment.after_of), "showDiffHighlights": True}


def model_explorer_node_data(transition: Transition) -> dict[str, Any]:
    """Return node data for Model Explorer: what became of each node of the later stage, in words and in colour."""
    pairs = [(pair.after.name, pair.change) for pair in transition.alignment.pairs if pair.after is not None]
    results = {name: {"value": change, "bgColor": _COLOURS[change]} for name, change in pairs}
    return {transition.alignment.after.name: {"results": results}}
