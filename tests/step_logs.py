"""Logs of steps that the tests write and take apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from skiplora_fx.step_log import StepLog

ROWS = [("layers.0", 0.25, math.inf, False), ("layers.1", math.nan, 0.1, True)]


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return a log's lines as strict JSON has them."""
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def written(path: Path, steps: int = 3, start: int = 0, ratio: float = 0.25) -> Path:
    """Write a run with a loss for each step, as one process does; return its file."""
    log = StepLog(path)
    for step in range(start, start + steps):
        log.step(step, [("layers.0", ratio, math.inf, False), ROWS[1]], grad_norm=1.5, backward_seconds=0.01)
        log.note(step, {"loss": 2.0 - step})
    log.close()
    return path
