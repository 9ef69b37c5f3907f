"""What becomes of a graph on which a pass fails: it is compiled without gates, and a report is left."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx

from .config import SkipLoraConfig
from .errors import reason_of
from .failure_report import save_failure_report

FORWARD_PASSES = "find_lora, insert_gates or merge_siblings"
"""The name under which those passes fail."""


class FallbackWarning(UserWarning):
    """A pass failed on a graph: nothing in it is gated, or nothing is left out of its backward."""


class Failures:
    """What has failed in one compile.

    Args:
        strict: whether a failure is the user's to see as an error.
        report: called with a pass and its error where the compile goes on without it.
    """

    def __init__(self, strict: bool, report: Callable[[str, Exception], None]) -> None:
        self._strict = strict
        self._report = report
        self._noted: tuple[str, Exception] | None = None
        self._tolerated: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Note what a pass raises inside, and raise it on."""
        try:
            yield
        except Exception as error:
            self._noted = name, error
            raise

    def noting(self, name: str, rewrite: Callable[[fx.Graph], None]) -> Callable[[fx.Graph], None]:
        """Return ``rewrite``, with what it raises noted."""

        def noted(graph: fx.Graph) -> None:
            with self.noted(name):
                rewrite(graph)

        return noted

    def tolerate(self, name: str, error: Exception) -> None:
        """Report what a graph can do without; raise it if failures are to be seen.

        What fails on the forward as on the backward is reported once.
        """
        if self._strict:
            raise error
        failure = name, reason_of(error)
        if failure not in self._tolerated:
            self._tolerated.add(failure)
            self._report(name, error)

    def fall_back(self) -> bool:
        """Return whether a pass has failed whose graph may be compiled without it, and report that."""
        if self._strict or self._noted is None:
            return False
        self._report(*self._noted)
        return True


def warn_of_failure(
    name: str, error: Exception, *, gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig
) -> None:
    """Warn that a pass failed on a graph that Dynamo captured, and say where a report of it lies.

    Args:
        name: of the pass.
        error: what it raised.
        gm: the graph.
        inputs: its inputs, as :func:`~.reproducer.kinds_of` gives them.
        config: the options, Inductor's of the compile's mode among them.
    """
    without = _WITHOUT.get(name, "its adapters train, and nothing is left out")
    try:
        saved = f"What is needed to see it again is in {save_failure_report(name, error, gm, inputs, config)}"
    except Exception as refused:  # the compile goes on, whatever it is
        saved = f"A report could not be saved ({reason_of(refused)})"
    warnings.warn(
        f"skiplora: {name} failed on a graph ({reason_of(error)}). The graph is compiled without it: {without}. "
        f"{saved}; please report it. strict=True raises the error instead.",
        FallbackWarning,
        stacklevel=2,
    )


_UNGATED = "its adapters train ungated"
_WITHOUT = {
    FORWARD_PASSES: _UNGATED,
    "fold_gates": _UNGATED,
    "release_saved": "what the forward saves for a backward that is left out is held until then",
    "share_branches": "each region has branches of its own, which takes longer to compile",
    "outline_layers": "each layer is compiled for itself, which takes longer",
    "release_operands": "a step in which much is skipped holds more memory than it needs",
}
"""What a graph goes without where a pass has failed; where it is another, nothing is left out of its backward."""
