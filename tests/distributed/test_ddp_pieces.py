"""Where DDPOptimizer cuts a graph at the edges of buckets: what stays whole is gated, and halves are told of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from blocks import MASKS, SITES, Given, adapted, batch, options, sgd
from oracle import Gradients, detached, gradients
from processes import run
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import skiplora_fx

pytestmark = pytest.mark.xdist_group("ddp_pieces")  # all tests look at one run

WIDTH = 512
PRODUCTS = ("aten::mm", "aten::addmm")
WHOLE, HALVES = 200, 300
"""Ranks at which buckets of 1 MiB end between adapters, and between A and B."""


@dataclass(frozen=True)
class Trained:
    """A step under each of ``MASKS``: gated sites, gradients, matrix products of the backward, and warnings."""

    gated: list[str]
    gradients: list[Gradients]
    products: list[int]
    told: list[str]


def _train(rank: int, scope: str, decision: str) -> Trained:
    torch._dynamo.reset()
    model = adapted(WIDTH, rank)
    model.compile(backend="skiplora", options=options(policy=Given(), scope=scope, decision=decision))
    wrapped = DistributedDataParallel(model, bucket_cap_mb=1)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    found, products = [], []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in MASKS:
            optimizer.zero_grad()
            loss = wrapped(batch(width=WIDTH))
            with profile(activities=[ProfilerActivity.CPU]) as run:
                loss.backward()
            products.append(sum(event.count for event in run.key_averages() if event.key in PRODUCTS))
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            optimizer.step()
    halves = [str(warning.message) for warning in told if warning.category is skiplora_fx.NoLoRAWarning]
    return Trained([site.name for site in skiplora_fx.sites(model)], found, products, halves)


def train_all() -> dict[str, Trained]:
    return {"layer": _train(WHOLE, "layer", "previous"), "halves": _train(HALVES, "adapter", "current")}


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    (found,) = run(train_all, ranks=1)
    return found


@pytest.mark.parametrize(("name", "rank", "scope"), [("layer", WHOLE, "layer"), ("halves", HALVES, "adapter")])
def test_gradients(name: str, rank: int, scope: str, trained: dict[str, Trained]) -> None:
    gated = trained[name].gated
    for mask, grads in zip(MASKS.values(), trained[name].gradients, strict=True):
        model = adapted(WIDTH, rank)
        shut = {site: is_open or site not in gated for site, is_open in zip(SITES, mask, strict=True)}
        with detached(model, scope, shut):
            right = gradients(model, lambda model=model: model(batch(width=WIDTH)))
        size = max(float(gradient.abs().max()) for gradient in right.values()) or 1.0
        torch.testing.assert_close(grads, right, rtol=1e-3, atol=1e-5 * size)


def test_adapters_that_lie_in_one_piece_are_gated(trained: dict[str, Trained]) -> None:
    assert trained["layer"].gated == list(SITES)
    assert trained["layer"].told == []


def test_what_lies_below_is_left_out_from_piece_to_piece(trained: dict[str, Trained]) -> None:
    """Of the upper block run dB, dS and dA of both adapters, and the two products that the lower of them waits for."""
    products = dict(zip(MASKS, trained["layer"].products, strict=True))
    assert (products["all shut"], products["a prefix shut"]) == (0, 8)


def test_halves_are_named_once_and_the_switch_is_offered(trained: dict[str, Trained]) -> None:
    (told,) = trained["halves"].told
    assert 0 < len(trained["halves"].gated) < len(SITES)
    assert "lora_A.default.weight" in told
    assert "torch._dynamo.config.optimize_ddp = False" in told
    assert "Heads and norms that train are no halves" in told
