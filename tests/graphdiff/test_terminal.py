"""The terminal's page says what differs, and takes nothing in a model for an instruction."""

from __future__ import annotations

import io

from lora_modules import WIDE, Linear, batch, peft
from rich.console import Console
from snapshots import node, stage, whole
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.graphdiff import GraphDiff, compare
from skiplora_fx.graphdiff.terminal import print_diff
from skiplora_fx.visible import visible


def printed(found: GraphDiff, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=color, color_system="standard" if color else None)
    print_diff(found, console)
    return out.getvalue()


def test_summary_operators_sites_and_hunks() -> None:
    text = printed(skiplora_fx.diff(peft(targets=("first", "second")), batch()))
    assert "graph_0/captured → graph_0/gated: " in text
    assert "(aligned by name)" in text
    assert any(line.split() == ["skiplora.gate", "0", "2", "+2"] for line in text.splitlines())
    assert "@@ ×2, " in text
    assert "first  r=4" in text
    assert "3 of 3 comparisons differ. With every gate shut, 0.0% of the backward's FLOPs remain." in text


def test_only_the_hunks_of_a_site() -> None:
    found = skiplora_fx.diff(peft(targets=("first", "second")), batch())
    heads = [line for line in printed(found.only(site="*.second")).splitlines() if line.startswith("@@")]
    assert heads
    assert all("base_model.model.second" in head for head in heads)


def test_what_is_not_gated_is_listed() -> None:
    text = printed(skiplora_fx.diff(peft(modules_to_save=["second"]), batch()))
    assert "Trained, but not gated: 2" in text
    assert "no join" in text


def test_colours() -> None:
    assert "\x1b[32m+ " in printed(skiplora_fx.diff(peft(), batch()), color=True)


NAME = "[red]x[/nothing] <img src=x onerror=alert(1)>"


def test_a_name_that_looks_like_markup_is_text() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(NAME, Linear())

        def forward(self, x: Tensor) -> Tensor:
            return self.get_submodule(NAME)(x)

    found = skiplora_fx.diff(Named(), batch(WIDE))
    assert NAME in [site.name for site in found.snapshots[0].graphs[0].sites]
    assert NAME in printed(found)


def test_control_characters_are_written_out() -> None:
    one, other = (whole([stage(node("x", "x"), node("evil\x1b[2J\u202e", target, "x"))]) for target in ("sin", "cos"))
    found = compare(one, other)
    for text in (printed(found), str(found)):
        assert "\\x1b[2J\\u202e" in text
        assert "\x1b" not in text


def test_what_does_not_print() -> None:
    assert visible("Δh\n\t\x00\x9b\ud800") == "Δh\\n\\t\\x00\\x9b\\ud800"
