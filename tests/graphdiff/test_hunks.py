"""Hunks are connected, and those of one shape are told once."""

from __future__ import annotations

import models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import node, snapshot, stage
from test_align import edited, edits, graphs

from skiplora_fx.graphdiff.align import align
from skiplora_fx.graphdiff.graph_diff import stages_of
from skiplora_fx.graphdiff.hunks import find_hunks, fold
from skiplora_fx.graphdiff.records import StageRecord


@settings(max_examples=60)
@given(graphs(distinct=True), st.data())
def test_each_changed_node_is_in_one_hunk(before: StageRecord, data: st.DataObject) -> None:
    after, _ = edited(before, data.draw(edits(before)))
    found = align(before, after, "name")
    held = [pair for hunk in find_hunks(found) for pair in hunk.changed]
    assert sorted(map(id, held)) == sorted(id(pair) for pair in found.pairs if pair.change != "same")


def test_a_hunk_is_what_is_connected_with_its_neighbours() -> None:
    inputs = [node("x", "x"), node("y", "y")]
    ends = [node("end", "exp", "mid"), node("output", "output", "end")]
    before = stage(*inputs, node("mid", "cos", "x"), *ends)
    after = stage(*inputs, node("a", "sin", "x"), node("b", "sin", "a"), node("mid", "cos", "b"), *ends)
    (hunk,) = find_hunks(align(before, after, "name"))
    assert [pair.node.name for pair in hunk.changed] == ["a", "b", "mid"]
    assert [pair.node.name for pair in hunk.pairs] == ["x", "a", "b", "mid", "end"]


def test_hunks_of_one_shape_are_folded_whatever_their_numbers() -> None:
    before = stage(node("x", "x"), *(node(f"n{at}", "cos", "x", number=float(at)) for at in range(4)))
    added = [node(f"m{at}", "sin", f"n{at}", number=float(at)) for at in range(3)]
    after = stage(*before.nodes, *added, node("other", "tan", "n3"))
    shapes = fold(find_hunks(align(before, after, "name")))
    assert [(len(shape.hunks), shape.example.changed[0].node.name) for shape in shapes] == [(3, "m0"), (1, "other")]


@pytest.mark.parametrize("targets", [models.QV, models.ALL_LINEAR])
def test_the_gates_of_a_model_are_one_shape(targets: object) -> None:
    taken = snapshot(models.with_lora(models.llama(2), targets).train(), kwargs=models.tokens())
    gated, folded, _ = stages_of(taken).transitions
    sites = len(taken.graphs[0].sites)
    for transition in (gated, folded):
        most = max(transition.shapes, key=lambda shape: len(shape.hunks) * len(shape.example.changed))
        assert len(most.hunks) == sites
        assert [hunk.sites for hunk in most.hunks] == [(site,) for site in range(sites)]


def test_regions_keep_hunks_apart() -> None:
    taken = snapshot(models.with_lora(models.llama(2)).train(), kwargs=models.tokens())
    *_, predicated = stages_of(taken).transitions
    assert all(len({pair.node.region for pair in hunk.changed}) == 1 for hunk in predicated.hunks)
