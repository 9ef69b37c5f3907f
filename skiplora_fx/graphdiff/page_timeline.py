"""A run for a page: what M was of each site over the steps, and where its gate was shut."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..logged_run import Run
from ..plot_gates import Columns, colour_range
from ..visible import visible


def timeline_data(run: Run) -> dict[str, Any]:
    """Return a run as lists, several steps in one column where there are too many; None where there is no number."""
    columns = Columns.of(run)
    return {
        "policy": run.policy,
        "run": [run.number, run.runs],
        "sites": [visible(site) for site in run.sites],
        "edges": columns.edges,
        "steps": len(run.steps),
        "range": list(colour_range(columns.ratio)),
        "ratio": [_numbers(row) for row in columns.ratio.tolist()],
        "shut": ["".join("01"[mark] for mark in row) for row in columns.shut.tolist()],
        "skipped": [_share(row) for row in run.open.T.tolist()],
        "last": [_last(row) for row in run.ratio.T.tolist()],
        "losses": [list(run.losses), _numbers(run.losses.values())],
    }


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def _share(opens: list[float]) -> float | None:
    """Return at which share of its steps a site was shut."""
    known = [open for open in opens if not math.isnan(open)]
    return round(known.count(0.0) / len(known), 4) if known else None


def _last(ratios: list[float]) -> float | None:
    return next((found for found in reversed(_numbers(ratios)) if found is not None), None)
