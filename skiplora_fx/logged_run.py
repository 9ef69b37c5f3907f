"""A run, as its log tells it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .log_line import Step


@dataclass(frozen=True)
class Run:
    """A run, as its log tells it.

    Attributes:
        sites: the names of all sites that occur, in the order of the forward.
        steps: the steps that were logged, ascending; of a step that was logged twice, as after a resume, the later.
        ratio: float64 ``[steps, sites]``, M; NaN where a site had no backward.
        threshold: the same of τ in force.
        open: the same: 1 where the gate was open, 0 where it was shut.
        grad_norm: for each step the gradient norm over the sites that were open.
        backward_seconds: for each step the time of its backwards.
        losses: by step, as far as they were noted.
        policy: what decided, if the log says so.
        number: which it is of the file's runs, from 1.
        runs: how many there are.
    """

    sites: list[str]
    steps: list[int]
    ratio: Tensor
    threshold: Tensor
    open: Tensor
    grad_norm: list[float]
    backward_seconds: list[float]
    losses: dict[int, float]
    policy: str | None
    number: int
    runs: int


@dataclass
class Recorded:
    """What has been read of a run; a later record of a step takes the place of an earlier one."""

    policy: str | None = None
    steps: dict[int, Step] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)

    def assembled(self, number: int, runs: int) -> Run:
        """Return all of it in the order of the steps."""
        steps = sorted(self.steps)
        records = [self.steps[step] for step in steps]
        sites = _in_order([record.sites for record in records])
        columns = {site: column for column, site in enumerate(sites)}
        return Run(
            sites=sites,
            steps=steps,
            **{name: _table(records, columns, name) for name in ("ratio", "threshold", "open")},
            grad_norm=[record.grad_norm for record in records],
            backward_seconds=[record.backward_seconds for record in records],
            losses=dict(sorted(self.losses.items())),
            policy=self.policy,
            number=number,
            runs=runs,
        )


def _in_order(lists: Iterable[tuple[str, ...]]) -> list[str]:
    """Return all names, one that a later list adds behind the one that it follows there."""
    merged: list[str] = []
    for names in dict.fromkeys(lists):
        known = set(merged)
        for before, name in zip((None, *names), names, strict=False):
            if name not in known:
                known.add(name)
                merged.insert(merged.index(before) + 1 if before is not None else 0, name)
    return merged


def _table(records: Sequence[Step], columns: dict[str, int], name: str) -> Tensor:
    found = torch.full((len(records), len(columns)), math.nan, dtype=torch.float64)
    for row, record in enumerate(records):
        if record.sites:
            at = [columns[site] for site in record.sites]
            found[row, at] = torch.frombuffer(getattr(record, name), dtype=torch.float64)
    return found
