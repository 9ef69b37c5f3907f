"""What counts as a step, and in which steps gates may shut: the warm-up, probing, an optimizer attached."""

from __future__ import annotations

import pytest
from lora_modules import Around
from two_layers import Two, compiled, sgd, step, steps_skipped

import skiplora_fx
from skiplora_fx import UsageError


def test_the_warm_up_keeps_every_gate_open() -> None:
    assert steps_skipped(compiled(warmup_steps=2), 4) == [False, False, True, True]


def test_probing_opens_every_gate_for_one_step_in_so_many() -> None:
    assert steps_skipped(compiled(probe_every=3), 6) == [True, True, False, True, True, False]


def test_without_an_optimizer_each_backward_is_a_step() -> None:
    model = compiled(warmup_steps=2)
    assert steps_skipped(model, 3) == [False, False, True]


def test_attached_to_an_optimizer_its_steps_are_counted() -> None:
    model = compiled(warmup_steps=2)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    found = []
    for _ in range(3):
        found += steps_skipped(model, 2)  # gradients accumulated over two backwards
        optimizer.step()
    assert found == [False, False, False, False, True, True]
    assert attachment.clock.steps == 3


def test_attaching_later_goes_on_counting() -> None:
    model = compiled(warmup_steps=3)
    assert steps_skipped(model, 2) == [False, False]
    attachment = skiplora_fx.attach(model, sgd(model))
    assert attachment.clock.steps == 2


def test_after_remove_backwards_count_again_one_each() -> None:
    model = compiled(warmup_steps=4)
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)  # two sites, which shared the optimizer's clock: it has not stepped
    attachment.remove()
    assert steps_skipped(model, 6) == [False, False, False, False, True, True]


def test_an_adapter_used_twice_counts_a_backward_once() -> None:
    model = compiled(Around(lambda layer, x: layer(layer(x).relu())), warmup_steps=3)
    assert steps_skipped(model, 5) == [False, False, False, True, True]
    (backwards,) = {site.backwards for site in skiplora_fx.sites(model)}
    assert backwards == 5


def test_attach_takes_the_wrapper_of_an_optimizer() -> None:
    model, inner = compiled(), sgd(Two())

    class Wrapper:
        optimizer = inner

    with pytest.raises(UsageError, match="trains no parameter of this model"):
        skiplora_fx.attach(model, Wrapper())
    Wrapper.optimizer = sgd(model)
    assert skiplora_fx.attach(model, Wrapper()).clock.attached


def test_attach_refuses_what_is_no_optimizer() -> None:
    with pytest.raises(UsageError, match="got list"):
        skiplora_fx.attach(compiled(), [])
