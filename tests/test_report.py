"""The table that people read."""

from __future__ import annotations

import math
import sys

import pytest
from expecttest import assert_expected_inline
from torch import nn

import skiplora_fx
from skiplora_fx import SiteState


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[SiteState]:
    """What the model of the tests has: filled by each of them."""
    found: list[SiteState] = []
    # By its place among the modules: as an attribute of the package, ``report`` is the function.
    monkeypatch.setattr(sys.modules["skiplora_fx.report"], "sites", lambda model: found)
    return found


def test_the_table(states: list[SiteState]) -> None:
    states += [
        SiteState("layers.0.q_proj", "default", 8, 0.01234567, 0.05, True, 0.98, 40),
        SiteState("layers.0.q_proj", "second", 4, 0.5, 0.05, False, 0.0, 40),
        SiteState("layers.10.v_proj", "default", 16, math.inf, math.inf, False, 0.123, 40),
        SiteState("", "", 4, math.nan, 0.0, False, 0.0, 0),
    ]
    assert_expected_inline(
        skiplora_fx.report(nn.Module()),
        """\
site                        r    ratio    threshold  now        skipped
------------------------  ---  -------  -----------  -------  ---------
layers.0.q_proj             8  0.01235         0.05  skipped        98%
layers.0.q_proj [second]    4      0.5         0.05  open            0%
layers.10.v_proj           16      inf          inf  open           12%
(root)                      4        -            0  open            0%

1 of 4 adapters skipped in the last backward.""",
    )


def test_a_name_is_shown_as_text(states: list[SiteState]) -> None:
    states.append(SiteState("evil\x1b[2J\u202e", "\x1b[2J", 8, 0.5, 0.05, False, 0.0, 1))
    shown = skiplora_fx.report(nn.Module())
    assert "evil\\x1b[2J\\u202e [\\x1b[2J]" in shown
    assert "\x1b" not in shown


def test_without_any_site(states: list[SiteState]) -> None:
    assert "they are found at the first training forward" in skiplora_fx.report(nn.Module())
