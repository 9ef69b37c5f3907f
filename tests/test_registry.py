"""What threads that train models of their own share: the registry."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from threading import Thread

import pytest
from lora_modules import Linear
from torch import nn
from two_layers import sgd

import skiplora_fx
from skiplora_fx.registry import clocks_of, flush, leave_to_read


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    flush()
    yield
    flush()


def test_who_asks_finds_what_another_thread_is_about_to_read() -> None:
    read: list[str] = []
    found: list[list[str]] = []

    def ask() -> None:
        flush()
        found.append(list(read))

    other = Thread(target=ask)

    def slow() -> None:
        other.start()
        other.join(timeout=0.5)  # it does not end before this has: only if it did would there be no wait
        read.append("first")

    leave_to_read(slow)
    leave_to_read(partial(read.append, "second"))
    flush()
    other.join()
    assert read == ["first", "second"]
    assert found == [["first", "second"]]


def test_what_is_read_may_ask_for_what_comes_after_it() -> None:
    read: list[str] = []
    leave_to_read(flush)
    leave_to_read(partial(read.append, "second"))
    flush()
    assert read == ["second"]


def test_a_read_that_fails_keeps_nobody_from_reading_on() -> None:
    read: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    leave_to_read(fail)
    leave_to_read(partial(read.append, "second"))
    with pytest.raises(ZeroDivisionError):
        flush()
    other = Thread(target=flush)
    other.start()
    other.join()
    assert read == ["second"]


class Interrupting(Linear):
    """Another model is attached, as by another thread, when somebody looks at its parameters for the first time."""

    others: tuple[nn.Module, ...] = ()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        others, self.others = self.others, ()
        for other in others:
            skiplora_fx.attach(other, sgd(other))
        return super().parameters(recurse)


def test_a_model_may_be_attached_while_another_thread_looks_through_those_that_are() -> None:
    kept = [Interrupting() for _ in range(3)]
    attachments = [skiplora_fx.attach(model, sgd(model)) for model in kept]
    other = Linear()
    kept[0].others = (other,)
    assert clocks_of(kept[2]) == [attachments[2].clock]
    assert len(clocks_of(other)) == 1
