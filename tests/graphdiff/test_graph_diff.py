"""``diff`` compares the stages of one run, or two runs, and says so in text and in JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from lora_modules import Around, Linear, batch, peft
from snapshots import node, snapshot, stage, whole
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx import ConfigError, UsageError
from skiplora_fx.graphdiff import compare, stages_of
from skiplora_fx.graphdiff.files import parse_snapshot


def test_the_comparisons_of_one_run() -> None:
    found = skiplora_fx.diff(peft(), batch())
    assert [transition.labels for transition in found.transitions] == [
        ("graph_0/captured", "graph_0/gated"),
        ("graph_0/joint", "graph_0/folded"),
        ("graph_0/backward", "graph_0/predicated"),
    ]
    assert found.changed
    assert found.transitions[0].operators["skiplora.gate"] == (0, 1)
    assert found.what_if([False]).share == 0


def test_graphs_and_keywords() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear()

        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            return self.layer(x) * scale

    assert skiplora_fx.diff(ByKeyword(), batch(), kwargs={"scale": 3.0}).changed
    traced = torch.fx.symbolic_trace(Around(lambda layer, x: layer(x).sin()))
    assert [site.name for site in skiplora_fx.diff(traced, batch()).snapshots[0].graphs[0].sites] == ["layer"]


def test_nothing_gated_is_nothing_changed() -> None:
    found = skiplora_fx.diff(nn.Linear(3, 3), torch.randn(2, 3))
    assert not found.changed
    assert (found.transitions, str(found)) == ((), "")


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="scope"):
        skiplora_fx.diff(peft(), batch(), scope="all")
    with pytest.raises(UsageError, match="Linear does not run on these inputs"):
        skiplora_fx.diff(nn.Linear(3, 3), torch.randn(2, 4))


def test_text_is_a_unified_diff() -> None:
    lines = str(skiplora_fx.diff(peft(), batch())).splitlines()
    assert lines[:2] == ["--- graph_0/captured", "+++ graph_0/gated"]
    assert any(line.startswith("+gate_default = skiplora.gate(") for line in lines)
    assert {line[0] for line in lines} == {"-", "+", "@", " "}


def test_two_runs_of_one_model_are_the_same() -> None:
    found = compare(snapshot(peft(), batch()), snapshot(peft(), batch()))
    assert not found.changed
    assert str(found) == ""
    assert {transition.alignment.method for transition in found.transitions} == {"structure"}


def test_two_scopes_differ() -> None:
    found = compare(snapshot(peft(), batch()), snapshot(peft(), batch(), scope="layer"))
    first, *_ = found.only(changed=True).transitions
    assert first.labels == ("graph_0/before/gated", "graph_0/after/gated")


def test_what_only_one_run_has_is_compared_with_nothing() -> None:
    one = stage(node("x", "x"), node("sin", "sin", "x"))
    found = compare(whole([one]), whole([one, replace(one, name="joint")]))
    assert [transition.changed for transition in found.transitions] == [False, True]
    assert found.transitions[1].alignment.counts == {"added": 2}


def test_a_part_of_it() -> None:
    found = skiplora_fx.diff(peft(targets=("first", "second")), batch())
    (transition,) = found.only(stage="gated", site="*.second").transitions
    assert transition.labels[1] == "graph_0/gated"
    text = found.only(stage="gated", site="*.second").text()
    assert "gate_default_1 = " in text
    assert "gate_default = " not in text
    with pytest.raises(UsageError, match="'forward' is compared only between two snapshots"):
        found.only(stage="forward")
    with pytest.raises(UsageError, match="no stage 'gate'; the stages are captured, gated"):
        found.only(stage="gate")
    with pytest.raises(UsageError, match=r"'third' matches no site; there are: base_model\.model\.first"):
        found.only(site="third")


def test_json_holds_the_snapshot_and_what_differs() -> None:
    found = skiplora_fx.diff(peft(), batch())
    data = json.loads(found.to_json())
    assert stages_of(parse_snapshot(data)).to_json() == found.to_json()
    gated = data["transitions"][0]
    assert (gated["method"], gated["stages"]) == ("name", ["captured", "gated"])
    kinds = [change for _, _, change, _ in gated["pairs"]]
    assert {change: kinds.count(change) for change in set(kinds)} == gated["counts"]
    held = [place for shape in gated["shapes"] for hunk in shape for place in hunk["pairs"]]
    assert {place for place in range(len(kinds)) if kinds[place] != "same"} <= set(held)


def test_two_snapshots_in_a_file_are_no_snapshot() -> None:
    one = whole([stage(node("x", "x"))])
    with pytest.raises(UsageError, match="holds 2 snapshots"):
        parse_snapshot(json.loads(compare(one, one).to_json()))
