"""Policies that are on trial: what wins moves into the library, what does not stays here as a row of the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skiplora_fx.policy import OPEN, Observation, Policy, needs
from skiplora_fx.policy.wrappers import Wrapper


@dataclass(eq=False)
class Stairs(Policy):
    """Backwards take turns in how deep they go.

    With a step for each backward of several micro-batches, lower blocks see fewer rows of a batch, and no fewer steps.

    Attributes:
        depths: share of the blocks that rest in each of as many backwards in turn, rounded down.
    """

    needs_history = False
    depths: Sequence[float] = (0.0,)

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks below the depth whose turn it is."""
        share = self.depths[observation.step % len(self.depths)]
        return observation.with_prefix(math.floor(share * len(observation.blocks())))


@dataclass(eq=False)
class UpperBlocks(Policy):
    """The uppermost blocks are shut, but for every k-th step; for gates of inputs, behind which all adapters train.

    Attributes:
        share: of the blocks, rounded down.
        every: k; 1 for no step that opens them.
    """

    needs_history = False
    share: float = 0.5
    every: int = 1

    def decide(self, observation: Observation) -> list[float]:
        """Shut the upper blocks."""
        blocks = len(observation.blocks())
        resting = 0 if self.every > 1 and observation.step % self.every == 0 else math.floor(self.share * blocks)
        return observation.with_blocks([block < blocks - resting for block in range(blocks)])


@dataclass(eq=False)
class BestRate(Policy):
    """Truncates where that leaves the most loss drop for the FLOPs of a step, forward included.

    The drop of what lies above a depth is told by the gradient norms there, as a share of those of all sites:
    ``usefulness.py`` finds that nothing else that a policy sees tells better what updates bring by themselves. A site
    that is shut counts with its norm when it was last open, so this needs probes. Fewer steps of full LoRA have the
    rate of full LoRA: no depth is chosen that they would beat.

    Attributes:
        forward: FLOPs of the forward, as a share of the backward's with every gate open. With frozen weights a backward
            has one product for each of the forward's.
    """

    needs_history = False
    needs_gradients = True
    needs_costs = True
    forward: float = 1.0

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks below the best depth; none while gradients or costs are not known."""
        norms = [site.gradient_norm for site in observation.sites]
        blocks = observation.blocks()
        if observation.costs is None or any(map(math.isnan, norms)):
            return [OPEN] * len(norms)
        masks = [[depth <= number for number in range(len(blocks))] for depth in range(len(blocks))]
        opens = [[threshold == OPEN for threshold in observation.with_blocks(mask)] for mask in masks]
        costs = observation.costs.under(opens)
        kept = [math.fsum(norm for norm, is_open in zip(norms, open, strict=True) if is_open) for open in opens]
        rates = [drop / (self.forward * observation.costs.total + cost) for drop, cost in zip(kept, costs, strict=True)]
        return observation.with_blocks(masks[rates.index(max(rates))])


@dataclass(eq=False)
class ByGradient(Wrapper):
    """Shows a policy the norm of each site's gradient in place of its mean M, once all are known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs_gradients = True

    def decide(self, observation: Observation) -> Sequence[float]:
        """Ask the policy inside."""
        sites = tuple(replace(site, mean=site.gradient_norm) for site in observation.sites)
        return self.inner.decide(replace(observation, sites=sites))


@dataclass(eq=False)
class Either(Policy):
    """Shuts what any of several policies shuts.

    Attributes:
        policies: who are asked.
    """

    policies: Sequence[Policy] = ()

    def __post_init__(self) -> None:
        self.needs_history = any(needs(policy, "history") for policy in self.policies)
        self.needs_gradients = any(needs(policy, "gradients") for policy in self.policies)
        self.needs_costs = any(needs(policy, "costs") for policy in self.policies)

    def decide(self, observation: Observation) -> list[float]:
        """Return the highest threshold for each site."""
        said = [policy.decide(observation) for policy in self.policies]
        return [max(thresholds) for thresholds in zip(*said, strict=True)]
