"""Two runs whose sites are not the same: each is called by its name, whatever its number is in either."""

from __future__ import annotations

import io
import json

import pytest
from lora_modules import batch, peft
from rich.console import Console
from snapshots import snapshot

from skiplora_fx.errors import UsageError
from skiplora_fx.graphdiff import GraphDiff, compare
from skiplora_fx.graphdiff.joint_sites import joint_sites
from skiplora_fx.graphdiff.page_data import page_data
from skiplora_fx.graphdiff.records import SiteRecord, Snapshot
from skiplora_fx.graphdiff.terminal import print_diff

BOTH, LATER = ("first", "second"), ("second",)


@pytest.fixture(scope="module")
def runs() -> tuple[Snapshot, Snapshot]:
    return snapshot(peft(targets=BOTH), batch()), snapshot(peft(targets=LATER), batch())


def sites_of_hunks(found: GraphDiff) -> set[str]:
    return {
        transition.sites[site].name.rpartition(".")[2]
        for transition in found.transitions
        for hunk in transition.hunks
        for site in hunk.sites
    }


def site(index: int, name: str, adapter: str = "default") -> SiteRecord:
    return SiteRecord(index, name, adapter, "linear→linear", 4, "add", "h", "delta", ("a", "b"))


def test_what_is_gone_comes_after_what_is_there() -> None:
    before = [site(0, "q"), site(1, "v"), site(2, "v"), site(3, "v", "other")]
    joint, numbers = joint_sites(before, [site(0, "v"), site(1, "k"), site(2, "v")])
    assert [(one.index, one.name, one.adapter) for one in joint] == [
        (0, "v", "default"),
        (1, "k", "default"),
        (2, "v", "default"),
        (3, "q", "default"),
        (4, "v", "other"),
    ]
    assert numbers == {0: 3, 1: 0, 2: 2, 3: 4}


@pytest.mark.parametrize("backwards", [False, True])
def test_only_the_adapter_that_came_or_went_differs(runs: tuple[Snapshot, Snapshot], backwards: bool) -> None:
    found = compare(*(reversed(runs) if backwards else runs))
    captured = found.only(stage="captured")
    assert sites_of_hunks(captured) == {"first"}
    out = io.StringIO()
    print_diff(captured, Console(file=out, width=200))
    heads = [line for line in out.getvalue().splitlines() if line.startswith("@@") and "base_model" in line]
    assert heads
    assert all("first" in line for line in heads)
    assert all("base_model.model.first" in shown["sites"] for shown in page_data(found)["transitions"])


@pytest.mark.parametrize("backwards", [False, True])
def test_it_can_be_looked_for(runs: tuple[Snapshot, Snapshot], backwards: bool) -> None:
    found = compare(*(reversed(runs) if backwards else runs))
    assert found.only(stage="captured", site="*.first").changed
    same = found.only(stage="captured", site="*.second")
    assert (same.changed, str(same), len(same.transitions)) == (False, "", 1)
    shapes = [shape for one in json.loads(same.to_json())["transitions"] for shape in one["shapes"]]
    assert shapes == []
    with pytest.raises(UsageError, match="'third' matches no site"):
        found.only(site="third")


def test_conditions_are_those_of_the_same_adapters(runs: tuple[Snapshot, Snapshot]) -> None:
    """In one run the upper adapter is site 1, in the other site 0: what runs under it alone runs so in both."""
    (backward,) = compare(*runs).only(stage="backward").transitions
    upper = [pair for pair in backward.alignment.pairs if pair.before and pair.after and "second" in pair.node.module]
    assert upper
    assert not [pair for pair in upper if "condition" in pair.fields]


def test_conditions_of_other_adapters_are_not_the_same() -> None:
    one, other = (snapshot(peft(targets=(name,)), batch()) for name in BOTH)
    assert compare(one, other).changed
