"""Other viewers get whole graphs, and names in them cannot break out of their quotes."""

from __future__ import annotations

import re
from dataclasses import replace

from lora_modules import batch, peft
from snapshots import node, snapshot, stage, whole

from skiplora_fx.graphdiff import compare, stages_of
from skiplora_fx.graphdiff.exports import dot, model_explorer, model_explorer_mapping, model_explorer_node_data


def test_dot_has_one_cluster_for_each_shape() -> None:
    gated, *_ = stages_of(snapshot(peft(), batch())).transitions
    text = dot(gated)
    assert text.count("subgraph cluster_") == len(gated.shapes)
    assert text.count("{") == text.count("}")
    declared = set(re.findall(r"^    (n\d+_\d+) \[", text, re.M))
    edges = re.findall(r"^    (n\d+_\d+) -> (n\d+_\d+)", text, re.M)
    assert edges
    assert {end for edge in edges for end in edge} <= declared


def test_dot_tells_edges_that_are_gone_from_new_ones() -> None:
    nodes = [node("x", "x"), node("y", "y")]
    before, after = (stage(*nodes, node("sin", "sin", read), node("end", "exp", "sin")) for read in "xy")
    (transition,) = compare(whole([before]), whole([after])).transitions
    text = dot(transition)
    assert text.count("style=dashed") == text.count('color="green"') == 1


def test_names_stay_in_their_quotes() -> None:
    evil = 'a"]; evil [label="\\\n\x1b'
    before, after = (stage(node("x", "x"), node("end", target, "x")) for target in ("sin", evil))
    (transition,) = compare(whole([before]), whole([after])).transitions
    for line in dot(transition).splitlines():
        unquoted = re.sub(r'"(\\.|[^"\\])*"', "", line)
        assert '"' not in unquoted
        assert "evil" not in unquoted
        assert line.isprintable()


def test_model_explorer_gets_every_node_and_edge() -> None:
    (graph,) = snapshot(peft(), batch()).graphs
    for one in graph.stages:
        ((label, (exported,)),) = ((part["label"], part["graphs"]) for part in model_explorer(one))
        assert label == one.name
        names = [part["id"] for part in exported["nodes"]]
        assert names == list(one.by_name)
        edges = [edge["sourceNodeId"] for part in exported["nodes"] for edge in part["incomingEdges"]]
        assert edges == [name for part in one.nodes for name in part.inputs]


def test_model_explorer_gets_the_alignment() -> None:
    before = stage(node("x", "x"), node("sin_1", "sin", "x"), node("out", "output", "sin_1"))
    renamed = replace(node("sin_2", "sin", "x"))
    after = stage(node("x", "x"), renamed, node("cos", "cos", "sin_2"), node("out", "output", "cos"))
    (transition,) = compare(whole([before]), whole([after])).transitions
    assert model_explorer_mapping(transition)["mapping"] == {"x": "x", "sin_1": "sin_2", "out": "out"}
    results = model_explorer_node_data(transition)["captured"]["results"]
    assert {name: result["value"] for name, result in results.items()} == {
        "x": "same",
        "sin_2": "same",
        "cos": "added",
        "out": "rewired",
    }
