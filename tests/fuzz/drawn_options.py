"""Options of the backend as hypothesis draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drawn_models import ModelSpec, Twice
from hypothesis import strategies as st

AT_ONCE = {"warmup_steps": 0, "probe_every": 0}


@dataclass(frozen=True)
class Gating:
    """How a model is gated.

    Attributes:
        scope: what a shut gate detaches.
        held: whether decisions are taken before the forward.
        merges: whether siblings are merged.
    """

    scope: str
    held: bool
    merges: bool

    @property
    def options(self) -> dict[str, Any]:
        """The backend's options, with which gates may shut from the first step on."""
        decision = "previous" if self.held else "current"
        return {"scope": self.scope, "decision": decision, "merge_siblings": self.merges, **AT_ONCE}


GATINGS = st.builds(Gating, st.sampled_from(("adapter", "layer")), st.booleans(), st.booleans()) | st.just(
    Gating("input", held=True, merges=False)  # the one way in which this scope can be had
)

POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("threshold", {}),
    ("quantile", {"share": 0.5, "window": 4}),
    ("prefix", {"share": 0.7}),
    ("budget", {"target": 0.5, "every": 1}),
    ("progressive", {"window": 1, "bound": 10.0}),
    ("schedule", {"first": 0.5, "last": 1.0, "steps": 4}),
    ("multirate", {"share": 0.5, "every": 2}),
    ("random", {"rate": 0.5}),
    ("cyclic", {"share": 0.5}),
    ("freeze", {"share": 0.5}),
)
"""Every one that has a name, so that it shuts something within a few steps of a model of few layers."""

COMPARING = ("threshold", "quantile")
"""Those that leave it to a ratio whether a gate is shut, so that two uses of a layer may differ in one forward."""


@st.composite
def policy_options(draw: Callable[..., Any], spec: ModelSpec) -> tuple[Gating, dict[str, Any]]:
    """Draw a gating and a policy of which each layer has one decision for each backward."""
    policy, kwargs = draw(st.sampled_from(POLICIES))
    gating = draw(GATINGS)
    if policy in COMPARING and any(block.kind is Twice for block in spec.blocks):
        gating = Gating(gating.scope, held=True, merges=gating.merges)
    return gating, {**gating.options, "policy": policy, "policy_kwargs": kwargs, "threshold": 0.5}
