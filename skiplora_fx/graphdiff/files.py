"""Snapshots as JSON: written the same in every process, read with doubt."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UsageError
from .records import (
    VERSION,
    Diagram,
    GraphRecord,
    NodeRecord,
    RegionRecord,
    RejectionRecord,
    SiteRecord,
    Snapshot,
    StageRecord,
    TensorRecord,
)
from .stages import STAGES

FORMAT = "skiplora-snapshot"
DIFF_FORMAT = "skiplora-diff"
LIMIT = 512 * 2**20
"""Bytes that :func:`read_snapshot` reads at most: thirty times what a Llama of 32 layers takes."""

_OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
_T = TypeVar("_T")


def snapshot_json(snapshot: Snapshot) -> str:
    """Return a snapshot as one line of JSON; fields that hold nothing are left out."""
    return dump(snapshot_data(snapshot))


def dump(data: Any) -> str:
    """Return ``data`` as one line of JSON with sorted keys."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain data, with the name of the format and its version."""
    return {"format": FORMAT, "version": VERSION, **_plain(snapshot)}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        held = ((part.name, getattr(value, part.name)) for part in fields(value))
        return {name: _plain(part) for name, part in held if part not in (None, "", (), [], {})}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value


def read_snapshot(path: str | Path, limit: int = LIMIT) -> Snapshot:
    """Read a snapshot from a file.

    Args:
        path: of what ``skiplora diff MODEL --json`` or ``GraphDiff.to_json`` wrote.
        limit: bytes that the file may have.

    Raises:
        UsageError: there is no such file, it is no regular one or too large, it is no snapshot, or something in it
            cannot be meant.
    """
    text = _text(Path(path), limit)
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error or type(error).__name__}); a snapshot is expected") from error
    try:
        return parse_snapshot(data)
    except (UsageError, RecursionError) as error:
        raise UsageError(f"{path} is no snapshot: {error or 'it is nested too deeply'}") from error


def _text(path: Path, limit: int) -> str:
    """Return what a file holds. How much that is shows when it is read: files below ``/proc`` say they have 0 bytes."""
    try:
        # To open a pipe would wait for its writer, and a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no regular file, and a snapshot is read from one")
        with path.open("rb") as file:
            read = file.read(limit + 1)
        if len(read) > limit:
            raise UsageError(f"{path} has more than {limit} bytes, the most that is read of a snapshot")
        return read.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def parse_snapshot(data: Any) -> Snapshot:
    """Return the snapshot that plain data describes: a snapshot, or a comparison of the stages of one.

    Raises:
        UsageError: something in it is missing, of another type, or refers to what is not there.
    """
    top = _Fields(data, "the file")
    if top.get("format", str) == DIFF_FORMAT:
        top = _only_snapshot(top)
    if top.get("format", str) != FORMAT:
        raise UsageError(f"its format is {top.get('format', str)!r}, {FORMAT!r} is expected")
    version = top.get("version", int)
    if version != VERSION:
        raise UsageError(f"it is of version {version}, this skiplora_fx reads version {VERSION}")
    return Snapshot(
        model=top.get("model", str),
        scope=top.get("scope", str),
        versions=top.texts("versions"),
        graphs=tuple(map(_graph, top.parts("graphs"))),
    )


def _only_snapshot(top: _Fields) -> _Fields:
    snapshots = list(top.parts("snapshots"))
    if len(snapshots) != 1:
        raise UsageError(f"it is a comparison that holds {len(snapshots)} snapshots; one is expected")
    return snapshots[0]


class _Fields:
    """A JSON object whose fields are checked as they are read.

    Args:
        data: what should be the object.
        what: what it is, for errors.
        around: the object that it is a part of, if any.
    """

    def __init__(self, data: Any, what: Any, around: _Fields | None = None) -> None:
        self._what = what
        self._around = around
        if not isinstance(data, dict):
            raise UsageError(f"{self.where} is {_shown(data)}, an object is expected")
        self.data = data

    @property
    def where(self) -> str:
        what = self._what if isinstance(self._what, str) else "{}[{}]".format(*self._what)
        return f"{what} of {self._around.where}" if self._around is not None else what

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        value = self.data.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, value, {str: "text", int: "a whole number", list: "a list"}.get(kind, "an object"))
        return value

    def count(self, name: str) -> int:
        value = self.get(name, int)
        if value < 0:
            raise self.error(name, value, "a number of at least 0")
        return value

    def optional_count(self, name: str) -> int | None:
        return None if self.data.get(name) is None else self.count(name)

    def list_of(self, name: str, kinds: Any, said: str) -> tuple[Any, ...]:
        values = self.get(name, list, [])
        for value in values:
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise self.error(name, value, f"a list of {said}")
        return tuple(values)

    def names(self, name: str) -> tuple[str, ...]:
        return self.list_of(name, str, "texts")

    def texts(self, name: str) -> dict[str, str]:
        values = self.get(name, dict, {})
        for value in values.values():
            if not isinstance(value, str):
                raise self.error(name, value, "an object of texts")
        return values

    def parts(self, name: str) -> Iterator[_Fields]:
        for position, part in enumerate(self.get(name, list, [])):
            yield _Fields(part, (name, position), self)

    def error(self, name: str, value: Any, expected: str) -> UsageError:
        return UsageError(f"{name!r} of {self.where} is {_shown(value)}, {expected} is expected")


def _shown(value: Any) -> str:
    text = repr(value) if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return "missing" if value is None else text if len(text) <= 60 else text[:57] + "…"


def _graph(part: _Fields) -> GraphRecord:
    sites = tuple(map(_site, part.parts("sites")))
    if [site.index for site in sites] != list(range(len(sites))):
        raise UsageError(f"the sites of {part.where} are not numbered from 0 on")
    calls = part.list_of("calls", list, "lists")
    if any(len(call) != len(sites) or not all(isinstance(name, str) for name in call) for call in calls):
        raise UsageError(f"a call of {part.where} does not name each of its {len(sites)} sites")
    stages = tuple(_stage(stage, len(sites)) for stage in part.parts("stages"))
    rejections = tuple(map(_rejection, part.parts("rejections")))
    return GraphRecord(part.count("number"), sites, rejections, tuple(map(tuple, calls)), stages)


def _site(part: _Fields) -> SiteRecord:
    name, adapter = part.get("name", str, ""), part.get("adapter", str, "")
    join, h, delta = (part.get(key, str, "") for key in ("join", "h", "delta"))
    kind, rank = part.get("kind", str, ""), part.count("rank")
    return SiteRecord(part.count("index"), name, adapter, kind, rank, join, h, delta, part.names("parameters"))


def _rejection(part: _Fields) -> RejectionRecord:
    return RejectionRecord(*(part.get(key, str, "") for key in ("name", "reason", "node", "family", "source")))


def _stage(part: _Fields, sites: int) -> StageRecord:
    name = part.get("name", str)
    if name not in STAGES:
        raise part.error("name", name, f"one of {', '.join(STAGES)}")
    part = _Fields(part.data, f"stage {name!r}")
    nodes = tuple(map(_node, part.parts("nodes")))
    conditions = (
        _diagram(_Fields(part.data["conditions"], f"conditions of {part.where}"), sites)
        if ("conditions" in part.data)
        else None
    )
    stage = StageRecord(name, nodes, conditions, tuple(map(_region, part.parts("regions"))))
    _check_references(stage, sites)
    return stage


def _node(part: _Fields) -> NodeRecord:
    op = part.get("op", str)
    if op not in _OPS:
        raise part.error("op", op, f"one of {', '.join(_OPS)}")
    counts = (part.optional_count(key) for key in ("site", "condition", "region", "flops"))
    return NodeRecord(
        part.get("name", str),
        op,
        part.get("target", str, ""),
        part.get("args", list, []),
        part.get("kwargs", dict, {}),
        tuple(map(_tensor, part.parts("tensors"))),
        part.get("module", str, ""),
        part.get("module_type", str, ""),
        part.get("source", str, ""),
        part.names("origin"),
        *counts,
    )


def _tensor(part: _Fields) -> TensorRecord:
    shape, stride = (part.list_of(name, (int, str), "sizes") for name in ("shape", "stride"))
    return TensorRecord(part.get("dtype", str), shape, stride, part.get("device", str))


def _region(part: _Fields) -> RegionRecord:
    number, condition, flops = part.count("number"), part.count("condition"), part.count("flops")
    return RegionRecord(number, condition, part.names("nodes"), part.texts("outputs"), flops)


def _diagram(part: _Fields, sites: int) -> Diagram:
    rows = part.list_of("rows", list, "lists")
    for number, row in enumerate(rows, start=2):
        if len(row) != 3 or not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in row):
            raise part.error("rows", str(row), "a list of three whole numbers for each row")
        if not (0 <= row[0] < sites and all(0 <= child < number for child in row[1:])):
            raise part.error("rows", str(row), f"a site below {sites} and two earlier rows")
    roots = part.list_of("roots", int, "whole numbers")
    if not all(0 <= root < len(rows) + 2 for root in roots):
        raise part.error("roots", max(roots), f"a row below {len(rows) + 2}")
    return Diagram(tuple((row[0], row[1], row[2]) for row in rows), roots)


def _check_references(stage: StageRecord, sites: int) -> None:
    """Raise if a node reads one that is not before it, or anything refers to what the stage does not have."""
    known: set[str] = set()
    regions = {region.number for region in stage.regions}
    conditions = len(stage.conditions.roots) if stage.conditions else 0
    for node in stage.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise _dangling(stage, node.name, f"node {missing[0]!r}, which is not before it")
        if node.name in known:
            raise UsageError(f"stage {stage.name!r} has two nodes called {node.name!r}")
        known.add(node.name)
        checks: Sequence[tuple[str, int | None, Callable[[int], bool]]] = (
            ("site", node.site, lambda site: site < sites),
            ("condition", node.condition, lambda condition: condition < conditions),
            ("region", node.region, regions.__contains__),
        )
        for what, value, is_there in checks:
            if value is not None and not is_there(value):
                raise _dangling(stage, node.name, f"{what} {value}, which is not there")
    for region in stage.regions:
        if region.condition >= conditions or not known.issuperset((*region.nodes, *region.outputs)):
            raise _dangling(stage, f"region {region.number}", "a condition or a node that is not there")


def _dangling(stage: StageRecord, culprit: str, what: str) -> UsageError:
    return UsageError(f"stage {stage.name!r}: {culprit} refers to {what}")
