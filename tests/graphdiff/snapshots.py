"""Snapshots for the tests of the graph diff: of tiny models, and written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skiplora_fx.config import SkipLoraConfig
from skiplora_fx.graphdiff.records import GraphRecord, NodeRecord, Snapshot, StageRecord, TensorRecord
from skiplora_fx.graphdiff.snapshot import take_snapshot


def snapshot(model: Any, *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Snapshot:
    """Return the snapshot of a model under these options."""
    return take_snapshot(model, args, kwargs or {}, SkipLoraConfig.from_options(options))


def node(name: str, target: str, *reads: str, number: float | None = None, module: str = "") -> NodeRecord:
    """Return a node that reads others and perhaps a number; one without either is an input."""
    arguments: list[Any] = [{"node": read} for read in reads]
    arguments += [] if number is None else [number]
    op = "output" if target == "output" else "call_function" if arguments else "placeholder"
    tensor = TensorRecord("float32", (2, 3), (3, 1), "cpu")
    return NodeRecord(name, op, target, arguments, {}, (tensor,), module)


def stage(*nodes: NodeRecord, name: str = "captured") -> StageRecord:
    """Return a stage of these nodes."""
    return StageRecord(name, nodes)


def whole(stages: Sequence[StageRecord]) -> Snapshot:
    """Return a snapshot of one graph without sites."""
    return Snapshot("Model", "adapter", {"torch": "2"}, (GraphRecord(0, (), (), ((),), tuple(stages)),))
