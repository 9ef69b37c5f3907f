"""What would be skipped is what is skipped: the compiled conditions, evaluated in plain Python."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from aten import CountCalls
from capture import QuickBackend
from hypothesis import given
from hypothesis import strategies as st
from lora_modules import batch, peft
from snapshots import snapshot
from torch import nn

import skiplora_fx
from skiplora_fx import UsageError
from skiplora_fx.gate import EVALUATE_CONDITIONS
from skiplora_fx.graphdiff.stages import diagram
from skiplora_fx.graphdiff.what_if import site_names, what_if

MASKS = (
    [True, True, True, True],
    [False, False, True, True],
    [True, True, False, False],
    [False, True, False, True],
    [True, False, False, False],
    [False, False, False, False],
)


def executed(backend: QuickBackend, model: nn.Module, compiled: Any, opens: list[bool]) -> int:
    """Return the FLOPs that the predicated backward really runs."""
    backend.only.thresholds.copy_(torch.tensor([0.0 if open else float("inf") for open in opens]))
    model.zero_grad(set_to_none=True)
    loss = compiled(**models.tokens()).loss
    with CountCalls() as counted:
        loss.backward()
    return counted.flops


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_the_flops_that_remain_are_those_that_run(scope: str) -> None:
    model = models.with_lora(models.llama(2, attn_implementation="eager"), models.QV).train()
    taken = snapshot(model, kwargs=models.tokens(), scope=scope)
    backend = QuickBackend(scope)
    compiled = torch.compile(model, backend=backend)
    compiled(**models.tokens()).loss.backward()
    for mask in MASKS:
        assert what_if(taken, mask).flops == executed(backend, model, compiled, mask)


def test_the_shares_are_those_of_explain() -> None:
    model, inputs = models.with_lora(models.llama(2), models.ALL_LINEAR).train(), models.tokens()
    taken, found = snapshot(model, kwargs=inputs), skiplora_fx.explain(model, **inputs)
    sites = len(site_names(taken))
    assert what_if(taken, [True] * sites).flops == found.backward
    shares = {
        "every adapter skipped": [False] * sites,
        "the first half skipped": [site >= sites // 2 for site in range(sites)],
        "the last half skipped": [site < sites // 2 for site in range(sites)],
        "every other one skipped": [site % 2 == 1 for site in range(sites)],
    }
    assert {case: 1 - what_if(taken, mask).share for case, mask in shares.items()} == pytest.approx(found.masks)


def test_regions_that_run_are_said_one_by_one() -> None:
    taken = snapshot(peft(), batch())
    (opened,), (shut,) = what_if(taken, [True]).graphs, what_if(taken, [False]).graphs
    assert all(opened.regions.values())
    assert not any(shut.regions.values())
    assert (opened.flops, shut.flops) == (opened.total, 0)


def test_decisions_by_globs() -> None:
    taken = snapshot(peft(targets=("first", "second")), batch())
    by_glob, by_place = what_if(taken, {"*.first": False}), what_if(taken, [False, True])
    assert by_glob == by_place
    assert 0 < by_glob.share < 1


def test_decisions_that_fit_no_site_are_an_error() -> None:
    taken = snapshot(peft(), batch())
    with pytest.raises(UsageError, match=r"'third' matches no site; there are: base_model\.model\.first"):
        what_if(taken, {"third": False})
    with pytest.raises(UsageError, match="2 decisions, but 1 sites"):
        what_if(taken, [True, False])


def test_without_predication_everything_always_runs() -> None:
    taken = snapshot(peft(), batch(), disable_passes=["predicate_backward"])
    assert what_if(taken, [False]).share == 1.0


@given(st.data())
def test_diagrams_mean_what_the_operator_computes(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 6))
    table = [
        number
        for row in range(rows)
        for number in (data.draw(st.integers(0, 2)), *(data.draw(st.integers(0, row + 1)) for _ in range(2)))
    ]
    roots = data.draw(st.lists(st.integers(0, rows + 1), min_size=1, max_size=4))
    texts = " ".join(map(str, table)), " ".join(map(str, roots))
    opens = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    assert diagram(*texts).under(opens) == EVALUATE_CONDITIONS(torch.tensor(opens), *texts).tolist()
