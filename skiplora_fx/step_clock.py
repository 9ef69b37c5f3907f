"""What a step is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._torch_compat import current_backward
from .ranks import Ranks
from .saved_state import SavedController
from .stopwatch import Stopwatch

if TYPE_CHECKING:
    from .controller import Controller

_BACKWARDS = 16
"""Of so many backwards it is remembered in which step they began."""


@dataclass(eq=False)
class StepClock:
    """Counts training steps: optimizer steps if attached to an optimizer, else backwards.

    Attributes:
        steps: so far.
        attached: whether an optimizer moves it.
        timed: whether backwards are timed.
        backward_seconds: of the backwards since the last step, as far as they have been read.
        saved: what a checkpoint says of controllers that are still to be made.
        diverged: whether an M was not a number, and that was said.
        ranks: the processes that step together, if an optimizer moves it.
    """

    steps: int = 0
    attached: bool = False
    timed: bool = False
    backward_seconds: float = 0.0
    saved: list[SavedController] = field(default_factory=list)
    diverged: bool = False
    ranks: Ranks | None = None
    _controllers: list[weakref.ref[Controller]] = field(default_factory=list)
    _begun_in: dict[int, int] = field(default_factory=dict)

    def now(self) -> int:
        """Return the step that a forward belongs to which begins now.

        Activation checkpointing runs forwards in the middle of a backward, and those of later layers count first: all
        forwards in one backward belong to the step in which the first of them began.
        """
        backward = current_backward()
        if backward < 0:
            return self.steps
        if backward not in self._begun_in:
            # Checkpoints run backwards in a backward, so the last one is not enough to know.
            self._begun_in = dict([*self._begun_in.items(), (backward, self.steps)][-_BACKWARDS:])
        return self._begun_in[backward]

    def count_backward(self, step: int) -> None:
        """Count the backward of a forward that belongs to ``step``; a model's further graphs add nothing to it."""
        self.now()  # the step in which this backward began
        if not self.attached and self.steps == step:
            self.steps += 1

    def add_time(self, watch: Stopwatch) -> None:
        """Add the time of a backward; waits for the device."""
        self.backward_seconds += watch.seconds()

    def saved_with(self, id: str) -> SavedController | None:
        """Return what a checkpoint says of the controller of a site; None if it does not know it."""
        return next((saved for saved in self.saved if saved.holds(id)), None)

    def serve(self, controller: Controller) -> None:
        """Count for one more controller."""
        self._controllers.append(weakref.ref(controller))

    def controllers(self) -> Iterator[Controller]:
        """Yield those that it counts for."""
        for known in self._controllers:
            controller = known()
            if controller is not None and controller.clock is self:
                yield controller
