"""Adapters with dropout: the mask that the forward drew is the one that the backward uses, gated or not."""

from __future__ import annotations

import copy
import math

import models
import oracle
import pytest
import torch

import skiplora_fx


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_gradients_equal_eager_detach(scope: str) -> None:
    model = models.with_lora(models.llama(2), dropout=0.5).train()
    eager, batch = copy.deepcopy(model), models.tokens()
    # With this option Inductor draws the random numbers that eager draws.
    options = {"fallback_random": True, "scope": scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
    model.compile(backend="skiplora", options=options)
    model(**batch).loss.backward()
    names = [site.name for site in skiplora_fx.sites(model)]
    assert len(names) == 4
    for shut in (set(), {names[0]}, {names[1], names[2]}, set(names[:3])):
        for name in names:
            skiplora_fx.set_threshold(model, math.inf if name in shut else 0.0, name)
        torch.manual_seed(1)
        found = oracle.gradients(model, lambda: model(**batch).loss)
        torch.manual_seed(1)
        with oracle.detached(eager, scope, {name: name not in shut for name in names}):
            wanted = oracle.gradients(eager, lambda: eager(**batch).loss)
        for name, want in wanted.items():
            torch.testing.assert_close(found[name], want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
