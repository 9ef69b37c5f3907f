"""What a policy is: it sees every site's history, and says which gates stay open in the next step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

OPEN, SHUT = 0.0, math.inf
"""The thresholds that keep a gate open, and shut, whatever its ratio is."""


class Costs(Protocol):
    """What a backward costs under any set of decisions, from the compiled graphs themselves."""

    @property
    def total(self) -> int:
        """FLOPs of the backward with every gate open."""
        ...

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        """Return the FLOPs that remain under each of several sets of decisions, True where a gate is open."""
        ...


def site_id(name: str, adapter: str) -> str:
    """Return what policies, logs and checkpoints call a site."""
    return f"{name} [{adapter}]" if adapter else name


def block_of(name: str) -> str:
    """Return the repeated layer that a site lies in: its path up to the first number; its whole path without one."""
    found = re.match(r"(.*?(?:^|\.)\d+)(?:\.|$)", name)
    return found[1] if found else name


@dataclass(frozen=True)
class SiteHistory:
    """What is known of one gated adapter before a step.

    Attributes:
        name: module path of the adapted layer.
        adapter: name of the adapter on that layer.
        threshold: τ as the options or ``set_threshold`` give it.
        ratio: ``M = ||Δh||₂ / ||h||₂`` in the last forward that had a backward; NaN before the first.
        mean: exponential moving mean of the ratios; NaN before the first.
        variance: exponential moving variance of the ratios; 0 after the first.
        gradient_norm: L2 norm of the adapter's gradient at the last optimizer step in which it was open. NaN if
            unknown: it is computed for policies that set ``needs_gradients``, once an optimizer is attached.
        since_open: backwards since the gate was last open; 0 if it was open in the last one.
        backwards: number of backwards so far.
        saves: backward FLOPs that shutting this gate alone saves; None if unknown, see :attr:`Observation.costs`.
        adds: backward FLOPs that it saves when the gates of all sites before it are shut already; None if unknown.
    """

    name: str
    adapter: str = ""
    threshold: float = OPEN
    ratio: float = math.nan
    mean: float = math.nan
    variance: float = 0.0
    gradient_norm: float = math.nan
    since_open: int = 0
    backwards: int = 0
    saves: int | None = None
    adds: int | None = None

    @property
    def id(self) -> str:
        """The site's name, with that of its adapter: what a policy keeps state under."""
        return site_id(self.name, self.adapter)

    @property
    def block(self) -> str:
        """As :func:`block_of` says."""
        return block_of(self.name)


@dataclass(frozen=True)
class Observation:
    """What a policy sees before a step.

    Attributes:
        step: number of steps so far, the warm-up included.
        sites: every gated adapter of the model that trains, in the order of the forward.
        costs: of the backward. None before the first backward is compiled, and always None for a policy that does
            not set ``needs_costs``.
    """

    step: int
    sites: tuple[SiteHistory, ...]
    costs: Costs | None = None

    def blocks(self) -> list[list[int]]:
        """Return the positions in ``sites`` of each block's sites, blocks in the order of the forward."""
        blocks: dict[str, list[int]] = {}
        for position, site in enumerate(self.sites):
            blocks.setdefault(site.block, []).append(position)
        return list(blocks.values())

    def impacts(self) -> list[float]:
        """Return for each block the mean M of its sites, moving means; 1 for all while any is unknown."""
        means = [[self.sites[position].mean for position in block] for block in self.blocks()]
        if any(math.isnan(mean) for block in means for mean in block):
            return [1.0] * len(means)
        return [sum(block) / len(block) for block in means]

    def with_blocks(self, open: Sequence[bool]) -> list[float]:
        """Return thresholds that open the blocks in which ``open`` is True, and shut all others."""
        thresholds = [OPEN] * len(self.sites)
        for block, is_open in zip(self.blocks(), open, strict=True):
            for position in block:
                thresholds[position] = OPEN if is_open else SHUT
        return thresholds

    def with_prefix(self, depth: int) -> list[float]:
        """Return thresholds that shut the lowest ``depth`` blocks, and open all others."""
        return self.with_blocks([block >= depth for block in range(len(self.blocks()))])


class Policy:
    """Decides which gates may shut. Subclasses are dataclasses whose fields are their options.

    Any object with a method ``decide`` like this one is a policy too. It may be called more than once for one step,
    where a forward meets sites for the first time, and must say the same of sites it has seen.
    """

    needs_history: bool = True
    """Whether it looks at ratios. If not, nothing waits for a GPU to tell them."""
    needs_gradients: bool = False
    """Whether it looks at gradient norms."""
    needs_costs: bool = False
    """Whether it looks at costs. If so, Inductor's caches are off for its graphs, as they do not keep any."""
    of_the_run: ClassVar[tuple[str, ...]] = ()
    """Options that are filled in by who knows them, unless they are given: ``begin`` (the steps of the warm-up, by the
    backend) and ``steps`` (the optimizer steps of the run, by a Trainer's callback)."""

    def decide(self, observation: Observation) -> Sequence[float]:
        """Return τ of each site for the next step: 0 keeps its gate open, ``inf`` shut, else M decides.

        Args:
            observation: what is known before the step.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what it has to remember from one step to the next, of JSON's types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""


def needs(policy: object, what: str) -> bool:
    """Return whether a policy looks at ``"history"``, ``"gradients"`` or ``"costs"``."""
    return bool(getattr(policy, f"needs_{what}", getattr(Policy, f"needs_{what}")))
