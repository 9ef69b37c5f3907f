"""The table and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .arms import ARMS
from .curves import EXACT, SCORES, Estimate, Point, forward_share, points
from .store import Store

_HEADERS = [
    "arm",
    "what",
    "length",
    "seeds",
    "adapters shut",
    "backward",
    "time",
    "accuracy %",
    "test loss",
    "accuracy, against full LoRA",
    "loss, against full LoRA",
    "accuracy, against fewer steps",
    "loss, against fewer steps",
    "verdict by loss",
]


def report(store: Store) -> str:
    """Return the table as Markdown, and write it to ``table.md`` and the picture to ``curves.png`` in the store."""
    timing = store.read("timing") or {"arms": {}}
    found = points(store.runs(), timing["arms"], forward_share(timing))
    headers, rows = list(_HEADERS), [_cells(point) for point in found]
    exact = [said(point.scores[EXACT], ".1f") for point in found]
    if any(exact):
        for row, cell in zip([headers, *rows], ["exact %", *exact], strict=True):
            row.append(cell)
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    (store.folder / "table.md").write_text(table + "\n")
    draw(found, store.folder / "curves.png")
    return table


def _cells(point: Point) -> list[str]:
    return [
        point.arm,
        ARMS[point.arm].what if point.arm in ARMS else "",
        f"{point.length:g}",
        str(len(point.seeds)),
        f"{100 * point.shut:.0f} %",
        f"{point.backward:.2f}",
        f"{point.time:.2f}",
        said(point.scores["accuracy"], ".1f"),
        said(point.scores["loss"], ".3f"),
        said(point.beside_full["accuracy"], "+.1f"),
        said(point.beside_full["loss"], "+.3f"),
        said(point.gains["accuracy"], "+.1f"),
        said(point.gains["loss"], "+.3f"),
        point.verdict,
    ]


def said(value: Estimate, form: str) -> str:
    """Return an estimate as text, with its standard error if that is known; nothing for none."""
    if math.isnan(value.mean):
        return ""
    error = "" if math.isnan(value.error) else f" ± {value.error:{form.lstrip('+')}}"
    return f"{value.mean:{form}}{error}"


def draw(found: Sequence[Point], path: Path) -> None:
    """Draw the scores against measured time, each arm a line over its lengths, with standard errors."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    arms = list(dict.fromkeys(point.arm for point in found))
    for place, score in enumerate(SCORES):
        axes = figure.add_subplot(1, len(SCORES), place + 1)
        for number, arm in enumerate(arms):
            mine = [point for point in found if point.arm == arm]
            axes.errorbar(
                [point.time for point in mine],
                [point.scores[score].mean for point in mine],
                yerr=[point.scores[score].error for point in mine],
                label=arm,
                marker="osv^<>DPX*"[number % 10],
                color="black" if arm == "full" else colormaps["turbo"](number / len(arms)),
                capsize=2,
            )
        axes.set_xlabel("measured time, full LoRA = 1")
        axes.set_ylabel(f"test {score}")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
