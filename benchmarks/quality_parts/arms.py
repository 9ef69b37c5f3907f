"""The arms: who decides what is skipped, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from skiplora_fx.policy import (
    Budget,
    CyclicBlocks,
    Freeze,
    Multirate,
    Only,
    Policy,
    Prefix,
    Progressive,
    Quantile,
    RandomBlocks,
    Schedule,
    Threshold,
)

from .repeating import Repeats
from .resting import MEMORY
from .settings import Settings
from .trials import BestRate, ByGradient, Either, Stairs, UpperBlocks


@dataclass(frozen=True)
class Plan:
    """What an arm may know of a run before it starts.

    Attributes:
        steps: optimizer steps.
        warmup: the first of them, in which every gate is open.
        seed: of the run.
    """

    steps: int
    warmup: int
    seed: int


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        what: in a few words.
        policy: makes the policy of a run.
        scope: what a gate detaches.
        decision: which M decides.
        probe_every: see the option of that name.
        micro: micro-batches in a step. If more than one, gates decide for each, and a site's gradient is scaled such
            that its expectation is that of the whole batch.
        open_warmup: whether every gate is open in the warm-up.
        anneals: whether each block's learning rate falls to 0 at the step at which a growing depth reaches it
            (FreezeOut, Brock et al. 2017); of an arm whose policy is a :class:`Schedule`.
        zeros: whether what rests in a step has zeros for a gradient, with which AdamW goes on by its moments, and not
            none; the backend's ``skipped_grad``.
        drift: share of their last mean update by which parameters move in a step in which they rest.
        catches_up: whether parameters that move again take the steps in which they rested at once.
        threshold: τ; None for that of the settings.
        repeats: how updates are repeated; None if they are not.
        gated: whether it has gates at all; without them a step takes what full LoRA's does.
    """

    what: str
    policy: Callable[[Plan], Policy]
    scope: str = "adapter"
    decision: str = "previous"
    probe_every: int = 0
    micro: int = 1
    open_warmup: bool = True
    zeros: bool = False
    drift: float = 0.0
    catches_up: bool = False
    anneals: bool = False
    threshold: float | None = None
    repeats: Repeats | None = None
    gated: bool = True

    def options(self, plan: Plan, settings: Settings) -> dict[str, Any]:
        """Return the options of ``skiplora_fx.apply``."""
        return {
            "policy": self.policy(plan),
            "scope": self.scope,
            "decision": self.decision,
            "threshold": settings.threshold if self.threshold is None else self.threshold,
            "warmup_steps": plan.warmup * self.micro if self.open_warmup else 0,
            "probe_every": self.probe_every,
        }


_DEEPEST = 0.875
"""Share of the blocks that rest where a schedule is deepest."""


def _open(plan: Plan) -> Policy:
    return Freeze(share=0.0)


def _growing(plan: Plan) -> Policy:
    return Schedule(0.0, _DEEPEST, plan.warmup, plan.steps)


INNER = ("*.[qkv]_proj", "*.gate_proj", "*.up_proj", "*.query", "*.key", "*.value", "*.intermediate.dense")
"""Globs over layers that read the residual stream, and do not write into it."""


def _near(what: str, policy: Policy) -> Arm:
    """Return an arm that detaches inputs of inner layers, which keeps gradients to the residual stream."""
    return Arm(what, lambda plan: Only(policy, INNER), scope="input")


ARMS: Mapping[str, Arm] = {
    "full": Arm("nothing is skipped", _open),
    "freeze": Arm("the lower half is never trained", lambda plan: Freeze(share=0.5), open_warmup=False),
    "random": Arm(
        "each block is cut off with probability 0.5 (DropBP)",
        lambda plan: RandomBlocks(rate=0.5, seed=plan.seed),
        scope="layer",
    ),
    "threshold": Arm("M < τ, adapters", lambda plan: Threshold(), decision="current", probe_every=20),
    "threshold-layer": Arm(
        "M < τ, whole layers", lambda plan: Threshold(), scope="layer", decision="current", probe_every=20
    ),
    "quantile": Arm("each site in half of the steps", lambda plan: Quantile(share=0.5, window=32), decision="current"),
    "prefix": Arm("the depth is drawn by M", lambda plan: Prefix(share=0.45, seed=plan.seed)),
    "budget": Arm("60 % of the backward's FLOPs", lambda plan: Budget(target=0.6, every=25)),
    "progressive": Arm(
        "a prefix of blocks whose M has settled",
        lambda plan: Progressive(window=max(plan.steps // 12, 2), bound=0.3, reopen=1.0, deepest=0.84),
    ),
    "multirate": Arm("the lower half in each 4th step", lambda plan: Multirate(share=0.5, every=4)),
    "micro": Arm("the lower half in one of 4 micro-batches", lambda plan: Stairs(depths=(0.0, 0.5, 0.5, 0.5)), micro=4),
    "halves": Arm(
        "all but the top eighth in one of 2 micro-batches", lambda plan: Stairs(depths=(0.0, _DEEPEST)), micro=2
    ),
    "stairs": Arm("4 micro-batches to 4 depths", lambda plan: Stairs(depths=(0.0, 0.34, 0.5, _DEEPEST)), micro=4),
    "grow": Arm("the depth grows over the run", _growing),
    "grow-zeros": Arm("the same; what rests has zeros for a gradient, not none", _growing, zeros=True),
    "freezeout": Arm(
        "the depth grows; each block's learning rate falls to 0 before it rests",
        _growing,
        anneals=True,
    ),
    "open": Arm(
        "starts truncated, opens downwards",
        lambda plan: Schedule(_DEEPEST, 0.0, 0, plan.steps),
        open_warmup=False,
    ),
    "multirate-zeros": Arm(
        "the lower half in each 4th step; what rests has zeros for a gradient, not none",
        lambda plan: Multirate(share=0.5, every=4),
        zeros=True,
    ),
    "drift": Arm(
        "multirate; what rests moves on by half of its mean update",
        lambda plan: Multirate(share=0.5, every=4),
        drift=0.5,
    ),
    "drift-little": Arm(
        "multirate; what rests moves on by a quarter of its mean update",
        lambda plan: Multirate(share=0.5, every=4),
        drift=0.25,
    ),
    "drift-2": Arm(
        "the lower half in every other step; what rests moves on by half of its mean update",
        lambda plan: Multirate(share=0.5, every=2),
        drift=0.5,
    ),
    "multirate-catch-up": Arm(
        "the lower half in each 4th step, which is then four times as large",
        lambda plan: Multirate(share=0.5, every=4),
        catches_up=True,
    ),
    "multirate-2": Arm("the lower half in every other step", lambda plan: Multirate(share=0.5, every=2)),
    "threshold-0.7": Arm(
        "M < 0.7, adapters", lambda plan: Threshold(), decision="current", probe_every=20, threshold=0.7
    ),
    "threshold-layer-0.7": Arm(
        "M < 0.7, whole layers",
        lambda plan: Threshold(),
        scope="layer",
        decision="current",
        probe_every=20,
        threshold=0.7,
    ),
    "near": _near("in every other step gradients go down by the residual stream alone", Multirate(share=1.0, every=2)),
    "near-halves": _near("near in the upper and the lower half by turns", CyclicBlocks(share=0.5)),
    "near-high": _near("near in the upper half, always", UpperBlocks(share=0.5)),
    "near-high-2": _near("near in the upper half, in every other step", UpperBlocks(share=0.5, every=2)),
    "near-most": _near("near in the upper three quarters, always", UpperBlocks(share=0.75)),
    "near-all": _near("near everywhere, always", UpperBlocks(share=1.0)),
    "freeze-low": Arm("the lowest quarter is never trained", lambda plan: Freeze(share=0.25), open_warmup=False),
    "freeze-less": Arm(
        "the lowest three eighths are never trained", lambda plan: Freeze(share=0.375), open_warmup=False
    ),
    "open-low": Arm(
        "starts with the lowest three eighths truncated, opens downwards",
        lambda plan: Schedule(0.375, 0.0, 0, plan.steps),
        open_warmup=False,
    ),
    "best-rate": Arm(
        "the depth that keeps the most gradient norm for the FLOPs of a step", lambda plan: BestRate(), probe_every=10
    ),
    "budget-norm": Arm(
        "60 % of the backward's FLOPs, most gradient norm kept",
        lambda plan: ByGradient(Budget(target=0.6, every=25)),
        probe_every=25,
    ),
    "budget-norm-layer": Arm(
        "the same with whole layers, so that what lies below them may stay open",
        lambda plan: ByGradient(Budget(target=0.6, every=25)),
        scope="layer",
        probe_every=25,
    ),
    "grow-multirate": Arm(
        "the depth grows over the run; what lies below is trained in each 4th step",
        _growing,
        probe_every=4,
    ),
    "grow-quantile": Arm(
        "the depth grows over the run; above it each site rests in a quarter of the steps",
        lambda plan: Either((_growing(plan), Quantile(share=0.25, window=32))),
        decision="current",
    ),
    "fast-forward": Arm(
        "every 6 steps, the last update is repeated while a held-out loss falls (Fast Forward)",
        _open,
        repeats=Repeats(),
        gated=False,
    ),
    "fast-forward-mean": Arm(
        "the same with the mean of the last updates", _open, repeats=Repeats(memory=MEMORY), gated=False
    ),
    "grow-fast-forward": Arm("the depth grows over the run, with Fast Forward", _growing, repeats=Repeats()),
}
"""Every arm, by name."""
