"""The tables and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .arms import ARMS
from .curves import EXACT, FULL, RIVALS, SCORES, Point, Timing, points
from .estimates import Estimate
from .store import Store

FORMS = {"accuracy": ".1f", "loss": ".3f"}
"""How the difference in a score is written."""


def report(store: Store) -> str:
    """Return two tables as Markdown: what was measured, and what it is against others.

    Writes them to ``table.md`` in the store, and the picture to ``curves.png``.
    """
    found = points_of(store)
    text = tables(found)
    (store.folder / "table.md").write_text(text + "\n")
    draw(found, store.folder / "curves.png")
    return text


def points_of(store: Store) -> list[Point]:
    """Return every arm at every length that is in a store."""
    return points(store.runs(), Timing.of(store.read("timing") or {}))


def tables(found: Sequence[Point]) -> str:
    """Return the two tables; the first alone of a single point."""
    return f"{_measured(found)}\n\n{_compared(found)}" if len(found) > 1 else _measured(found)


def _measured(found: Sequence[Point]) -> str:
    headers = [
        "arm",
        "what",
        "length",
        "seeds",
        "adapters shut",
        "backward",
        "time",
        "accuracy %",
        "test loss",
        "exact %",
    ]
    rows = [
        [
            point.arm,
            ARMS[point.arm].what if point.arm in ARMS else "",
            f"{point.length:g}",
            str(len(point.seeds)),
            f"{100 * point.shut:.0f} %",
            ratio(point.backward),
            ratio(point.time),
            said(point.scores["accuracy"], ".1f"),
            said(point.scores["loss"], ".3f"),
            said(point.scores[EXACT], ".1f"),
        ]
        for point in found
    ]
    return table(headers, rows)


def _compared(found: Sequence[Point]) -> str:
    whole = [f"{score}, against full LoRA" for score in SCORES]
    fewer = [f"{score}, against fewer steps" for score in SCORES]
    headers = [
        "arm",
        "length",
        "time",
        *whole,
        *fewer,
        *(f"verdict by {score}" for score in SCORES),
        *(f"loss, against {name}" for name in RIVALS),
    ]
    rows = [
        [
            point.arm,
            f"{point.length:g}",
            ratio(point.time),
            *(said(gains[score], f"+{FORMS[score]}") for gains in (point.beside_full, point.gains) for score in SCORES),
            *point.verdicts.values(),
            *(_over_rival(point, name) for name in RIVALS),
        ]
        for point in found
        if point.arm != FULL
    ]
    return table(headers, rows)


def _over_rival(point: Point, rival: str) -> str:
    found = point.rivals[rival]
    fewer = 0 < found.seeds < len(point.seeds)
    return said(found, f"+{FORMS['loss']}") + (f" ({found.seeds} seeds)" if fewer else "")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as Markdown, without the columns in which nothing is said."""
    kept = [place for place in range(len(headers)) if not rows or any(row[place] for row in rows)]
    cells = [[row[place] for place in kept] for row in rows]
    return tabulate(cells, headers=[headers[place] for place in kept], tablefmt="github", disable_numparse=True)


def ratio(value: float) -> str:
    """Return what was measured once as text; nothing for what was not."""
    return said(Estimate(value, math.nan), ".2f")


def said(value: Estimate, form: str) -> str:
    """Return an estimate as text, with its standard error if that is known; nothing for none."""
    if math.isnan(value.mean):
        return ""
    error = "" if math.isnan(value.error) else f" ± {value.error:{form.lstrip('+')}}"
    return f"{value.mean:{form}}{error}"


def draw(found: Sequence[Point], path: Path) -> None:
    """Draw the scores against measured time, each arm a line over its lengths, with standard errors.

    What would squeeze the others, see :func:`is_in_sight`, is named below the panel instead.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    arms = list(dict.fromkeys(point.arm for point in found))
    for place, score in enumerate(SCORES):
        axes = figure.add_subplot(1, len(SCORES), place + 1)
        beyond: list[str] = []
        for number, arm in enumerate(arms):
            mine = [point for point in found if point.arm == arm and is_in_sight(point, found, score)]
            if not mine:
                beyond.append(arm)
            axes.errorbar(
                [point.time for point in mine],
                [point.scores[score].mean for point in mine],
                yerr=[point.scores[score].error for point in mine],
                label=arm,
                marker="osv^<>DPX*"[number % 10],
                color="black" if arm == FULL else colormaps["turbo"](number / len(arms)),
                capsize=2,
            )
        _label(axes, score, beyond)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def _label(axes: Any, score: str, beyond: Sequence[str]) -> None:
    axes.set_xlabel("measured time, full LoRA = 1" + (f"\nworse, out of sight: {', '.join(beyond)}" if beyond else ""))
    axes.set_ylabel(f"test {score}")


def is_in_sight(point: Point, found: Sequence[Point], score: str) -> bool:
    """Return whether a point is worse than full LoRA's worst by no more than four times full LoRA's own span.

    True of every point where full LoRA has fewer than two.
    """
    full = [other.scores[score].mean for other in found if other.arm == FULL]
    if len(full) < 2:
        return True
    span = max(full) - min(full)
    mean = point.scores[score].mean
    return mean <= max(full) + 4 * span if score == "loss" else mean >= min(full) - 4 * span
