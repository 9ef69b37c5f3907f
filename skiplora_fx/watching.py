"""Who looks on between two passes of a compile."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import fx

from ._torch_compat import trace_structured
from .passes import Pipeline

DEBUG_DIR = "SKIPLORA_DEBUG_DIR"
"""The environment variable with a folder for the stages of each compile."""


def watched(pipeline: Pipeline) -> Callable[[str, str, fx.Graph], None]:
    """Return what looks on; nobody pays for recording stages who has not asked for it."""
    if DEBUG_DIR not in os.environ and "TORCH_TRACE" not in os.environ:
        return _trace
    from .graphdiff.watch import Watch

    return Watch(pipeline, os.environ.get(DEBUG_DIR), _trace)


def _trace(name: str, kind: str, graph: fx.Graph) -> None:
    """Leave each graph where tlparse finds it; costs nothing unless TORCH_TRACE is set."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"skiplora_{kind}_after_{name}", "encoding": "string"},
        payload_fn=lambda: str(graph),
    )
