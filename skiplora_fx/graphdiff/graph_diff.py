"""What became of a model's graphs: the answer of ``skiplora_fx.diff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import SkipLoraConfig
from ..errors import UsageError
from ..read_log import read_log
from .align import Alignment, Method, align
from .files import DIFF_FORMAT, dump, snapshot_data
from .hunks import Hunk, Shape, find_hunks, fold
from .joint_sites import joint_sites, renumbered
from .records import VERSION, GraphRecord, SiteRecord, Snapshot, StageRecord
from .snapshot import take_snapshot
from .stages import STAGES
from .text import unified
from .what_if import Decisions, WhatIf, what_if

WITHIN = (("captured", "gated"), ("gated", "merged"), ("joint", "folded"), ("backward", "predicated"))
"""The stages that a pass made of another one."""


@dataclass(frozen=True)
class Transition:
    """One graph before and after.

    Attributes:
        graph: its number.
        labels: what the two are called.
        sites: of the graph; of two runs those of both, as ``alignment`` numbers them.
        alignment: which node is which.
        shown: the sites that are looked at; None for all, and for what belongs to none.
    """

    graph: int
    labels: tuple[str, str]
    sites: tuple[SiteRecord, ...]
    alignment: Alignment
    shown: frozenset[int] | None = None

    @property
    def stages(self) -> tuple[str, str]:
        """The names of the two stages."""
        return self.alignment.before.name, self.alignment.after.name

    @property
    def changed(self) -> bool:
        """Whether anything that is looked at differs."""
        return self.alignment.changed if self.shown is None else bool(self.hunks)

    @cached_property
    def hunks(self) -> tuple[Hunk, ...]:
        """What differs, in connected pieces."""
        found = find_hunks(self.alignment)
        return found if self.shown is None else tuple(hunk for hunk in found if self.shown & set(hunk.sites))

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The hunks, those that are alike in one."""
        return fold(self.hunks)

    @cached_property
    def operators(self) -> Mapping[str, tuple[int, int]]:
        """How often each operator occurs before and after, where that differs, by name."""
        before, after = (
            Counter(node.target for node in stage.nodes if node.op.startswith("call"))
            for stage in (self.alignment.before, self.alignment.after)
        )
        return {name: (before[name], after[name]) for name in sorted(before | after) if before[name] != after[name]}

    def text(self) -> str:
        """Return a unified diff; empty if nothing that is looked at differs."""
        return unified(self.alignment, self.labels, self._shown_nodes()) if self.changed else ""

    def _shown_nodes(self) -> frozenset[str] | None:
        """Return the names of the nodes of the sites that are looked at, and of the hunks that have one of them."""
        if self.shown is None:
            return None
        pairs = [pair for hunk in self.hunks for pair in hunk.pairs]
        pairs += [pair for pair in self.alignment.pairs if pair.node.site in self.shown]
        return frozenset(node.name for pair in pairs for node in (pair.before, pair.after) if node is not None)

    def matching(self, glob: str) -> frozenset[int]:
        """Return the indices of the sites whose names match ``glob``."""
        return frozenset(site.index for site in self.sites if fnmatchcase(site.name, glob))


@dataclass(frozen=True)
class GraphDiff:
    """Graphs before and after, by pass or by run; ``str()`` gives a unified diff.

    Attributes:
        snapshots: one, of which later stages are compared with earlier ones, or two, compared stage by stage.
        transitions: each comparison, in the order of graphs and stages.
    """

    snapshots: tuple[Snapshot, ...]
    transitions: tuple[Transition, ...]

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        return any(transition.changed for transition in self.transitions)

    def what_if(self, decisions: Decisions) -> WhatIf:
        """Return which regions of the backward run under some decisions, and the FLOPs that remain.

        Args:
            decisions: True where a gate is open: for each site of each call in order, or by globs over the sites'
                names, of which the first match wins; what matches none is open.

        Raises:
            UsageError: there are not as many decisions as sites, or a glob matches no site.
        """
        return what_if(self.snapshots[-1], decisions)

    def only(self, *, stage: str = "", site: str = "", changed: bool = False) -> GraphDiff:
        """Return a part of it.

        Args:
            stage: only comparisons with the stage of this name.
            site: only what belongs to sites that match this glob.
            changed: only comparisons that found a difference.

        Raises:
            UsageError: there is no such stage, it is compared with none, or the glob matches no site.
        """
        if stage and stage not in STAGES:
            raise UsageError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
        if stage and self.transitions and not any(stage in transition.stages for transition in self.transitions):
            there = dict.fromkeys(name for transition in self.transitions for name in transition.stages)
            raise UsageError(
                f"the stage {stage!r} is compared only between two snapshots. Compared here are {', '.join(there)}"
            )
        if site and not any(transition.matching(site) for transition in self.transitions):
            names = dict.fromkeys(one.name for transition in self.transitions for one in transition.sites)
            raise UsageError(f"{site!r} matches no site; there are: {', '.join(names) or 'none'}")
        looked_at = (
            replace(transition, shown=transition.matching(site)) if site else transition
            for transition in self.transitions
            if not stage or stage in transition.stages
        )
        kept = (
            transition
            for transition in looked_at
            if transition.shown != frozenset() and (transition.changed or not changed)
        )
        return GraphDiff(self.snapshots, tuple(kept))

    def text(self) -> str:
        """Return unified diffs of what differs."""
        return "\n".join(filter(None, (transition.text() for transition in self.transitions)))

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> str:
        """Return everything as one line of JSON: snapshots, and of each comparison what differs, and its hunks.

        ``skiplora diff`` reads it back where it holds one snapshot.
        """
        return dump(
            {
                "format": DIFF_FORMAT,
                "version": VERSION,
                "snapshots": [snapshot_data(snapshot) for snapshot in self.snapshots],
                "transitions": [_transition_data(transition) for transition in self.transitions],
            }
        )

    def to_html(self, path: str | Path, log: str | Path | None = None, run: int | None = None) -> None:
        """Write everything as one HTML file, which opens from disk and fetches nothing.

        Args:
            path: the file.
            log: of a run of the model, as :func:`~skiplora_fx.read_log.read_log` takes it: the page has its timeline.
            run: which of the log's runs; the one that was written last if not given.

        Raises:
            FileError: the file cannot be written, or the log cannot be read.
        """
        from .page import write_page

        write_page(self, path, read_log(log, run) if log is not None else None)


def _transition_data(transition: Transition) -> dict[str, Any]:
    alignment = transition.alignment
    places = {id(pair): place for place, pair in enumerate(alignment.pairs)}
    return {
        "graph": transition.graph,
        "labels": list(transition.labels),
        "stages": list(transition.stages),
        "method": alignment.method,
        "counts": dict(alignment.counts),
        "operators": {name: list(counts) for name, counts in transition.operators.items()},
        "pairs": [
            [pair.before and pair.before.name, pair.after and pair.after.name, pair.change, list(pair.fields)]
            for pair in alignment.pairs
        ],
        "shapes": [
            [{"pairs": [places[id(pair)] for pair in hunk.pairs], "sites": list(hunk.sites)} for hunk in shape.hunks]
            for shape in transition.shapes
        ],
    }


def diff(
    model_or_graph: Any, *example_inputs: Any, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> GraphDiff:
    """Show what ``backend="skiplora"`` makes of a model's graphs, stage by stage, and what would be skipped.

    One forward is run as it is, under autograd and Dynamo; no backward, and nothing is compiled to machine code.
    Nothing comes from a cache, and Dynamo's caches are left as they are found.

    Args:
        model_or_graph: an ``nn.Module`` with its adapters, a ``torch.fx.GraphModule``, or an ``ExportedProgram``.
        example_inputs: what it is called with in training.
        kwargs: and by keyword, labels included.
        options: as in ``model.compile(backend="skiplora", options=...)``; ``scope``, ``decision`` and
            ``disable_passes`` matter here.

    Raises:
        UsageError: not a module, it does not run on these inputs, torch cannot compile it, or nothing trains.
        ConfigError: an option is unknown or out of range.
    """
    config = SkipLoraConfig.from_options(options)
    return stages_of(take_snapshot(model_or_graph, example_inputs, kwargs or {}, config))


def stages_of(snapshot: Snapshot) -> GraphDiff:
    """Compare each stage of a snapshot with the one that it was made of."""
    return GraphDiff((snapshot,), tuple(found for graph in snapshot.graphs for found in _within(graph)))


def _within(graph: GraphRecord) -> Iterator[Transition]:
    for names in WITHIN:
        before, after = map(graph.stage, names)
        if before is not None and after is not None:
            yield _transition(graph.number, names, graph.sites, before, after, "name")


def compare(before: Snapshot, after: Snapshot) -> GraphDiff:
    """Compare two snapshots, graph by graph and stage by stage; names are of no account.

    A graph or a stage that only one of them has is compared with an empty one.
    """
    found: list[Transition] = []
    graphs = [{graph.number: graph for graph in snapshot.graphs} for snapshot in (before, after)]
    for number in sorted(graphs[0].keys() | graphs[1].keys()):
        found += _across(number, graphs[0].get(number), graphs[1].get(number))
    return GraphDiff((before, after), tuple(found))


def _across(number: int, before: GraphRecord | None, after: GraphRecord | None) -> Iterator[Transition]:
    sites, numbers = joint_sites(before.sites if before is not None else (), after.sites if after is not None else ())
    for name in STAGES:
        one, other = (graph.stage(name) if graph is not None else None for graph in (before, after))
        if one is not None or other is not None:
            empty = StageRecord(name, ())
            labels = (f"before/{name}", f"after/{name}")
            one = renumbered(one, numbers) if one is not None else empty
            yield _transition(number, labels, sites, one, other or empty, "structure")


def _transition(
    number: int,
    labels: tuple[str, str],
    sites: tuple[SiteRecord, ...],
    before: StageRecord,
    after: StageRecord,
    method: Method,
) -> Transition:
    prefixed = (f"graph_{number}/{labels[0]}", f"graph_{number}/{labels[1]}")
    return Transition(number, prefixed, sites, align(before, after, method))
