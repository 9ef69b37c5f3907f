"""A run as lines of JSON: what every gate did at each step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

FORMAT = "skiplora-log"
VERSION = 1


class StepLog:
    """Appends to a file, each line whole and flushed, so that a run that is killed leaves a file that can be read.

    Lines are objects: ``{"format", "version"}`` first; ``{"sites": [names]}`` before the first step and wherever the
    sites change; for each optimizer step ``{"step", "ratio", "threshold", "open", "grad_norm", "backward_seconds"}``,
    the middle three as lists in the order of the sites: M, τ in force, and whether the gate was open in any backward of
    the step. ``grad_norm`` is the L2 norm over the sites that were. Other numbers of a step, such as a loss, come as
    ``{"step", "loss"}``. NaN is null, and infinity ``"inf"``.

    Args:
        path: the file; its folder is made if there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self._names: list[str] = []

    def step(self, step: int, rows: Sequence[tuple[str, float, float, bool]], **numbers: float) -> None:
        """Write a step.

        Args:
            step: its number, from 0.
            rows: for each site its name, ratio, threshold, and whether it was open.
            numbers: anything else that is known of the step.
        """
        names = [name for name, _, _, _ in rows]
        if names != self._names:
            self._names = names
            self._write({"sites": names})
        ratios, thresholds, opens = ([row[column] for row in rows] for column in (1, 2, 3))
        self._write({"step": step, "ratio": ratios, "threshold": thresholds, "open": list(map(int, opens)), **numbers})

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write other numbers of a step."""
        self._write({"step": step, **numbers})

    def close(self) -> None:
        """Close the file; another line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            if not self._file.tell():
                self._write({"format": FORMAT, "version": VERSION})
        self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        self._file.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return float(f"{value:.6g}") if math.isfinite(value) else "inf"
    return value
