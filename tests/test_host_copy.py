"""Copies of decisions on their way to the host: the backward reads the one of its own forward, or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Thread

import pytest
import torch
from lora_modules import Checkpointed, Linear, batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from two_layers import Broken, Two, compiled, has_gradient, step

import skiplora_fx
from skiplora_fx import SkipLoraConfig, gate
from skiplora_fx.host_copy import HostCopy, begin_copy, copy_of, forget_copy_of
from skiplora_fx.live_site import Slot
from skiplora_fx.runtime import GatedGraph


def decisions(*values: bool) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_a_copy_is_found_by_whatever_tensor_has_the_memory() -> None:
    opens = decisions(True, False)
    copy = begin_copy(opens)
    assert copy_of(opens) is copy
    assert copy_of(opens.detach()) is copy
    assert copy_of(opens[1:]) is None
    assert copy_of(opens.clone()) is None


def test_a_copy_that_nobody_keeps_is_not_found() -> None:
    opens = decisions(True, False)
    copy = begin_copy(opens)
    del copy
    assert copy_of(opens) is None


def test_the_copy_that_was_begun_last_is_found() -> None:
    opens = decisions(True, False)
    first, second = begin_copy(opens), begin_copy(opens)
    assert copy_of(opens) is second
    del first
    assert copy_of(opens) is second


def test_a_copy_that_is_forgotten_is_not_found() -> None:
    opens = decisions(True, False)
    copy = begin_copy(opens)
    forget_copy_of(opens)
    forget_copy_of(opens)
    assert copy_of(opens) is None
    assert copy.tolist() == [True, False]


def test_other_decisions_at_the_same_address_have_no_copy() -> None:
    memory = bytearray(b"\1\1")
    opens = torch.frombuffer(memory, dtype=torch.bool)
    copy = begin_copy(opens)
    memory[0] = 0
    others = torch.frombuffer(memory, dtype=torch.bool)
    assert others.data_ptr() == opens.data_ptr()
    assert (copy_of(opens), copy_of(others)) == (copy, None)


def test_new_decisions_have_no_copy_however_many_were_freed() -> None:
    kept: list[HostCopy] = []
    for place in range(256):
        opens = decisions(place % 2 == 0)
        assert copy_of(opens) is None
        copy = begin_copy(opens)
        copy._tensor = opens.clone()  # as on a GPU, where a copy keeps nothing of what it was made from
        kept.append(copy)
    assert [copy.tolist() for copy in kept] == [[True], [False]] * 128


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each backward so far whether it found a copy, which had the values of what it was given."""
    looked_up: list[bool] = []

    def look_up(opens: Tensor) -> HostCopy | None:
        copy = copy_of(opens)
        looked_up.append(copy is not None)
        assert copy is None or copy.tolist() == opens.tolist()
        return copy

    monkeypatch.setattr(gate, "copy_of", look_up)
    return looked_up


@pytest.fixture
def _keeps_all() -> Iterator[None]:
    """Have backwards run more than once: AOTAutograd gives no memory away that is saved for one."""
    with torch._functorch.config.patch(donated_buffer=False):
        yield


def two_forwards(model: nn.Module) -> None:
    (model(batch()).sum() + model(batch()).sum()).backward()


def lengths(model: nn.Module) -> None:
    for rows in (3, 4, 7):
        model(batch(rows)).sum().backward()


def twice(model: nn.Module) -> None:
    loss = model(batch()).sum()
    loss.backward(retain_graph=True)
    loss.backward()


def reentrant(model: nn.Module) -> None:
    checkpoint(model, batch().requires_grad_(), use_reentrant=True).sum().backward()


def held() -> nn.Module:
    return compiled(decision="previous")


RUNS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None], int]] = {
    "one step": (compiled, step, 1),
    "decided before": (held, step, 1),
    "two graphs": (lambda: compiled(Broken()), step, 2),
    "two forwards": (compiled, two_forwards, 2),
    "dynamic lengths": (compiled, lengths, 3),
    "a backward twice": (compiled, twice, 2),
    "checkpoints inside": (lambda: compiled(Checkpointed()), step, 1),
    "a reentrant checkpoint around": (compiled, reentrant, 1),
}


@pytest.mark.usefixtures("_keeps_all")
@pytest.mark.parametrize(("build", "run", "backwards"), RUNS.values(), ids=RUNS)
def test_the_backward_reads_the_copy_of_its_forward(
    build: Callable[[], nn.Module], run: Callable[[nn.Module], None], backwards: int, found: list[bool]
) -> None:
    model = build()
    for _ in range(2):
        found.clear()
        run(model)
        # A forward whose decisions came before it evaluates conditions too: it has them on the host.
        assert found == [False] * (build is held) + [True] * backwards


@pytest.mark.usefixtures("_keeps_all")
def test_once_it_is_read_and_gone_the_decisions_are_read_themselves(found: list[bool]) -> None:
    model = compiled()
    loss = model(batch()).sum()
    loss.backward(retain_graph=True)
    skiplora_fx.sites(model)
    loss.backward()
    assert found == [True, False]
    assert not has_gradient(model)


def test_a_forward_that_is_repeated_for_its_backward_has_no_copy(found: list[bool]) -> None:
    model = compiled()
    for _ in range(2):
        checkpoint(model, batch(), use_reentrant=False).sum().backward()
    assert found == [False, False]
    assert not has_gradient(model)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2)], ids=str)
def test_each_backward_has_the_decisions_of_its_own_forward(order: tuple[int, ...], found: list[bool]) -> None:
    """Whatever else was decided since, and though graphs are dropped whose memory is used again."""
    model = compiled()
    model(batch())
    for _ in range(5):
        thresholds, losses = (0.0, math.inf, 0.0), []
        for threshold in thresholds:
            skiplora_fx.set_threshold(model, threshold)
            losses.append(model(batch()).sum())
        for place in order:
            model.zero_grad()
            losses[place].backward()
            losses[place] = torch.empty(0)
            assert has_gradient(model) == (thresholds[place] == 0.0)
    assert found == [True] * 5 * len(order)


def test_models_in_threads_of_their_own_read_their_own(found: list[bool]) -> None:
    models = {0.0: Two(), math.inf: Two()}
    for threshold, model in models.items():
        step(compiled(model, threshold=threshold))
    found.clear()
    wrong: list[float] = []

    def train(threshold: float) -> None:
        for _ in range(20):
            step(models[threshold])
            if has_gradient(models[threshold]) != (threshold == 0.0):
                wrong.append(threshold)

    threads = [Thread(target=train, args=[threshold]) for threshold in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert found == [True] * 40


def test_decisions_that_come_in_the_same_memory_uncounted_have_no_copy() -> None:
    """As of a CUDA graph, which writes where it wrote before."""
    model, opens = Linear(), decisions(True)
    config = SkipLoraConfig(threshold=0.0, warmup_steps=0, probe_every=0)
    slot = Slot(position=1, name="", depth=1, adapter="default", rank=4, trained=(1,))
    run = GatedGraph(lambda x, a, thresholds: (a.sum() * x.sum(), thresholds + 1, opens), [slot], config, model, dict)
    loss, *_ = run(batch(), model.a.weight)
    assert copy_of(opens) is not None
    model.eval()
    run(batch(), model.a.weight)
    assert copy_of(opens) is None
    loss.backward()
