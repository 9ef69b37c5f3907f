"""A graph diff for a terminal, in colour. Needs ``rich``; nothing that comes from a model is read as its markup."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ..visible import visible
from .graph_diff import GraphDiff, Transition
from .hunks import Shape
from .records import RejectionRecord, SiteRecord, Snapshot
from .text import names_after, pair_lines

_STYLES = {"-": "red", "+": "green", "~": "yellow", " ": "dim"}
_LINES = 24
"""Of a hunk, at most: what is longer is a layer's whole backward, and ``--text`` has it."""


def print_diff(found: GraphDiff, console: Console) -> None:
    """Print a summary, what became of each operator, the tree of sites, and one hunk of each shape.

    Args:
        found: what to show.
        console: where to.
    """
    for transition in found.transitions:
        console.print(_transition(transition), soft_wrap=True)
    for snapshot in found.snapshots[-1:]:
        console.print(_sites(snapshot, found.transitions), soft_wrap=True)
    console.print(_totals(found), soft_wrap=True)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style)


def _transition(transition: Transition) -> RenderableType:
    parts: list[RenderableType] = [_summary(transition)]
    if transition.operators:
        parts.append(_operators(transition.operators))
    names = names_after(transition.alignment)
    parts += [_hunk(shape, names, transition.sites) for shape in transition.shapes]
    return Group(*parts, Text())


def _summary(transition: Transition) -> Text:
    counts = transition.alignment.counts
    told = (f"{counts.get(change, 0)} {change}" for change in ("added", "removed", "rewired", "changed", "same"))
    line = _plain(" → ".join(transition.labels), "bold")
    return line.append(f": {', '.join(told)} (aligned by {transition.alignment.method})", "not bold")


def _operators(operators: Mapping[str, tuple[int, int]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (("operator", "left"), ("before", "right"), ("after", "right"), ("", "right")):
        table.add_column(heading, justify=justify)
    for name, (before, after) in operators.items():
        style = "green" if after > before else "red"
        table.add_row(_plain(name), str(before), str(after), Text(f"{after - before:+d}", style))
    return table


def _hunk(shape: Shape, names: Mapping[str, str], sites: Sequence[SiteRecord]) -> Group:
    hunk = shape.example
    lines = [Text(f"{sign} {line}", _STYLES[sign]) for pair in hunk.pairs for sign, line in pair_lines(pair, names)]
    if len(lines) > _LINES:
        left = len(lines) - _LINES
        lines = [*lines[:_LINES], Text(f"… {left} lines more", "dim")]
    return Group(Text(), _hunk_head(shape, sites), *lines)


def _hunk_head(shape: Shape, sites: Sequence[SiteRecord]) -> Text:
    touched = sorted({site for hunk in shape.hunks for site in hunk.sites})
    head = Text(f"@@ ×{len(shape.hunks)}, {_counted(len(shape.example.changed), 'node')}", "cyan")
    if touched:
        named = ", ".join(sites[site].name or "(the model)" for site in touched[:2])
        more = f" and {len(touched) - 2} sites more" if len(touched) > 2 else ""
        head.append_text(_plain(f": {named}{more}"))
    return head


def _sites(snapshot: Snapshot, transitions: Sequence[Transition]) -> Group:
    tree = Tree(_plain(snapshot.model, "bold"))
    branches = {"": tree}
    hunks = _hunks_by_site(transitions)
    for graph in snapshot.graphs:
        for site in graph.sites:
            path, _, leaf = site.name.rpartition(".")
            label = _plain(leaf or "(the model)").append(f"  r={site.rank}", "dim")
            label.append(f"  {_counted(hunks[graph.number, site.index], 'hunk')}", "dim")
            _branch(branches, path).add(label)
    rejections = [miss for graph in snapshot.graphs for miss in graph.rejections]
    return Group(tree, *_rejections(rejections))


def _hunks_by_site(transitions: Sequence[Transition]) -> Mapping[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for transition in transitions:
        for hunk in transition.hunks:
            for site in hunk.sites:
                counts[transition.graph, site] += 1
    return counts


def _branch(branches: dict[str, Tree], path: str) -> Tree:
    missing = []
    while path not in branches:
        missing.append(path)
        path = path.rpartition(".")[0]
    for inner in reversed(missing):
        branches[inner] = branches[path].add(_plain(inner.rpartition(".")[2]))
        path = inner
    return branches[path]


def _rejections(rejections: Collection[RejectionRecord]) -> Iterator[Text]:
    if rejections:
        yield Text(f"Trained, but not gated: {len(rejections)}", "bold")
    for miss in rejections:
        yield _plain(f"  {miss.name}: {miss.reason} ({miss.family}, at {miss.source or miss.node})")


def _totals(found: GraphDiff) -> Text:
    differing = sum(transition.changed for transition in found.transitions)
    lines = Text(f"{differing} of {len(found.transitions)} comparisons differ.")
    if len(found.snapshots) == 1:
        left = found.what_if({"*": False}).share if any(graph.sites for graph in found.snapshots[0].graphs) else 1.0
        lines.append(f" With every gate shut, {left:.1%} of the backward's FLOPs remain.")
    return lines
