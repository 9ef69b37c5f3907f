"""Thresholds go in, by number and by glob, and take effect without a recompile."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import Tensor, nn
from two_layers import Broken, Two, compiled, skipped, step

import skiplora_fx
from skiplora_fx import ConfigError, UsageError
from skiplora_fx._torch_compat import dynamo_counters


def test_a_new_threshold_holds_from_the_next_step_on_without_a_recompile() -> None:
    model = compiled()
    step(model)
    graphs = dynamo_counters["stats"]["unique_graphs"]
    for name, expected in (("upper", [True, False]), ("lower", [False, False])):
        skiplora_fx.set_threshold(model, 0.0, sites=name)
        step(model)
        assert skipped(model) == expected
    assert dynamo_counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("threshold", [-1, math.nan, "0.1"])
def test_a_bad_threshold_changes_nothing(threshold: Any) -> None:
    model = compiled()
    step(model)
    with pytest.raises(ConfigError, match="threshold must be a number >= 0"):
        skiplora_fx.set_threshold(model, threshold)
    assert [site.threshold for site in skiplora_fx.sites(model)] == [math.inf, math.inf]


def test_a_glob_that_matches_no_site_names_those_there_are() -> None:
    model = compiled()
    step(model)
    with pytest.raises(ConfigError, match=r"'\*.nowhere'. The sites are:\n  lower\n  upper"):
        skiplora_fx.set_threshold(model, 0.0, sites="*.nowhere")


def test_before_any_forward_no_site_is_known() -> None:
    model = compiled()
    assert skiplora_fx.sites(model) == []
    with pytest.raises(UsageError, match="no gated adapter is known yet"):
        skiplora_fx.set_threshold(model, 0.0)


def test_thresholds_by_glob_leave_the_other_sites_open() -> None:
    model = compiled(threshold={"low*": math.inf})
    step(model)
    assert [site.threshold for site in skiplora_fx.sites(model)] == [math.inf, 0.0]
    assert skipped(model) == [True, False]


class Stack(nn.Module):
    """Two layers that are compiled one by one."""

    def __init__(self, thresholds: dict[str, float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Two(), Two()])
        for layer in self.layers:
            compiled(layer, threshold=thresholds)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_globs_name_sites_of_the_whole_model_where_layers_are_compiled_one_by_one() -> None:
    model = Stack({"layers.0.*": math.inf, "layers.1.upper": math.inf, "*": 0.0})
    step(model)
    assert [(site.name, site.skipped) for site in skiplora_fx.sites(model)] == [
        ("layers.0.lower", True),
        ("layers.0.upper", True),
        ("layers.1.lower", False),
        ("layers.1.upper", True),
    ]


def test_a_mistyped_glob_is_reported_where_layers_are_compiled_one_by_one() -> None:
    with pytest.raises(Exception, match=r"no site matches the glob 'layer\.0\.\*'"):
        step(Stack({"layer.0.*": math.inf}))


def test_a_mistyped_glob_is_reported_where_a_break_leaves_several_graphs() -> None:
    with pytest.raises(Exception, match="no site matches the glob 'uper'"):
        step(compiled(Broken(), threshold={"uper": 1.0, "lower": 1.0}))
