"""A Llama, wrapped in each way, under masks drawn at random: gradients are those of one process."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import options, sgd
from models import llama, tokens, with_lora
from oracle import Gradients, adapted_layers, detached, gradients
from processes import run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import skiplora_fx
from skiplora_fx.policy import Observation, Policy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("llama")]

STEPS, WAYS = 6, ("ddp", "ddp, checkpoints", "shard", "shard, checkpoints")


class Drawn(Policy):
    """Shuts each site with probability 0.6, by its name and the step's number."""

    needs_history = False

    def decide(self, observation: Observation) -> list[float]:
        return [0.0 if is_open(site.name, observation.step) else math.inf for site in observation.sites]


def is_open(name: str, step: int) -> bool:
    return random.Random(f"{name}/{step}").random() < 0.4


def built() -> nn.Module:
    torch.manual_seed(0)
    return with_lora(llama(3), "all-linear").train()


def _wrapped(model: nn.Module, way: str) -> nn.Module:
    if "checkpoints" in way:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.compile(backend="skiplora", options=options(policy=Drawn(), scope="layer"))
    if way.startswith("ddp"):
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(way: str) -> list[Gradients]:
    torch._dynamo.reset()
    model = built()
    wrapped, batch = _wrapped(model, way), tokens(batch=4)
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        own = {name: value.chunk(dist.get_world_size())[dist.get_rank()] for name, value in batch.items()}
        wrapped(**own).loss.backward()
        found.append({name: _whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return found


def _whole(gradient: Any) -> torch.Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, list[Gradients]]]:
    return run(train_all)


def train_all() -> dict[str, list[Gradients]]:
    return {way: train(way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_process(way: str, ranks: list[dict[str, list[Gradients]]]) -> None:
    model = built()
    for rank in ranks:
        for step, found in enumerate(rank[way]):
            with detached(model, "layer", {name: is_open(name, step) for name in adapted_layers(model)}):
                right = gradients(model, lambda: model(**tokens(batch=4)).loss)
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-5)
