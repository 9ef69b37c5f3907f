"""What looks on while a model compiles: writes stages to a folder, and to tlparse."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import fx

from .._torch_compat import trace_structured
from ..passes import OnPass, Pipeline
from .debug_dir import DebugDir
from .graph_diff import WITHIN, stages_of
from .records import Snapshot, StageRecord
from .snapshot import record_graph, versions
from .stages import StageRecorder

log = logging.getLogger(__name__)


class Watch:
    """A callback for a :class:`~skiplora_fx.passes.Pipeline` that hands on what the passes do.

    What goes wrong here is warned of, and the compile goes on.

    Args:
        pipeline: whose passes it is.
        folder: where :class:`DebugDir` writes, if anywhere.
        then: is called as well.
    """

    def __init__(self, pipeline: Pipeline, folder: str | None, then: OnPass) -> None:
        self._pipeline = pipeline
        self._folder = DebugDir(Path(folder)) if folder else None
        self._then = then
        self._recorder = StageRecorder(self._see)
        self._stopped = False

    def __call__(self, name: str, kind: str, graph: fx.Graph) -> None:
        self._then(name, kind, graph)
        if self._stopped:
            return
        try:
            self._recorder(name, kind, graph)
        except Exception as error:  # whatever it is: a look at a training must not end it
            log.warning("nothing more is recorded of this graph, at %s: %s: %s", name, type(error).__name__, error)
            self._stopped = True

    def _see(self, stage: StageRecord) -> None:
        snapshot = self._snapshot()
        if self._folder is not None:
            self._folder.write(snapshot, stage.name)
        if stage.name in {after for _, after in WITHIN}:
            trace_structured(
                "artifact",
                metadata_fn=lambda: {"name": f"skiplora_diff_{stage.name}", "encoding": "string"},
                payload_fn=lambda: stages_of(snapshot).only(stage=stage.name).text(),
            )

    def _snapshot(self) -> Snapshot:
        gated = self._pipeline.gated
        borders = gated.borders if gated is not None else ()
        graph = record_graph(0, self._pipeline.findings, self._recorder.stages, borders=borders)
        return Snapshot("graph", self._pipeline.scope, versions(), (graph,))
