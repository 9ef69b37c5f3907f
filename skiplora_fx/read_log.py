"""Reads what :class:`~skiplora_fx.step_log.StepLog` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .step_log import FORMAT, VERSION


@dataclass(frozen=True)
class Run:
    """A run, as its log tells it.

    Attributes:
        sites: the names of all sites that occur, in the order of the forward.
        steps: the steps that were logged, ascending; of a step that was logged twice, as after a resume, the last.
        ratio: float64 ``[steps, sites]``, M; NaN where a site had no backward.
        threshold: the same of τ in force.
        open: the same: 1 where the gate was open, 0 where it was shut.
        grad_norm: for each step the gradient norm over the sites that were open.
        backward_seconds: for each step the time of its backwards.
        losses: by step, as far as they were noted.
    """

    sites: list[str]
    steps: list[int]
    ratio: Tensor
    threshold: Tensor
    open: Tensor
    grad_norm: list[float]
    backward_seconds: list[float]
    losses: dict[int, float]


@dataclass
class _Lines:
    names: dict[str, int] = field(default_factory=dict)
    steps: dict[int, tuple[list[str], Mapping[str, Any]]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)


def read_log(path: str | Path) -> Run:
    """Read a log. A last line that was cut off, as by a kill, is left out.

    Raises:
        UsageError: there is no such file, it is no such log, or it holds no step; names the line.
    """
    lines, current = _Lines(), list[str]()
    for number, line in _objects(Path(path)):
        try:
            current = _take(lines, line, current)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}, line {number}: not a line of a skiplora log ({error!r})") from error
    if not lines.steps:
        raise UsageError(f"{path} holds no step: a step is written at each optimizer step of a gated model")
    return _assembled(lines)


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a log: {error}") from error
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            if not line.endswith("\n"):
                return
            raise UsageError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if number == 1 and not (isinstance(found, dict) and found.get("format") == FORMAT):
            raise UsageError(f'{path} is no skiplora log: its first line is not {{"format": "{FORMAT}", …}}')
        if number == 1 and found.get("version") != VERSION:
            raise UsageError(f"{path} is a skiplora log of version {found.get('version')!r}; this reads {VERSION}")
        yield number, found


def _take(lines: _Lines, line: Any, current: list[str]) -> list[str]:
    """Take one line in; return the names of the sites that the lines after it are about."""
    if "sites" in line:
        for name in line["sites"]:
            lines.names.setdefault(str(name), len(lines.names))
        return [str(name) for name in line["sites"]]
    if "ratio" in line:
        for column in ("ratio", "threshold", "open"):
            if len(line[column]) != len(current):
                raise ValueError(f"{column} has {len(line[column])} values for {len(current)} sites")
        lines.steps[int(line["step"])] = current, line
    elif "loss" in line:
        lines.losses[int(line["step"])] = _number(line["loss"])
    return current


def _assembled(lines: _Lines) -> Run:
    steps = sorted(lines.steps)
    columns = {name: _column(lines, steps, name) for name in ("ratio", "threshold", "open")}
    logged = [lines.steps[step][1] for step in steps]
    return Run(
        sites=list(lines.names),
        steps=steps,
        **columns,
        grad_norm=[_number(line.get("grad_norm")) for line in logged],
        backward_seconds=[_number(line.get("backward_seconds")) for line in logged],
        losses=dict(sorted(lines.losses.items())),
    )


def _column(lines: _Lines, steps: list[int], name: str) -> Tensor:
    found = torch.full((len(steps), len(lines.names)), math.nan, dtype=torch.float64)
    for row, step in enumerate(steps):
        names, line = lines.steps[step]
        found[row, [lines.names[site] for site in names]] = torch.tensor(
            [_number(value) for value in line[name]], dtype=torch.float64
        )
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
