"""Under DistributedDataParallel gradients are those of one process that has the whole batch, for any mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import MASKS, SITES, Given, adapted, batch, options, part, sgd
from oracle import Gradients, detached, gradients
from processes import run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import skiplora_fx

pytestmark = pytest.mark.xdist_group("ddp")  # all tests look at one run


@dataclass(frozen=True)
class Case:
    """How a model is wrapped and compiled.

    Attributes:
        around: whether the wrapper is compiled, and not the model in it.
        scope: of the gates.
        wrapper: options of the wrapper.
        options: of the backend.
        micro_batches: in so many parts each rank runs its share of the batch, without communication before the last.
    """

    around: bool = False
    scope: str = "adapter"
    wrapper: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    micro_batches: int = 1


CASES: dict[str, Case] = {
    "adapter": Case(),
    "layer": Case(scope="layer"),
    "input": Case(scope="input", options={"decision": "previous"}),
    "the wrapper compiled": Case(around=True),
    "the wrapper compiled, layer": Case(around=True, scope="layer"),
    "the wrapper compiled, input": Case(around=True, scope="input", options={"decision": "previous"}),
    "views of the buckets, unused parameters": Case(
        wrapper={"gradient_as_bucket_view": True, "find_unused_parameters": True}, options={"skipped_grad": "none"}
    ),
    "a static graph": Case(wrapper={"static_graph": True}),
    "micro-batches": Case(micro_batches=2, options={"skipped_grad": "none"}),
}


@dataclass
class Step:
    """What one rank found: gradients after the backward, and those that the optimizer did not get."""

    gradients: Gradients
    missing: set[str]


def train_all() -> dict[str, list[Step]]:
    return {name: _train(case) for name, case in CASES.items()}


def _train(case: Case) -> list[Step]:
    torch._dynamo.reset()
    model = adapted()
    chosen = options(policy=Given(), scope=case.scope, **case.options)
    wrapped = DistributedDataParallel(model, **case.wrapper)
    (wrapped if case.around else model).compile(backend="skiplora", options=chosen)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    missing: list[set[str]] = []
    optimizer.register_step_pre_hook(lambda *_: missing.append(_without(model)))
    found = []
    for _ in MASKS:
        _backward(wrapped, case.micro_batches)
        found.append(_gradients(model))
        optimizer.step()
        optimizer.zero_grad()
    return [Step(*step) for step in zip(found, missing, strict=True)]


def _backward(wrapped: DistributedDataParallel, micro_batches: int) -> None:
    *first, last = part(batch(), dist.get_rank(), dist.get_world_size()).chunk(micro_batches)
    for micro_batch in first:
        with wrapped.no_sync():
            (wrapped(micro_batch) / micro_batches).backward()
    (wrapped(last) / micro_batches).backward()


def _gradients(model: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _without(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


@pytest.fixture(scope="module")
def trained() -> list[dict[str, list[Step]]]:
    return run(train_all)


def expected(scope: str, mask: tuple[bool, ...]) -> Gradients:
    model = adapted()
    with detached(model, scope, dict(zip(SITES, mask, strict=True))):
        return gradients(model, lambda: model(batch()))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(name: str, trained: list[dict[str, list[Step]]]) -> None:
    for rank in trained:
        for mask, step in zip(MASKS.values(), rank[name], strict=True):
            torch.testing.assert_close(step.gradients, expected(CASES[name].scope, mask), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_what_the_optimizer_does_not_get_is_the_same_on_each_rank(
    name: str, trained: list[dict[str, list[Step]]]
) -> None:
    drops = CASES[name].options.get("skipped_grad") == "none"
    for rank in trained:
        for mask, step in zip(MASKS.values(), rank[name], strict=True):
            shut = [site for site, is_open in zip(SITES, mask, strict=True) if not is_open]
            right = {f"{site}.lora_{factor}.default.weight" for site in shut for factor in "AB"}
            assert step.missing == (right if drops else set())
