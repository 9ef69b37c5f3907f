"""Where DDPOptimizer cuts a graph at the edges of buckets: what stays whole is gated, and halves are told of."""

from __future__ import annotations

import warnings

import pytest
import torch
from blocks import MASKS, SITES, Given, adapted, batch, options, sgd
from oracle import Gradients, detached, gradients
from processes import run
from torch.nn.parallel import DistributedDataParallel

import skiplora_fx

pytestmark = pytest.mark.xdist_group("ddp_pieces")  # all tests look at one run

WIDTH = 512
WHOLE, HALVES = 200, 300
"""Ranks at which buckets of 1 MiB end between adapters, and between A and B."""


def _train(rank: int, scope: str) -> tuple[list[str], list[Gradients], list[str]]:
    torch._dynamo.reset()
    model = adapted(WIDTH, rank)
    model.compile(backend="skiplora", options=options(policy=Given(), scope=scope))
    wrapped = DistributedDataParallel(model, bucket_cap_mb=1)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    found = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in MASKS:
            optimizer.zero_grad()
            wrapped(batch(width=WIDTH)).backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            optimizer.step()
    halves = [str(warning.message) for warning in told if warning.category is skiplora_fx.NoLoRAWarning]
    return [site.name for site in skiplora_fx.sites(model)], found, halves


def train_all() -> dict[str, tuple[list[str], list[Gradients], list[str]]]:
    return {"layer": _train(WHOLE, "layer"), "halves": _train(HALVES, "adapter")}


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[list[str], list[Gradients], list[str]]]:
    (found,) = run(train_all, ranks=1)
    return found


@pytest.mark.parametrize(("name", "rank", "scope"), [("layer", WHOLE, "layer"), ("halves", HALVES, "adapter")])
def test_gradients(name: str, rank: int, scope: str, trained: dict[str, tuple[list[str], list[Gradients], list[str]]]):
    gated, found, _ = trained[name]
    for mask, grads in zip(MASKS.values(), found, strict=True):
        model = adapted(WIDTH, rank)
        shut = {site: is_open or site not in gated for site, is_open in zip(SITES, mask, strict=True)}
        with detached(model, scope, shut):
            right = gradients(model, lambda model=model: model(batch(width=WIDTH)))
        size = max(float(gradient.abs().max()) for gradient in right.values()) or 1.0
        torch.testing.assert_close(grads, right, rtol=1e-3, atol=1e-5 * size)


def test_adapters_that_lie_in_one_piece_are_gated(trained: dict[str, tuple[list[str], list[Gradients], list[str]]]):
    gated, _, told = trained["layer"]
    assert gated == list(SITES)
    assert told == []


def test_halves_are_named_once_and_the_switch_is_offered(
    trained: dict[str, tuple[list[str], list[Gradients], list[str]]],
) -> None:
    gated, _, (told,) = trained["halves"]
    assert 0 < len(gated) < len(SITES)
    assert "lora_A.default.weight" in told
    assert "torch._dynamo.config.optimize_ddp = False" in told
    assert "Heads and norms that train are no halves" in told
