"""What ranks know and decide is the same on all of them, and none waits for another that does not come."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import MASKS, SITES, Given, adapted, batch, options, part, sgd
from lora_modules import Linear
from oracle import detached, gradients, ratios
from processes import run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import skiplora_fx
from skiplora_fx.policy import Observation, Policy

pytestmark = pytest.mark.xdist_group("sync")  # all tests look at one run

STEPS = 5


def _ddp(**chosen: Any) -> tuple[nn.Module, DistributedDataParallel, torch.optim.Optimizer]:
    torch._dynamo.reset()
    model = adapted()
    model.compile(backend="skiplora", options=options(**chosen))
    return model, DistributedDataParallel(model), sgd(model, rate=1e-3)


def _own(scale: float = 1.0) -> Tensor:
    """Return this rank's share of the batch; with a scale the ranks' ratios are far apart."""
    return part(batch(), dist.get_rank(), dist.get_world_size()) * (1 + scale * dist.get_rank())


def _train(wrapped: nn.Module, optimizer: torch.optim.Optimizer, steps: int, x: Tensor) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        wrapped(x).backward()
        optimizer.step()


def _decisions(attachment: Any) -> list[float]:
    return [site.controller.threshold(site) for site in attachment.sites()]


def by_thresholds() -> list[tuple[list[float], list[float], str]]:
    """Train with a threshold amid the ratios; return ratios, decisions and the whole state after each step."""
    model, wrapped, optimizer = _ddp(threshold=1.14)
    attachment = skiplora_fx.attach(model, optimizer)
    found = []
    for _ in range(STEPS):
        _train(wrapped, optimizer, 1, _own(9.0))
        ratios = [site.ratio for site in skiplora_fx.sites(model)]
        found.append((ratios, _decisions(attachment), json.dumps(attachment.state_dict())))
    return found


def with_a_nan() -> list[list[float]]:
    """Give the last rank a batch of NaN in one step; return the decisions before and after it."""
    model, wrapped, optimizer = _ddp(threshold=1e9)
    optimizer.param_groups[0]["lr"] = 0.0
    attachment = skiplora_fx.attach(model, optimizer)
    _train(wrapped, optimizer, 1, _own())
    before = _decisions(attachment)
    wrapped(_own() * (math.nan if dist.get_rank() else 1.0)).backward()
    optimizer.zero_grad()
    optimizer.step()
    return [before, _decisions(attachment)]


@dataclass(eq=False)
class OfRank(Policy):
    """Another mask on each rank."""

    needs_history = False

    def decide(self, observation: Observation) -> list[float]:
        return Given([_mask_of(dist.get_rank())]).decide(observation)


def _mask_of(rank: int) -> tuple[bool, ...]:
    return list(MASKS.values())[2 + rank]


def each_for_itself(sync: str) -> tuple[dict[str, Tensor], list[str]]:
    """Train with another mask on each rank; return the gradients and the warnings."""
    model, wrapped, optimizer = _ddp(policy=OfRank(), sync=sync)
    optimizer.param_groups[0]["lr"] = 0.0
    skiplora_fx.attach(model, optimizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _train(wrapped, optimizer, 2, _own(0.0))
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return grads, [str(warning.message) for warning in told if "sync=" in str(warning.message)]


def parting() -> str:
    """Return what is said where each rank would drop gradients by its own mask."""
    _, wrapped, _ = _ddp(policy=OfRank(), sync="none", skipped_grad="none")
    with pytest.raises(skiplora_fx.UsageError) as error:
        wrapped(_own())
    return str(error.value)


def threshold_of_one_rank() -> list[str]:
    """Set a threshold on the last rank alone; return the warnings."""
    model, wrapped, optimizer = _ddp(threshold=0.0)
    skiplora_fx.attach(model, optimizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _train(wrapped, optimizer, 1, _own())
        if dist.get_rank():
            skiplora_fx.set_threshold(model, math.inf, sites=SITES[0])
        _train(wrapped, optimizer, 2, _own())
    return [str(warning.message) for warning in told if "sync=" in str(warning.message)]


def without_an_optimizer() -> tuple[list[float], list[str]]:
    """Train without ``attach``; return ratios and warnings."""
    model, wrapped, optimizer = _ddp(threshold=0.3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _train(wrapped, optimizer, 3, _own(9.0))
    messages = [str(warning.message) for warning in told if "sync=" in str(warning.message)]
    return [site.ratio for site in skiplora_fx.sites(model)], messages


def unequal_work(around: bool = False) -> tuple[list[list[float]], list[str]]:
    """Let the last rank leave out the forward of the first step, and of a later one; no wrapper communicates.

    Return ratios and decisions after each step but the first, and the warnings.

    Args:
        around: whether something around the model is compiled, of which the model that is attached knows nothing.
    """
    torch._dynamo.reset()
    model = adapted()
    chosen = {"backend": "skiplora", "options": options(threshold=0.3)}
    called = torch.compile(model, **chosen) if around else model
    if not around:
        model.compile(**chosen)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    found, told = [], []
    for step in range(4):
        if dist.get_rank() == 0 or step in (1, 3):
            for _ in range(1 + dist.get_rank()):
                called(_own()).backward()
        if dist.get_rank() == 0:
            model.eval()
            called(_own())
            model.train()
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            optimizer.step()
        told += [str(warning.message) for warning in messages if "sync=" in str(warning.message)]
        optimizer.zero_grad()
        if step > 0:
            found.append([*(site.ratio for site in attachment.sites()), *_decisions(attachment)])
    return found, told


def refused() -> list[str]:
    """Return what is said where ranks differ in options, in what trains, and in what they know."""
    rank = dist.get_rank()

    def differ(change: Callable[[nn.Module], Any], steps_before: int = 0, **chosen: Any) -> str:
        model, _, optimizer = _ddp(**chosen)
        change(model)
        _train(model, optimizer, steps_before, _own())
        skiplora_fx.attach(model, optimizer)
        with pytest.raises(skiplora_fx.UsageError) as error:
            _train(model, optimizer, 1, _own())
        return str(error.value)

    def freeze(model: nn.Module) -> None:
        next(p for p in model.parameters() if p.requires_grad).requires_grad_(rank == 0)

    return [
        differ(lambda model: None, threshold=0.1 + rank),
        differ(lambda model: None, policy="random", policy_kwargs={"seed": rank}),
        differ(freeze),
        differ(lambda model: None, steps_before=rank),
    ]


def eager_graph() -> str:
    """Return what is said where a graph that runs by itself is wrapped."""
    graph = skiplora_fx.apply(torch.fx.symbolic_trace(Linear()), batch())
    wrapped = DistributedDataParallel(graph)
    with pytest.raises(skiplora_fx.UsageError) as error:
        wrapped(batch())
    return str(error.value)


def uneven(sync: str) -> tuple[str, float]:
    """Give the last rank a batch less, in ``join()``; return what is said of it, and how often sites had a backward."""
    model, wrapped, optimizer = _ddp(threshold=0.3, sync=sync)
    skiplora_fx.attach(model, optimizer)
    told = ""
    try:
        with wrapped.join():
            _train(wrapped, optimizer, 3 - dist.get_rank(), _own())
    except skiplora_fx.UsageError as error:
        told = str(error)
    return told, sum(site.backwards for site in skiplora_fx.sites(model))


def alone() -> list[int]:
    """Let the last rank step its optimizers alone; return how many steps were counted each time.

    With ``sync="none"`` nobody waits for it, if its model has run or not, has adapters or not, and whatever is around.
    """
    torch._dynamo.reset()
    chosen = {"backend": "skiplora", "options": options(sync="none")}
    wrapped, plain, model, other = adapted(), nn.Linear(batch().shape[1], 1), adapted(), adapted()
    torch.compile(wrapped, **chosen)  # who is handed the model inside alone does not see what is around it
    steps = [_last_rank_steps(wrapped)]
    plain.compile(**chosen)
    steps += [_last_rank_steps(plain), _last_rank_steps(plain, backward=True)]
    other.compile(backend="skiplora", options=options())
    model.compile(**chosen)
    steps += [_last_rank_steps(model), _last_rank_steps(model, backward=True)]
    part_of_it = adapted()
    for block in part_of_it.base_model.model.blocks:
        block.compile(**chosen)
    graph = skiplora_fx.apply(torch.fx.symbolic_trace(Linear()), batch(), sync="none")
    steps += [_last_rank_steps(part_of_it), _last_rank_steps(graph)]
    dist.barrier()  # here the first rank would wait
    return steps


def _last_rank_steps(model: nn.Module, backward: bool = False) -> int:
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    before = attachment.clock.steps
    if dist.get_rank():
        if backward:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", skiplora_fx.NoLoRAWarning)
                model(batch()).sum().backward()
        optimizer.step()
    return attachment.clock.steps - before


def scenarios() -> dict[str, Any]:
    return {
        "thresholds": by_thresholds(),
        "nan": with_a_nan(),
        "mean": each_for_itself("mean"),
        "none": each_for_itself("none"),
        "parting": parting(),
        "threshold": threshold_of_one_rank(),
        "unattached": without_an_optimizer(),
        "unequal": {around: unequal_work(around) for around in (False, True)},
        "refused": refused(),
        "eager": eager_graph(),
        "alone": alone(),
        "uneven": {sync: uneven(sync) for sync in ("mean", "none")},
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(scenarios)


def test_states_and_decisions_are_alike_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["thresholds"] for rank in ranks)
    assert first == second
    assert {decision for _, decisions, _ in first for decision in decisions} == {0.0, math.inf}


def test_m_is_the_mean_over_the_ranks(ranks: list[dict[str, Any]]) -> None:
    model = adapted()
    own = [
        list(ratios(model, lambda rank=rank: model(part(batch(), rank, 2) * (1 + 9 * rank))).values())
        for rank in (0, 1)
    ]
    mean = [sum(pair) / 2 for pair in zip(*own, strict=True)]
    assert min(abs(a - b) for a, b in zip(*own, strict=True)) > 1e-3  # or the mean would show nothing
    (found, _, _), *_ = ranks[0]["thresholds"]
    assert found == pytest.approx(mean, rel=1e-4)


def test_a_nan_on_one_rank_opens_the_gate_on_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["nan"] == [[math.inf] * len(SITES), [0.0] * len(SITES)]


@pytest.mark.parametrize("sync", ["mean", "none"])
def test_with_another_mask_on_each_rank_gradients_are_still_right(sync: str, ranks: list[dict[str, Any]]) -> None:
    parts = []
    for rank in (0, 1):
        model = adapted()
        with detached(model, "adapter", dict(zip(SITES, _mask_of(rank), strict=True))):
            parts.append(gradients(model, lambda model=model, rank=rank: model(part(batch(), rank, 2))))
    right = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    for rank in ranks:
        torch.testing.assert_close(rank[sync][0], right, rtol=1e-4, atol=1e-6)


def test_a_policy_that_answers_differently_is_warned_of_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (message,) = rank["mean"][1]
        assert "was open in 1 of 2 backwards" in message
        assert rank["none"][1] == []


def test_a_threshold_that_is_set_on_one_rank_is_warned_of_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (message,) = rank["threshold"]
        assert f"the gate of {SITES[0]} was open in 1 of 2 backwards" in message


def test_masks_of_their_own_by_which_ranks_would_drop_gradients_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "the ranks' parameters would part. Set sync='mean'" in rank["parting"]


def test_without_an_optimizer_each_rank_decides_for_itself_and_says_so(ranks: list[dict[str, Any]]) -> None:
    (first, told), (second, told_too) = (rank["unattached"] for rank in ranks)
    assert first != second
    for messages in (told, told_too):
        (message,) = messages
        assert "skiplora_fx.attach(model, optimizer) before training, on every rank" in message


@pytest.mark.parametrize("around", [False, True])
def test_no_rank_waits_for_another_with_less_to_do(around: bool, ranks: list[dict[str, Any]]) -> None:
    (first, told), (second, _) = (rank["unequal"][around] for rank in ranks)
    assert [len(row) for row in first] == [2 * len(SITES)] * 3
    assert [f"only 1 of 2 ranks have run {SITES[0]} in training" in message for message in told] == [True]
    # A rank that met a site later knows less of it; from then on both know the same of its last step.
    assert first == second


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (0, "the options"),
        (1, "the options"),
        (2, "the parameters that train"),
        (3, "what is known from earlier steps"),
    ],
)
def test_what_has_to_be_the_same_is_checked_at_the_first_step(
    place: int, what: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert f"{what} differ between rank 0 and rank 1" in rank["refused"][place]


def test_a_graph_that_would_leave_the_wrapper_waiting_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "Compile the graph, which gives zeros" in rank["eager"]


def test_uneven_inputs_are_refused_where_a_rank_would_be_waited_for(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        told, backwards = found["uneven"]["mean"]
        assert "Set sync='none'" in told
        assert backwards == 0
        assert found["uneven"]["none"] == ("", (3 - rank) * len(SITES))


def test_with_none_no_rank_waits_for_another_whatever_it_has_met(ranks: list[dict[str, Any]]) -> None:
    assert [set(rank["alone"]) for rank in ranks] == [{0}, {1}]
