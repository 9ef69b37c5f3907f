"""What one watched run has shown, as it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quality_parts.tasks import Rows, Task

import skiplora_fx
from skiplora_fx.policy.base import block_of


@dataclass(frozen=True)
class Costs:
    """What the backward costs, by ``skiplora_fx.explain``; FLOPs.

    Attributes:
        sites: names of the adapters, in the order of the forward.
        saves: what each site's gate saves alone.
        adds: what it saves when all sites before it are shut already.
        backward: everything.
    """

    sites: Sequence[str]
    saves: Sequence[int]
    adds: Sequence[int]
    backward: int

    @classmethod
    def of(cls, task: Task, batch: Rows) -> Costs:
        """Count for a batch."""
        (graph,) = skiplora_fx.explain(task.loss, *batch).graphs
        sites = graph.sites
        return cls(
            [site.name for site in sites],
            [site.saves for site in sites],
            [site.adds for site in sites],
            graph.backward,
        )

    def blocks(self) -> list[list[int]]:
        """Return the sites of each block, lowest first."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.sites):
            found.setdefault(block_of(name), []).append(place)
        return list(found.values())

    def truncated(self) -> list[int]:
        """Return what is saved below each depth: by shutting the lowest block, the lowest two, and so on, to all."""
        saved = [sum(self.adds[site] for site in block) for block in self.blocks()]
        return [sum(saved[: depth + 1]) for depth in range(len(saved))]


@dataclass(frozen=True)
class Drops:
    """By how much the loss falls where a part of a step is taken, and nothing else of it.

    Attributes:
        site: the part of one site, for each.
        block: that of one block.
        below: that of the lowest block, the lowest two, and so on, to all.
        above: that of all but the lowest block, all but the lowest two, and so on, to none.
    """

    site: Sequence[float]
    block: Sequence[float]
    below: Sequence[float]
    above: Sequence[float]

    def lost(self) -> list[float]:
        """Return what truncating the lowest block, the lowest two, and so on, takes from the drop of the whole step."""
        return [self.below[-1] - left for left in self.above]


@dataclass(frozen=True)
class Probe:
    """What was measured at one step.

    Attributes:
        step: its number.
        statistics: of each site, in that step: see :mod:`.site_statistics`.
        before: the same of the step before.
        held_out: on rows that are not trained on: what a step is worth.
        own: on the step's own batch: what its gradient promises to first order.
    """

    step: int
    statistics: Mapping[str, Sequence[float]]
    before: Mapping[str, Sequence[float]]
    held_out: Drops
    own: Drops


@dataclass(frozen=True)
class Record:
    """A watched run."""

    seed: int
    costs: Costs
    probes: Sequence[Probe]
    losses: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types, with six digits of each float."""
        return _short(asdict(self))

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Record:
        """Return what :meth:`to_json` was made of."""
        probes = [
            Probe(**{**probe, "held_out": Drops(**probe["held_out"]), "own": Drops(**probe["own"])})
            for probe in told["probes"]
        ]
        return cls(told["seed"], Costs(**told["costs"]), probes, told["losses"])


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _short(part) for name, part in value.items()}
    return [_short(part) for part in value] if isinstance(value, (list, tuple)) else value
