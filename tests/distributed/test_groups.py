"""Three and four ranks: gradients are those of one process; and ranks decide with those of their group alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import MASKS, SITES, Given, adapted, batch, options, part, sgd
from oracle import Gradients, detached, gradients, ratios
from processes import run
from torch.nn.parallel import DistributedDataParallel

import skiplora_fx

pytestmark = pytest.mark.xdist_group("groups")  # all tests look at one run

EXAMPLES = 12
SCOPES = {3: "layer", 4: "adapter"}
"""Of the gates, for each number of ranks that train."""
PAIRS, STEPS = ((0, 1), (2, 3)), (2, 3)
"""The groups that train by themselves, and how often each steps."""


def by_masks(size: int) -> list[Gradients]:
    """Return the gradients under each mask if the first ``size`` ranks train; nothing on the others."""
    group = dist.new_group(range(size))
    if dist.get_rank() >= size:
        return []
    torch._dynamo.reset()
    model = adapted()
    model.compile(backend="skiplora", options=options(policy=Given(), scope=SCOPES[size]))
    wrapped = DistributedDataParallel(model, process_group=group)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer, group=group)
    found = []
    for _ in MASKS:
        optimizer.zero_grad()
        wrapped(part(batch(EXAMPLES), dist.get_rank(), size)).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return found


def in_pairs() -> list[tuple[list[float], list[float], str]]:
    """Train in two groups with a threshold amid the ratios; return ratios, decisions and the state of each step."""
    groups = [dist.new_group(pair) for pair in PAIRS]
    number = dist.get_rank() // 2
    torch._dynamo.reset()
    model = adapted()
    model.compile(backend="skiplora", options=options(threshold=1.14))
    wrapped = DistributedDataParallel(model, process_group=groups[number])
    optimizer = sgd(model, rate=1e-3)
    attachment = skiplora_fx.attach(model, optimizer, group=groups[number])
    found = []
    for _ in range(STEPS[number]):
        optimizer.zero_grad()
        wrapped(_own(dist.get_rank())).backward()
        optimizer.step()
        decisions = [site.controller.threshold(site) for site in attachment.sites()]
        known = [site.ratio for site in skiplora_fx.sites(model)]
        found.append((known, decisions, json.dumps(attachment.state_dict())))
    return found


def _own(rank: int) -> torch.Tensor:
    """Return what a rank trains on in a pair; the ranks' ratios are far apart."""
    return part(batch(), rank, 4) * (1 + 9 * rank)


def train_all() -> dict[Any, Any]:
    return {**{size: by_masks(size) for size in SCOPES}, "pairs": in_pairs()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    return run(train_all, ranks=4)


@pytest.mark.parametrize("size", SCOPES)
def test_gradients_are_those_of_one_process(size: int, ranks: list[dict[Any, Any]]) -> None:
    assert [len(rank[size]) for rank in ranks] == [len(MASKS)] * size + [0] * (4 - size)
    for rank in ranks[:size]:
        for mask, found in zip(MASKS.values(), rank[size], strict=True):
            model = adapted()
            with detached(model, SCOPES[size], dict(zip(SITES, mask, strict=True))):
                right = gradients(model, lambda model=model: model(batch(EXAMPLES)))
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_a_group_decides_by_itself(ranks: list[dict[Any, Any]]) -> None:
    for pair, steps in zip(PAIRS, STEPS, strict=True):
        first, second = (ranks[rank]["pairs"] for rank in pair)
        assert first == second
        assert len(first) == steps
    assert ranks[0]["pairs"][0][1] != ranks[2]["pairs"][0][1]


@pytest.mark.parametrize("pair", PAIRS)
def test_m_is_the_mean_over_the_group(pair: tuple[int, int], ranks: list[dict[Any, Any]]) -> None:
    model = adapted()
    own = [list(ratios(model, lambda rank=rank: model(_own(rank))).values()) for rank in pair]
    found, _, _ = ranks[pair[0]]["pairs"][0]
    assert found == pytest.approx([sum(both) / 2 for both in zip(*own, strict=True)], rel=1e-4)
