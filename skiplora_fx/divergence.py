"""What says that a run diverges: an M that is not a number."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .step_clock import StepClock


class DivergenceWarning(UserWarning):
    """The output of an adapter or of the layer that it adapts is not finite."""


def warn_of_nan(name: str, clock: StepClock) -> None:
    """Warn, once for a model, that M of a site is not a number, and that this opened its gate.

    Args:
        name: of the site.
        clock: of the model.
    """
    if clock.diverged:
        return
    clock.diverged = True
    warnings.warn(
        f"skiplora: at step {clock.steps} M of {name} is not a number: what its adapter or the layer itself gives is "
        "not finite, or so large that its norm is not. Such a gate is open whatever its threshold says: a run that "
        "diverges does not look like one that skips.",
        DivergenceWarning,
        stacklevel=2,
    )
