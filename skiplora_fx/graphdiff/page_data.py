"""What a page shows of a comparison, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from ..logged_run import Run
from ..policy.base import block_of, site_id
from ..visible import visible
from .align import Pair
from .graph_diff import GraphDiff, Transition
from .hunks import Hunk
from .page_backward import backward_data
from .page_records import FIELDS, Records
from .page_timeline import timeline_data
from .records import NodeRecord, RejectionRecord, Snapshot
from .stages import STAGES

MOST_NODES = 20_000
"""Nodes of a comparison after which of each shape the first hunk is held: a Llama of 32 layers has half as many."""
MOST_IN_HUNK = 1_000
"""Nodes of one hunk that are held; two models that have little in common differ in one large hunk."""
MOST_LINES = 20_000
"""Lines of a unified diff that are held."""


def page_data(found: GraphDiff, run: Run | None = None) -> dict[str, Any]:
    """Return a comparison, and a run if there is one, as lists, dicts, texts and numbers.

    Whole graphs are not in it: of a comparison only the nodes in hunks, with their context, in full; of the backward
    each node, as columns. Places among ``texts`` and ``records`` stand for what is there.
    """
    records = Records()
    last = found.snapshots[-1]
    data = {
        "fields": list(FIELDS),
        "stages": dict(STAGES),
        "snapshots": [_snapshot(snapshot) for snapshot in found.snapshots],
        "transitions": [_Shown(transition, records).data() for transition in found.transitions],
        "calls": _calls(last),
        "sites": _sites(found, last),
        "rejections": [_rejection(graph.number, miss) for graph in last.graphs for miss in graph.rejections],
        "backwards": [backward_data(graph, records) for graph in last.graphs],
        "timeline": timeline_data(run) if run is not None else None,
    }
    return data | {"texts": records.texts.values, "records": records.rows.values}


def _snapshot(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "model": visible(snapshot.model),
        "scope": snapshot.scope,
        "versions": dict(snapshot.versions),
        "graphs": [
            {"number": graph.number, "stages": [[stage.name, len(stage.nodes)] for stage in graph.stages]}
            for graph in snapshot.graphs
        ],
    }


def _calls(snapshot: Snapshot) -> list[int]:
    """Return for each call, in the order in which decisions are taken, its graph's place among the graphs."""
    return [place for place, graph in enumerate(snapshot.graphs) for _ in graph.calls or [()]]


def _sites(found: GraphDiff, snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the sites of all calls in the order in which decisions are taken."""
    hunks = Counter(
        (transition.graph, site) for transition in found.transitions for hunk in transition.hunks for site in hunk.sites
    )
    rows, call = [], 0
    for graph in snapshot.graphs:
        own = tuple(site.name for site in graph.sites)
        for names in graph.calls or (own,):
            for site, name in zip(graph.sites, names, strict=True):
                rows.append(
                    {
                        "call": call,
                        "graph": graph.number,
                        "index": site.index,
                        "name": visible(name),
                        "id": visible(site_id(name, site.adapter)),
                        "adapter": visible(site.adapter),
                        "kind": site.kind,
                        "rank": site.rank,
                        "block": visible(block_of(name)),
                        "hunks": hunks[graph.number, site.index],
                    }
                )
            call += 1
    return rows


def _rejection(graph: int, miss: RejectionRecord) -> dict[str, Any]:
    return {"graph": graph} | {name: visible(text) for name, text in asdict(miss).items()}


class _Shown:
    """The state of one transition's description: which of its pairs are shown, each once, as they come."""

    def __init__(self, transition: Transition, records: Records) -> None:
        self._transition = transition
        self._records = records
        self._places: dict[int, int] = {}
        self._pairs: list[Pair] = []

    def data(self) -> dict[str, Any]:
        transition = self._transition
        alignment = transition.alignment
        ordered = sorted(transition.shapes, key=lambda shape: -len(shape.hunks) * len(shape.example.changed))
        firsts = [self._hunk(shape.example) for shape in ordered]
        shapes = [
            [first, *map(self._hunk_if_there_is_room, shape.hunks[1:])]
            for first, shape in zip(firsts, ordered, strict=True)
        ]
        text = transition.text().split("\n")
        return {
            "graph": transition.graph,
            "labels": list(map(visible, transition.labels)),
            "stages": list(transition.stages),
            "sites": [visible(site.name) for site in transition.sites],
            "method": alignment.method,
            "counts": dict(alignment.counts),
            "operators": [[visible(name), *counts] for name, counts in transition.operators.items()],
            "shapes": shapes,
            "nodes": self._nodes(),
            "text": "\n".join(text[:MOST_LINES]),
            "lines_left_out": max(len(text) - MOST_LINES, 0),
        }

    def _hunk_if_there_is_room(self, hunk: Hunk) -> dict[str, Any]:
        if len(self._pairs) > MOST_NODES:
            return {"sites": list(hunk.sites), "nodes": [], "context": "", "left_out": len(hunk.pairs)}
        return self._hunk(hunk)

    def _hunk(self, hunk: Hunk) -> dict[str, Any]:
        return {
            "sites": list(hunk.sites),
            "nodes": [self._place(pair) for pair in hunk.pairs[:MOST_IN_HUNK]],
            "context": "".join("01"[same] for same in hunk.context[:MOST_IN_HUNK]),
            "left_out": max(len(hunk.pairs) - MOST_IN_HUNK, 0),
        }

    def _place(self, pair: Pair) -> int:
        if id(pair) not in self._places:
            self._places[id(pair)] = len(self._pairs)
            self._pairs.append(pair)
        return self._places[id(pair)]

    def _nodes(self) -> list[list[Any]]:
        """Return of each pair its change, the fields that differ, and for both sides its record and what it reads."""
        before = {pair.before.name: place for place, pair in enumerate(self._pairs) if pair.before}
        after = {pair.after.name: place for place, pair in enumerate(self._pairs) if pair.after}
        return [
            [pair.change, list(pair.fields), self._side(pair.before, before), self._side(pair.after, after)]
            for pair in self._pairs
        ]

    def _side(self, node: NodeRecord | None, places: dict[str, int]) -> list[Any] | None:
        if node is None:
            return None
        return [self._records.of(node), [places[name] for name in dict.fromkeys(node.inputs) if name in places]]
