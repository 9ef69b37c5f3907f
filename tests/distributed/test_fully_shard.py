"""Under ``fully_shard`` gradients are those of one process that has the whole batch, and sites are known by shards."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import MASKS, SITES, Given, adapted, batch, options, part, sgd
from oracle import Gradients, detached, gradients
from processes import run
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import skiplora_fx

pytestmark = pytest.mark.xdist_group("fully_shard")  # all tests look at one run


@dataclass(frozen=True)
class Case:
    """How a model is sharded and compiled.

    Attributes:
        each: whether each block is sharded by itself, and not the model alone.
        regional: whether each block is compiled by itself.
        first: whether it is compiled before it is sharded.
        scope, decision, skipped_grad: options.
        reshard: as of ``fully_shard``.
    """

    each: bool = True
    regional: bool = False
    first: bool = False
    scope: str = "adapter"
    decision: str = "current"
    skipped_grad: str = "zero"
    reshard: bool | None = None


CASES: dict[str, Case] = {
    "each block": Case(),
    "each block, layer": Case(scope="layer"),
    "each block compiled": Case(regional=True, reshard=True),
    "each block compiled, input": Case(regional=True, scope="input", decision="previous"),
    "the whole model": Case(each=False, skipped_grad="none"),
    "compiled first": Case(first=True, reshard=False),
}


def sharded(case: Case, precision: MixedPrecisionPolicy | None = None, **chosen: Any) -> nn.Module:
    torch._dynamo.reset()
    model = adapted()
    blocks = list(model.base_model.model.blocks)
    chosen = options(scope=case.scope, decision=case.decision, skipped_grad=case.skipped_grad, **chosen)
    compiled = {"backend": "skiplora", "options": chosen}
    parts = blocks if case.regional else [model]
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in parts if case.first else ():
        block.compile(**compiled)
    for block in [*(blocks if case.each else []), model]:
        precise = {} if precision is None else {"mp_policy": precision}
        fully_shard(block, mesh=mesh, reshard_after_forward=case.reshard, **precise)
    for block in () if case.first else parts:
        block.compile(**compiled)
    return model


def own() -> Tensor:
    return part(batch(), dist.get_rank(), dist.get_world_size())


def whole_gradients(model: nn.Module) -> Gradients:
    """Return the gradients, gathered from all ranks."""
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if isinstance(p.grad, DTensor)}


def by_masks(case: Case) -> tuple[list[str], list[Gradients], list[set[str]]]:
    model = sharded(case, policy=Given())
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    missing: list[set[str]] = []
    optimizer.register_step_pre_hook(
        lambda *_: missing.append({n for n, p in model.named_parameters() if p.requires_grad and p.grad is None})
    )
    found = []
    for _ in MASKS:
        optimizer.zero_grad()
        model(own()).backward()
        found.append(whole_gradients(model))
        optimizer.step()
    return [site.name for site in skiplora_fx.sites(model)], found, missing


def by_thresholds(steps: int, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train with a threshold amid the ratios; leave a checkpoint of shards half of the way, or go on from one."""
    model = sharded(Case(), threshold=1.0)
    optimizer = sgd(model, rate=0.01)
    attachment = skiplora_fx.attach(model, optimizer)
    if resume:
        weights = model.state_dict()
        checkpoint.load(weights, checkpoint_id=folder / "weights")
        model.load_state_dict(weights)
        attachment.load_state_dict(json.loads((folder / "gates.json").read_text()))
    opens = []
    for step in range(steps):
        optimizer.zero_grad()
        model(own() * (1 + dist.get_rank())).backward()
        optimizer.step()
        opens.append([site.skipped for site in skiplora_fx.sites(model)])
        if not resume and step == steps // 2 - 1:
            checkpoint.save(model.state_dict(), checkpoint_id=folder / "weights")
            if dist.get_rank() == 0:
                (folder / "gates.json").write_text(json.dumps(attachment.state_dict()))
            dist.barrier()
    return {"state": json.dumps(attachment.state_dict()), "opens": opens}


def resumed(folder: str) -> dict[str, Any]:
    whole = by_thresholds(6, Path(folder))
    rest = by_thresholds(3, Path(folder), resume=True)
    same = whole["state"] == rest["state"]
    return {"whole": whole["opens"], "rest": rest["opens"], "state": rest["state"], "same": same}


def norms(folder: str, sync: str) -> tuple[list[float], list[float]]:
    """Log on the first rank; return the gradient norm that is measured, and that of the whole gradients."""
    model = sharded(Case(), sync=sync)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=Path(folder, f"{sync}.jsonl"))
    measured, right = [], []
    for _ in range(2):
        optimizer.zero_grad()
        model(own()).backward()
        right.append(math.hypot(*(float(grad.norm()) for grad in whole_gradients(model).values())))
        optimizer.step()
        measured.append(attachment.grad_norm())
    return measured, right


def parting() -> str:
    """Return what is said where each rank would drop gradients by its own mask."""
    model = sharded(Case(skipped_grad="none"), sync="none")
    with pytest.raises(skiplora_fx.UsageError) as error:
        model(own())
    return str(error.value)


def in_bfloat16() -> tuple[list[str], list[bool], bool]:
    """Train with parameters that are gathered in bfloat16; return sites, what was skipped, whether all is finite."""
    model = sharded(Case(), MixedPrecisionPolicy(param_dtype=torch.bfloat16), policy=Given([(True, False) * 2]))
    optimizer = sgd(model)
    skiplora_fx.attach(model, optimizer)
    model(own()).backward()
    finite = all(bool(grad.isfinite().all()) for grad in whole_gradients(model).values())
    sites = skiplora_fx.sites(model)
    optimizer.step()
    return [site.name for site in sites], [site.skipped for site in skiplora_fx.sites(model)], finite


def train_all(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: by_masks(case) for name, case in CASES.items()}
    found["norms"] = {sync: norms(folder, sync) for sync in ("mean", "none")}
    return {**found, "resumed": resumed(folder), "bfloat16": in_bfloat16(), "parting": parting()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(train_all, str(tmp_path_factory.mktemp("logs")))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        gated, found, missing = rank[name]
        assert gated == list(SITES)
        for mask, grads, left_out in zip(MASKS.values(), found, missing, strict=True):
            model = adapted()
            with detached(model, CASES[name].scope, dict(zip(SITES, mask, strict=True))):
                right = gradients(model, lambda model=model: model(batch()))
            torch.testing.assert_close(grads, right, rtol=1e-4, atol=1e-6)
            assert bool(left_out) == (CASES[name].skipped_grad == "none" and not all(mask))


def test_a_resumed_run_decides_as_the_whole_one(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["resumed"] == ranks[1]["resumed"]
    found = ranks[0]["resumed"]
    assert found["rest"] == found["whole"][3:]
    assert found["same"]
    assert len({tuple(step) for step in found["whole"]}) > 1


def test_gradient_norms_are_those_of_all_shards(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        measured, right = rank["norms"]["mean"]
        assert measured == pytest.approx(right, rel=1e-4)


def test_ranks_that_share_nothing_know_no_norm_of_all_shards(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        measured, _ = rank["norms"]["none"]
        assert all(math.isnan(norm) for norm in measured)


def test_masks_of_their_own_by_which_ranks_would_drop_gradients_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "the ranks' parameters would part. Set sync='mean'" in rank["parting"]


def test_parameters_gathered_in_another_dtype(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        names, skipped, finite = rank["bfloat16"]
        assert names == list(SITES)
        assert skipped == [False, True, False, True]
        assert finite
