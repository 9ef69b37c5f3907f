"""What a page is given: the nodes that changed with their context, backwards as columns, runs as rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lora_modules import batch, peft
from snapshots import node, snapshot, stage, whole

from skiplora_fx.graphdiff import GraphDiff, compare, page_data, stages_of
from skiplora_fx.graphdiff.page_backward import backward_data
from skiplora_fx.graphdiff.page_data import page_data as data_of
from skiplora_fx.graphdiff.page_records import FIELDS, Records
from skiplora_fx.graphdiff.page_timeline import timeline_data
from skiplora_fx.graphdiff.records import Diagram, StageRecord
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog


def chains(length: int, copies: int) -> GraphDiff:
    """Return a comparison in which the end of each of several chains, all alike, has become another."""

    def chain(at: int, target: str) -> list[Any]:
        links = [node(f"n{at}_{link}", "sin", f"n{at}_{link - 1}" if link else "x") for link in range(length)]
        return [*links, node(f"end{at}", target, f"n{at}_{length - 1}")]

    inputs = [node("x", "x")]
    before, after = (
        [*inputs, *(one for at in range(copies) for one in chain(at, target))] for target in ("cos", "tan")
    )
    return stages_of(whole([stage(*before, name="captured"), stage(*after, name="gated")]))


def shown(data: dict[str, Any], place: int, side: int) -> dict[str, Any]:
    """Return the record of one side, 2 before and 3 after, of a node of the first comparison."""
    row = data["records"][data["transitions"][0]["nodes"][place][side][0]]
    texts = [data["texts"][place] for place in row[:11]]
    return dict(zip(FIELDS, (*texts, *row[11:]), strict=True))


def test_only_hunks_and_their_context_are_held() -> None:
    data = data_of(chains(length=5, copies=2))
    (transition,) = data["transitions"]
    (shape,) = transition["shapes"]
    assert [hunk["context"] for hunk in shape] == ["10", "10"]
    names = [[shown(data, place, 3)["name"] for place in hunk["nodes"]] for hunk in shape]
    assert names == [["n0_4", "end0"], ["n1_4", "end1"]]
    assert len(transition["nodes"]) == 4
    end = shape[0]["nodes"][1]
    assert [shown(data, end, side)["target"] for side in (2, 3)] == ["cos", "tan"]
    assert transition["nodes"][end][2][1] == [shape[0]["nodes"][0]]


def test_what_is_too_much_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_data, "MOST_NODES", 3)
    monkeypatch.setattr(page_data, "MOST_IN_HUNK", 1)
    monkeypatch.setattr(page_data, "MOST_LINES", 10)
    (transition,) = data_of(chains(length=3, copies=6))["transitions"]
    (shape,) = transition["shapes"]
    assert [len(hunk["nodes"]) for hunk in shape] == [1, 1, 1, 1, 0, 0]
    assert [hunk["left_out"] for hunk in shape] == [1, 1, 1, 1, 2, 2]
    assert len(transition["text"].split("\n")) == 10
    assert transition["lines_left_out"] > 0


def test_control_characters_are_written_out() -> None:
    found = compare(whole([stage(node("x\x1b[31m", "x"))]), whole([stage()]))
    assert not any("\x1b" in text for text in data_of(found)["texts"])


def test_sites_are_those_of_every_call_in_the_order_of_decisions() -> None:
    data = data_of(stages_of(snapshot(peft(targets=("first", "second")), batch())))
    assert [site["name"].rpartition(".")[2] for site in data["sites"]] == ["first", "second"]
    assert [site["id"] for site in data["sites"]] == [f"{site['name']} [default]" for site in data["sites"]]
    assert data["calls"] == [0]
    assert all(site["hunks"] > 0 for site in data["sites"])


def test_the_backward_is_the_conditions_and_columns_of_equal_length() -> None:
    taken = snapshot(peft(targets=("first", "second")), batch())
    records = Records()
    found = backward_data(taken.graphs[0], records)
    predicated = taken.graphs[0].stage("predicated")
    assert found is not None
    assert predicated is not None
    assert predicated.conditions == Diagram(tuple(map(tuple, found["rows"])), tuple(found["roots"]))
    columns = found["nodes"]
    assert {len(column) for column in columns.values()} == {len(columns["name"])}
    by_region = [0] * len(found["regions"])
    places = {region["number"]: place for place, region in enumerate(found["regions"])}
    for region, flops in zip(columns["region"], columns["flops"], strict=True):
        if region is not None:
            by_region[places[region]] += flops
    assert by_region == [region["flops"] for region in found["regions"]]
    assert all(source < node for node, reads in enumerate(columns["reads"]) for source in reads)


def test_a_sum_of_gradients_stands_where_it_adds_up() -> None:
    inner = [node("q", "mm", "x", module="m.layers.1.attn.q"), node("k", "mm", "x", module="m.layers.1.attn.k")]
    outer = [node("norm", "mul", "x", module="m.norm"), node("both", "add", "norm", "all")]
    nodes = [node("x", "x"), *inner, node("all", "add", "q", "k"), *outer]
    records = Records()
    graph = whole([StageRecord("backward", tuple(nodes))]).graphs[0]
    found = backward_data(graph, records)
    assert found is not None
    modules = [records.texts.values[place] for place in found["nodes"]["module"]]
    assert modules == ["m.layers.1.attn.q", "m.layers.1.attn.k", "m.layers.1.attn", "m.norm", "m.layers.1"]


def test_a_run_is_rows_without_what_is_no_number(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, [("a", math.nan, 0.1, True), ("b", 0.123456, 0.1, False)], grad_norm=1.0, backward_seconds=0.01)
    log.step(1, [("a", 0.5, 0.1, True), ("b", math.nan, 0.1, True)], grad_norm=1.0, backward_seconds=0.01)
    log.note(1, {"loss": 2.5})
    log.close()
    found = timeline_data(read_log(tmp_path / "log.jsonl"))
    assert found["sites"] == ["a", "b"]
    assert found["edges"] == [-0.5, 0.5, 1.5]
    assert found["ratio"] == [[None, 0.5], [0.1235, None]]
    assert found["shut"] == ["00", "10"]
    assert found["skipped"] == [0.0, 0.5]
    assert found["last"] == [0.5, 0.1235]
    assert found["losses"] == [[1], [2.5]]
