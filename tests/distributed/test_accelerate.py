"""Accelerate without a Trainer: what ``prepare`` returns trains in two processes as one process would."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from blocks import MASKS, SITES, Given, adapted, batch, options, sgd
from oracle import Gradients, detached, gradients
from processes import run
from torch import Tensor, nn
from torch.utils.data import DataLoader

import skiplora_fx

pytestmark = pytest.mark.xdist_group("accelerate")  # all tests look at one run

RANKS, ACCUMULATED, EXAMPLES = 2, 2, 3
"""Examples are those of a micro-batch."""


def _prepared(steps: int, rate: float, **chosen: Any) -> tuple[Accelerator, nn.Module, Any, DataLoader[Tensor], Any]:
    torch._dynamo.reset()
    model = adapted()
    model.compile(backend="skiplora", options=options(**chosen))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    examples = batch(steps * RANKS * ACCUMULATED * EXAMPLES)
    loader = DataLoader(examples * torch.linspace(1, 9, len(examples))[:, None], EXAMPLES)
    wrapped, optimizer, loader = accelerator.prepare(model, sgd(model, rate), loader)
    return accelerator, wrapped, optimizer, loader, skiplora_fx.attach(wrapped, optimizer)


def by_masks() -> list[tuple[list[Tensor], Gradients]]:
    """Return for each step this rank's micro-batches and the gradients."""
    accelerator, wrapped, optimizer, loader, _ = _prepared(len(MASKS), 0.0, policy=Given())
    found, seen = [], []
    for x in loader:
        with accelerator.accumulate(wrapped):
            seen.append(x)
            accelerator.backward(wrapped(x))
            if accelerator.sync_gradients:
                grads = {
                    n.removeprefix("module."): p.grad.clone()
                    for n, p in wrapped.named_parameters()
                    if p.grad is not None
                }
                found.append((seen, grads))
                seen = []
            optimizer.step()
            optimizer.zero_grad()
    return found


def by_thresholds() -> list[tuple[list[float], str]]:
    """Train with a threshold amid the ratios; return decisions and the whole state after each step."""
    accelerator, wrapped, optimizer, loader, attachment = _prepared(4, 1e-3, threshold=1.0)
    found = []
    for x in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(x))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            decisions = [site.controller.threshold(site) for site in attachment.sites()]
            found.append((decisions, json.dumps(attachment.state_dict())))
    return found


def train_all() -> dict[str, Any]:
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    # As accelerate launch sets them; the process group is there already, so nobody looks at the port.
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="localhost", MASTER_PORT="0")
    return {"masks": by_masks(), "thresholds": by_thresholds()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(train_all, ranks=RANKS)


def test_gradients_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["masks"] for rank in ranks)
    for mask, (own, grads), (others, same) in zip(MASKS.values(), first, second, strict=True):
        whole = torch.cat([*own, *others])
        assert len(whole) == RANKS * ACCUMULATED * EXAMPLES
        model = adapted()
        with detached(model, "adapter", dict(zip(SITES, mask, strict=True))):
            right = gradients(model, lambda model=model, whole=whole: model(whole))
        for found in (grads, same):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_states_and_decisions_are_alike_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["thresholds"] for rank in ranks)
    assert len(first) == 4
    assert first == second
    assert {decision for decisions, _ in first for decision in decisions} == {0.0, math.inf}
