"""Snapshots are read back as they were written, and what is none is refused with its place."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_modules import batch, peft
from snapshots import snapshot

from skiplora_fx import UsageError
from skiplora_fx.graphdiff.files import parse_snapshot, read_snapshot, snapshot_data, snapshot_json


@pytest.fixture(scope="module")
def data() -> Any:
    return json.loads(snapshot_json(snapshot(peft(), batch())))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    taken = snapshot(peft(), batch())
    path = tmp_path / "snapshot.json"
    path.write_text(snapshot_json(taken))
    assert snapshot_data(read_snapshot(path)) == snapshot_data(taken)


def stage(data: Any, name: str) -> Any:
    return next(stage for stage in data["graphs"][0]["stages"] if stage["name"] == name)


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "format": (lambda d: d.update(format="other"), "its format is 'other'"),
    "version": (lambda d: d.update(version=99), "of version 99"),
    "no version": (lambda d: d.pop("version"), "'version' of the file is missing, a whole number"),
    "graphs": (lambda d: d.update(graphs={}), "'graphs' of the file is a dict, a list"),
    "graph": (lambda d: d.update(graphs=["no"]), r"graphs\[0\] of the file is 'no', an object"),
    "sites": (lambda d: d["graphs"][0]["sites"][0].update(index=3), "not numbered from 0"),
    "call": (lambda d: d["graphs"][0].update(calls=[[1]]), "does not name each of its 1 sites"),
    "stage": (lambda d: stage(d, "joint").update(name="jont"), "'jont', one of captured, gated"),
    "op": (lambda d: stage(d, "joint")["nodes"][0].update(op="call"), "'call', one of placeholder"),
    "flops": (lambda d: stage(d, "joint")["nodes"][0].update(flops=-1), "-1, a number of at least 0"),
    "boolean": (lambda d: stage(d, "joint")["nodes"][0].update(site=True), "True, a whole number"),
    "twice": (lambda d: stage(d, "joint")["nodes"][1].update(name=stage(d, "joint")["nodes"][0]["name"]), "two nodes"),
    "order": (lambda d: stage(d, "joint")["nodes"].reverse(), "which is not before it"),
    "site": (lambda d: stage(d, "joint")["nodes"][0].update(site=7), "site 7, which is not there"),
    "region": (lambda d: stage(d, "joint")["nodes"][0].update(region=7), "region 7, which is not there"),
    "root": (lambda d: stage(d, "predicated")["conditions"].update(roots=[99]), "99, a row below"),
    "row": (lambda d: stage(d, "predicated")["conditions"]["rows"].append([0, 0, 99]), "two earlier rows"),
    "short row": (lambda d: stage(d, "predicated")["conditions"]["rows"].append([0]), "three whole numbers"),
    "tensor": (lambda d: stage(d, "joint")["nodes"][0].update(tensors=[{"shape": [1.5]}]), "a list of sizes"),
    "regions": (lambda d: stage(d, "predicated")["regions"][0].update(nodes=["x"]), "a node that is not there"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_cannot_be_meant_is_refused(edit: str, data: Any) -> None:
    broken = copy.deepcopy(data)
    EDITS[edit][0](broken)
    with pytest.raises(UsageError, match=EDITS[edit][1]):
        parse_snapshot(broken)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("[]", "the file is a list, an object is expected"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "cannot be read"),
    ],
)
def test_what_is_no_snapshot_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=told):
        read_snapshot(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("{}" * 10)
    with pytest.raises(UsageError, match="has more than 10 bytes, the most that is read of a snapshot"):
        read_snapshot(path, limit=10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no files of unknown size")
def test_a_file_that_says_it_is_empty_is_not_read_beyond_the_limit() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(UsageError, match="has more than 10 bytes"):
        read_snapshot("/proc/self/status", limit=10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UsageError, match=r"pipe\.json is no regular file, and a snapshot is read from one"):
        read_snapshot(tmp_path / "pipe.json")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no regular file"):
        read_snapshot(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_snapshot(tmp_path / "none.json")
