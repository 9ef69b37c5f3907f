"""What people do with a compiled model, each with what becomes of it: rows of docs/compatibility.md."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import oracle
import torch
from lora_modules import batch, peft
from torch import Tensor, nn

import skiplora_fx

SHUT, OPENED = "first", "second"
"""The last parts of the names of the layers whose gates are shut and open."""

NOTHING = "no layer"
"""In place of :data:`SHUT` where all gates are open."""

Test = TypeVar("Test", bound=Callable[..., None])
Forward = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Usage:
    """A row: what somebody does, what becomes of it, and the test that shows it."""

    what: str
    becomes: str
    test: str


USAGES: list[Usage] = []


def usage(what: str, becomes: str = "gated, gradients exact") -> Callable[[Test], Test]:
    """Enter a test into the table."""

    def enter(test: Test) -> Test:
        USAGES.append(Usage(what, becomes, test.__name__))
        return test

    return enter


def two_layers(**options: Any) -> nn.Module:
    """Return ``x + second(relu(first(x)))`` with PEFT's adapters on both, drawn at random."""
    torch.manual_seed(0)
    return peft(targets=(SHUT, OPENED), **options)


def gated(model: nn.Module, **compile_options: Any) -> nn.Module:
    """Compile ``model`` such that :data:`SHUT` is skipped from the first step on, and :data:`OPENED` never."""
    options = {
        "threshold": {f"*{SHUT}": math.inf, "*": 0.0},
        "warmup_steps": 0,
        "probe_every": 0,
        "strict": True,
        **compile_options.pop("options", {}),
    }
    model.compile(backend="skiplora", options=options, **compile_options)
    return model


def loss_of(model: nn.Module) -> Tensor:
    """Return the loss on the batch that all tests take."""
    torch.manual_seed(1)
    return model(batch()).float().square().mean()


def check(model: nn.Module, forward: Forward = loss_of, rtol: float = 1e-4, shut: str = SHUT) -> None:
    """Check a step of a gated model against eager detach in a copy of it, and what its sites say of it.

    Args:
        model: as :func:`gated` returns it.
        forward: returns the loss.
        rtol: relative to the largest gradient.
        shut: the last part of the names of the layers that are skipped.
    """
    eager = copy.deepcopy(model)  # copies are not compiled
    found = oracle.gradients(model, lambda: forward(model))
    assert_close(found, expected_gradients(eager, forward, shut), rtol)
    assert {site.name: not site.skipped for site in skiplora_fx.sites(model)} == mask_of(eager, shut)


def expected_gradients(eager: nn.Module, forward: Forward, shut: str = SHUT) -> oracle.Gradients:
    """Return the gradients of an eager model that detaches what is skipped where ``shut`` is."""
    with oracle.detached(eager, "adapter", mask_of(eager, shut)):
        return oracle.gradients(eager, lambda: forward(eager))


def mask_of(model: nn.Module, shut: str) -> dict[str, bool]:
    return {name: not name.endswith(shut) for name in oracle.adapted_layers(model)}


def assert_close(found: oracle.Gradients, expected: oracle.Gradients, rtol: float = 1e-4) -> None:
    """Check gradients against those of eager mode."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
