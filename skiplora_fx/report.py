"""Tables for people."""

from __future__ import annotations

import math

from tabulate import tabulate
from torch import nn

from .live import sites
from .live_site import SiteState
from .visible import visible


def report(model: nn.Module) -> str:
    """Return the state of each gated adapter as a table: ratio, threshold, skipped now, share skipped.

    Args:
        model: the compiled model.
    """
    states = sites(model)
    if not states:
        return (
            "No gated adapter is known yet: they are found at the first training forward of a model compiled "
            'with backend="skiplora".'
        )
    rows = [_row(state) for state in states]
    skipped = sum(state.skipped for state in states)
    table = tabulate(rows, headers=["site", "r", "ratio", "threshold", "now", "skipped"], colalign=_ALIGNMENT)
    return f"{table}\n\n{skipped} of {len(states)} adapters skipped in the last backward."


_ALIGNMENT = ("left", "right", "right", "right", "left", "right")


def _row(state: SiteState) -> list[str]:
    ratio = "-" if math.isnan(state.ratio) and not state.backwards else f"{state.ratio:.4g}"
    name = state.name or "(root)"
    if state.adapter not in ("", "default"):
        name += f" [{state.adapter}]"
    now = "skipped" if state.skipped else "open"
    return [visible(name), str(state.rank), ratio, f"{state.threshold:.4g}", now, f"{state.skip_rate:.0%}"]
