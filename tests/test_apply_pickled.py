"""What ``apply`` returns goes through ``torch.save`` and ``pickle``, and still gates."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_modules import batch
from test_apply import AT_ONCE, GRAPHS, Stack, gradients, set_mask
from torch import nn

import skiplora_fx


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("travel", [saved_and_loaded, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("kind", ["symbolic_trace", "make_fx", "make_fx, parameters lifted"])
def test_it_still_gates(kind: str, scope: str, travel: Callable[[Any], Any]) -> None:
    model, x = Stack(scope), batch().double()
    gated = GRAPHS[kind](model, x, {"scope": scope, "threshold": 0.0, **AT_ONCE})
    found = travel(gated)
    owner: nn.Module = found
    if kind == "make_fx, parameters lifted":
        (owner,) = found.parameters_of
    for one in (gated, found):
        one(x)  # only a call tells which parameters a lifted graph trains
        set_mask(one, (1,))
    reached, wanted = gradients(found, owner, x), gradients(gated, model, x)
    torch.testing.assert_close(reached[0], wanted[0])
    missing = sum(gradient is None for gradient in reached[1].values())
    assert missing == sum(gradient is None for gradient in wanted[1].values()) > 1
    assert [site.skipped for site in skiplora_fx.sites(found)] == [False, True, False]


def test_a_copy_of_a_copy() -> None:
    gated = skiplora_fx.apply(torch.fx.symbolic_trace(Stack()), batch().double(), threshold=math.inf, **AT_ONCE)
    again = saved_and_loaded(saved_and_loaded(gated))
    again(batch().double()).sum().backward()
    assert all(site.skipped for site in skiplora_fx.sites(again))
