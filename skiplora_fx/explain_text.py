"""The tables of an :class:`~skiplora_fx.explain.Explanation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from .site import Rejection
from .visible import visible
from .wanted_inputs import WANTED

if TYPE_CHECKING:
    from .explain import Explanation, GraphExplained


def explanation_text(found: Explanation) -> str:
    """Return a table for each graph, what no graph reads, and the totals."""
    parts = [_graph_text(graph, len(found.graphs)) for graph in found.graphs]
    if found.outside:
        parts.append(_rejections_text("Trained, but outside any graph that has a backward", found.outside))
    return "\n\n".join([*parts, _totals_text(found)])


def _graph_text(graph: GraphExplained, graphs: int) -> str:
    head = f"Graph {graph.number}: {len(graph.sites)} gated, {_amount(graph.backward)}FLOPs backward"
    lines = [head] if graphs > 1 else []
    if graph.sites:
        lines.append(tabulate(_site_rows(graph), headers=_HEADERS, colalign=_ALIGNMENT))
    if graph.rejections:
        lines += ["", _rejections_text("Trained, but not gated", graph.rejections)]
    return "\n".join(lines)


def _rejections_text(head: str, misses: Sequence[Rejection]) -> str:
    rows = [tuple(map(visible, (miss.name, miss.family, miss.reason, miss.source or miss.node))) for miss in misses]
    table = tabulate(rows, headers=["parameter", "family", "reason", "at"], maxcolwidths=[44, None, 60, 44])
    return f"{head}: {len(misses)}\n{table}"


_HEADERS = ["site", "kind", "r", "Δh", "dtype", "alone", "truncation", "regions", "products"]
_ALIGNMENT = ("left", "left", "right", "left", "left", "right", "right", "right", "right")


def _site_rows(graph: GraphExplained) -> list[list[str]]:
    return [
        [
            visible(
                (site.name or "(the model)") + (f" [{site.adapter}]" if site.adapter not in ("", "default") else "")
            ),
            site.kind,
            str(site.rank),
            "×".join(map(str, site.shape)),
            site.dtype,
            _share(site.saves, graph.backward),
            _share(site.adds, graph.backward),
            str(site.regions),
            str(site.products),
        ]
        for site in graph.sites
    ]


def _totals_text(found: Explanation) -> str:
    gated = sum(len(graph.sites) for graph in found.graphs)
    rejected = sum(len(graph.rejections) for graph in found.graphs) + len(found.outside)
    lines = [
        f"{_counted(found.captured, 'graph')}, {_counted(len(found.breaks), 'graph break')}, "
        f"{_counted(gated, 'adapter')} gated (scope {found.scope!r}), "
        f"{_counted(rejected, 'trained parameter')} not gated.",
        f"Backward: {_amount(found.backward)}FLOPs with every gate open.",
    ]
    if gated:
        lines += ["Left out with", *_share_rows(found.masks)]
        lines += ["Left out by each policy at best, or on average if all M are equal:", *_share_rows(found.best_cases)]
    uncounted: Counter[str] = Counter()
    for graph in found.graphs:
        uncounted.update(graph.uncounted)
    if uncounted:
        listed = ", ".join(f"{name} ({times})" for name, times in uncounted.most_common())
        lines.append(f"Not counted, beside what touches each element once: {listed}.")
    wanted = dict.fromkeys((name, graph.number) for graph in found.graphs if graph.sites for name in graph.wanted)
    lines += [f"Input {visible(name)} of graph {number} {WANTED}" for name, number in wanted]
    breaks = [f"Graph break{f' at {cut.place}' if cut.place else ''}: {cut.reason}" for cut in found.breaks]
    lines += [visible(line) for told in breaks for line in told.splitlines()]
    if not found.captured:
        lines.append("Dynamo captured no graph: it leaves all of the forward to Python, or is switched off.")
    if not gated:
        lines.append("Nothing is gated. Does an adapter train? See the reasons above, and docs/explain.md.")
    return "\n".join(lines)


def _share_rows(shares: Mapping[str, float]) -> list[str]:
    return [f"  {share:6.1%}  {name}" for name, share in shares.items()]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%" if whole else "-"


def _amount(number: float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} P"
