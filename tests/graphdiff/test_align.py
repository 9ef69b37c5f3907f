"""What was edited is what is reported, whatever nodes are called."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal

import models
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lora_modules import batch, peft
from snapshots import node, snapshot, stage

from skiplora_fx.graphdiff.align import Alignment, align
from skiplora_fx.graphdiff.records import Diagram, NodeRecord, StageRecord

UNARY, BINARY = ("sin", "cos", "exp"), ("add", "mul")
KINDS = ("number", "insert", "remove", "rewire")


@st.composite
def graphs(draw: st.DrawFn, distinct: bool = False) -> StageRecord:
    """Draw a graph in which everything is used; ``distinct``: each node has a number of its own."""
    names = ["x_1", "x_2"]
    nodes = [node(name, name) for name in names]
    for step in range(draw(st.integers(1, 14))):
        number = float(step) if distinct else draw(st.sampled_from([None, 2.0]))
        target = draw(st.sampled_from(UNARY + BINARY))
        reads = [draw(st.sampled_from(names[-4:])) for _ in range(1 if target in UNARY else 2)]
        module = f"layers.{step // 5}"
        names.append(f"{target}_{step}")
        nodes.append(node(names[-1], target, *reads, number=number, module=module))
    read = {name for one in nodes for name in one.inputs}
    return stage(*nodes, node("output", "output", *(name for name in names if name not in read)))


def renamed(before: StageRecord, names: dict[str, str]) -> StageRecord:
    """Return a stage with other names; inputs are called as their names say."""

    def rename(argument: Any) -> Any:
        if isinstance(argument, list):
            return [rename(part) for part in argument]
        return {"node": names[argument["node"]]} if isinstance(argument, dict) else argument

    nodes = [
        replace(
            one,
            name=names[one.name],
            args=rename(one.args),
            target=names[one.name] if one.op == "placeholder" else one.target,
        )
        for one in before.nodes
    ]
    return stage(*nodes)


def renumbered(before: StageRecord, by: int = 100) -> StageRecord:
    """Return a stage in which each name has another number."""
    return renamed(
        before, {one.name: f"{one.name.partition('_')[0]}_{place + by}" for place, one in enumerate(before.nodes)}
    )


def changes(found: Alignment) -> dict[str, list[str]]:
    """Return the sorted names of the nodes of each change: as they are after, or were."""
    told: dict[str, list[str]] = {}
    for pair in found.pairs:
        if pair.change != "same":
            told.setdefault(pair.change, []).append(pair.node.name)
    return {change: sorted(names) for change, names in told.items()}


@settings(max_examples=150)
@given(graphs())
def test_a_renumbering_alone_is_no_difference(before: StageRecord) -> None:
    assert changes(align(before, renumbered(before), "structure")) == {}


@settings(max_examples=100)
@given(graphs(), st.integers(0, 10**6))
def test_another_order_alone_is_no_difference(before: StageRecord, seed: int) -> None:
    assert changes(align(before, reordered(renumbered(before), seed), "structure")) == {}


def reordered(before: StageRecord, seed: int) -> StageRecord:
    """Return a stage whose nodes stand in another order in which each follows what it reads."""
    choose, placed = random.Random(seed), [one for one in before.nodes if one.op == "placeholder"]
    waiting = [one for one in before.nodes if one.op not in ("placeholder", "output")]
    while waiting:
        there = {one.name for one in placed}
        ready = [one for one in waiting if set(one.inputs) <= there]
        placed.append(choose.choice(ready))
        waiting.remove(placed[-1])
    return stage(*placed, before.nodes[-1])


@dataclass(frozen=True)
class Edit:
    """One edit of a graph: which kind, and the name of the node at which it is made."""

    kind: Literal["number", "insert", "remove", "rewire"]
    name: str

    def touched(self, before: StageRecord) -> set[str]:
        """Return the names of the nodes that are edited, read anew, or told."""
        readers = _readers(before, self.name)
        others = {
            "number": [],
            "insert": readers,
            "remove": [before.by_name[self.name].inputs[0], *readers],
            "rewire": [_preceding(before, self.name)],
        }
        return {self.name, *others[self.kind]}

    def made(self, before: StageRecord) -> tuple[StageRecord, dict[str, list[str]]]:
        """Return the stage with the edit made, and the changes that are to be told."""
        old, readers = before.by_name[self.name], _readers(before, self.name)
        if self.kind == "number":
            other = replace(old, args=[*old.args[:-1], -1.0])
            return _replacing(before, old, other), {"changed": [old.name]}
        if self.kind == "insert":
            new = node(f"new_{old.name}", "tanh", old.name, number=99.0, module=old.module)
            after = stage(*(_reading(one, old.name, new.name) for one in before.nodes))
            return _replacing(after, old, old, new), {"added": [new.name], "rewired": readers}
        if self.kind == "remove":
            after = stage(*(_reading(one, old.name, old.inputs[0]) for one in before.nodes))
            return _replacing(after, old), {"removed": [old.name], "rewired": readers}
        other = replace(old, args=[{"node": _preceding(before, old.name)}, *old.args[1:]])
        return _replacing(before, old, other), {"rewired": [old.name]}


@st.composite
def edits(draw: st.DrawFn, before: StageRecord, kinds: tuple[str, ...] = KINDS) -> list[Edit]:
    """Draw edits that do not touch each other, each of another operator or in another module."""
    inner = [one.name for one in before.nodes if one.op == "call_function"]
    chosen: list[Edit] = []
    touched: set[Hashable] = set()
    for edit in draw(st.lists(st.builds(Edit, st.sampled_from(kinds), st.sampled_from(inner)), min_size=2, max_size=8)):
        old = before.by_name[edit.name]
        more = {*edit.touched(before), (old.module, old.target)}
        nothing = edit.kind == "rewire" and _preceding(before, edit.name) == old.inputs[0]
        if not nothing and touched.isdisjoint(more):
            chosen.append(edit)
            touched |= more
    assume(chosen)
    return chosen


def edited(before: StageRecord, made: list[Edit]) -> tuple[StageRecord, dict[str, list[str]]]:
    """Return a stage with all the edits made, and the changes that are to be told."""
    after, expected = before, defaultdict[str, list[str]](list)
    for edit in made:
        after, told = edit.made(after)
        for change, names in told.items():
            expected[change] += names
    return after, {change: sorted(names) for change, names in expected.items() if names}


def _preceding(before: StageRecord, name: str) -> str:
    names = list(before.by_name)
    return names[names.index(name) - 1]


def _replacing(before: StageRecord, old: NodeRecord, *new: NodeRecord) -> StageRecord:
    return stage(*(part for one in before.nodes for part in (new if one.name == old.name else [one])))


def _readers(before: StageRecord, name: str) -> list[str]:
    return [one.name for one in before.nodes if name in one.inputs]


def _reading(one: NodeRecord, old: str, new: str) -> NodeRecord:
    return replace(one, args=[{"node": new} if argument == {"node": old} else argument for argument in one.args])


@settings(max_examples=150)
@given(graphs(distinct=True), st.data())
def test_edits_are_told_by_names(before: StageRecord, data: st.DataObject) -> None:
    after, expected = edited(before, data.draw(edits(before)))
    assert changes(align(before, after, "name")) == expected


@settings(max_examples=300)
@given(graphs(distinct=True), st.data())
def test_edits_are_told_across_runs(before: StageRecord, data: st.DataObject) -> None:
    after, expected = edited(before, data.draw(edits(before)))
    names = {one.name: f"{one.name.partition('_')[0]}_{spot + 100}" for spot, one in enumerate(after.nodes)}
    told = {key: sorted(one if key == "removed" else names[one] for one in listed) for key, listed in expected.items()}
    assert changes(align(before, renamed(after, names), "structure")) == told


@settings(max_examples=150)
@given(graphs(), st.data())
def test_among_twins_no_more_is_told_than_was_edited(before: StageRecord, data: st.DataObject) -> None:
    made = data.draw(edits(before, ("insert", "remove")))
    after, _ = edited(before, made)
    found = align(before, renumbered(after), "structure").counts
    grown = len(after.nodes) - len(before.nodes)
    assert found["added"] - found["removed"] == grown
    assert found["added"] + found["removed"] == len(made)


@given(graphs(), graphs())
def test_each_node_is_in_one_pair(before: StageRecord, after: StageRecord) -> None:
    found = align(before, after, "structure")
    assert sorted(pair.before.name for pair in found.pairs if pair.before) == sorted(before.by_name)
    assert [pair.after.name for pair in found.pairs if pair.after] == [one.name for one in after.nodes]


def test_operands_that_change_places_are_rewired() -> None:
    before = stage(
        node("x_1", "x_1"), node("x_2", "x_2"), node("sub", "sub", "x_1", "x_2"), node("output", "output", "sub")
    )
    after = stage(
        node("x_3", "x_3"), node("x_4", "x_4"), node("sub", "sub", "x_4", "x_3"), node("output", "output", "sub")
    )
    assert changes(align(before, after, "structure")) == {"rewired": ["sub"]}


@pytest.mark.parametrize(("other", "expected"), [((0, 0, 1), {}), ((1, 0, 1), {"changed": ["sin"]})])
def test_conditions_are_compared_by_what_they_mean(other: Any, expected: Any) -> None:
    def with_conditions(*rows: tuple[int, int, int], root: int) -> StageRecord:
        nodes = (node("x", "x"), replace(node("sin", "sin", "x"), condition=0), node("output", "output", "sin"))
        return StageRecord("backward", nodes, Diagram(rows, (root,)))

    before = with_conditions((0, 0, 1), root=2)
    after = with_conditions((2, 0, 1), other, root=3)
    found = align(before, after, "structure")
    assert changes(found) == expected
    assert {pair.fields for pair in found.pairs if pair.fields} <= {("condition",)}


def test_the_passes_change_what_they_say() -> None:
    (graph,) = snapshot(peft(), batch()).graphs
    stages = {one.name: one for one in graph.stages}
    gated = align(stages["captured"], stages["gated"], "name")
    assert gated.counts["removed"] == 0
    rewired = [pair.node.name for pair in gated.pairs if pair.change == "rewired"]
    assert rewired == [graph.sites[0].join, "output"]
    predicated = align(stages["backward"], stages["predicated"], "name")
    assert [pair.node.target for pair in predicated.pairs if pair.change == "removed"] == ["skiplora.gate_backward"]
    assert {pair.node.target for pair in predicated.pairs if pair.change == "added"} == {"skiplora.evaluate_conditions"}


@pytest.mark.parametrize("layers", [1, 3])
def test_the_same_model_twice_is_the_same_across_runs(layers: int) -> None:
    one, other = (snapshot(models.with_lora(models.llama(layers)).train(), kwargs=models.tokens()) for _ in range(2))
    for before, after in zip(one.graphs[0].stages, other.graphs[0].stages, strict=True):
        assert not align(before, after, "structure").changed


def test_a_layer_more_is_added_where_it_is() -> None:
    one, other = (snapshot(models.with_lora(models.llama(number)).train(), kwargs=models.tokens()) for number in (2, 3))
    before, after = one.graphs[0].stage("captured"), other.graphs[0].stage("captured")
    assert before is not None
    assert after is not None
    found = align(before, after, "structure")
    assert found.counts["removed"] == found.counts["changed"] == 0
    assert found.counts["added"] == len(after.nodes) - len(before.nodes)
    assert all(".layers.2" in pair.node.module for pair in found.pairs if pair.change == "added")
