"""The ways to run a step: compiled with or without gates, with adapters frozen, and not compiled at all."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import skiplora_fx

from .models import layers_of, sites_of, with_own_adapters

BY_LAYER = " by layer"
"""The end of the name of an arm whose layers are compiled one by one."""


@dataclass(frozen=True)
class Variant:
    """One way to use this backend.

    Attributes:
        options: in which it differs from the first.
        by_layer: whether each layer is compiled by itself, and what is around them not at all.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    by_layer: bool = False


VARIANTS: Mapping[str, Variant] = {
    "skiplora": Variant(),
    "skiplora merged": Variant({"merge_siblings": True}),
    "skiplora outlined": Variant({"outline_layers": True}),
    "skiplora by layer": Variant({"decision": "previous"}, by_layer=True),
}
"""This backend's arms."""


@dataclass(frozen=True)
class Sample:
    """Seconds of one step."""

    forward: float
    backward: float


class Runner:
    """A model and how to run it; compiled runners compile at the first step.

    Attributes:
        name: of the arm.
        model: its module.
        compile_s: seconds of the first step; None of what is not compiled, and before that step.
    """

    def __init__(self, name: str, model: nn.Module, batch: dict[str, Tensor], compiled: bool = True) -> None:
        self.name = name
        self.model = model
        self.compile_s: float | None = None
        self._batch = batch
        self._device = next(iter(batch.values())).device
        self._compiled = compiled

    def step(self) -> Sample:
        """Run a forward and a backward; return the time of each."""
        self.model.zero_grad(set_to_none=True)
        start = self._now()
        loss = self.model(**self._batch).loss
        middle = self._now()
        if loss.requires_grad:  # nothing does when every adapter is detached eagerly
            loss.backward()
        return Sample(middle - start, self._now() - middle)

    def warm_up(self, steps: int) -> None:
        """Run ``steps`` untimed; the first of them compiles, with nothing on disk from an earlier compile."""
        with fresh_cache():
            seconds = self.first_step()
        self.compile_s = seconds if self._compiled else None
        for _ in range(steps - 1):
            self.step()

    def first_step(self) -> float:
        """Run a forward and a backward; return the seconds of both, in which a compiled runner compiles."""
        start = self._now()
        self.step()
        return self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def gated(name: str, model: PeftModel, batch: dict[str, Tensor], args: argparse.Namespace, variant: Variant) -> Runner:
    """Return a copy under this backend, every gate open until :func:`force` shuts some.

    Args:
        name: of the arm.
        model: what is copied.
        batch: what it is run on.
        args: give the scope and when it is decided.
        variant: of the backend; its options are beside or in place of those.
    """
    copied = with_own_adapters(model)
    forced = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "scope": args.scope, "decision": args.decision}
    _compile(copied, variant.by_layer, backend="skiplora", options={**forced, **variant.options})
    return Runner(name, copied, batch)


def _compile(model: PeftModel, by_layer: bool, **how: Any) -> None:
    for part in layers_of(model) if by_layer else [model]:
        part.compile(**how)


def force(runner: Runner, shut: Collection[str]) -> None:
    """Shut exactly the gates of ``shut`` in a runner that has run."""
    for name in sites_of(runner.model):
        skiplora_fx.set_threshold(runner.model, math.inf if name in shut else 0.0, name)


def frozen(model: PeftModel, shut: Collection[str], batch: dict[str, Tensor], by_layer: bool = False) -> Runner:
    """Return a copy under Inductor, whole or layer by layer, with exactly the adapters of ``shut`` frozen."""
    copied = with_own_adapters(model)
    for name, module in copied.named_modules():
        if name in shut:
            module.requires_grad_(False)
    _compile(copied, by_layer, backend="inductor")
    return Runner(("oracle" if shut else "inductor") + (BY_LAYER if by_layer else ""), copied, batch)


def detached(model: PeftModel, shut: Collection[str], scope: str, batch: dict[str, Tensor]) -> Runner:
    """Return a copy that is not compiled, with ``.detach()`` behind what ``shut`` names."""
    copied = with_own_adapters(model)
    for name, module in copied.named_modules():
        if name in shut:
            hooked = module if scope == "layer" else module.lora_B["default"]
            hooked.register_forward_hook(lambda module, inputs, output: output.detach())
    return Runner("eager detach", copied, batch, compiled=False)


def eager(model: PeftModel, batch: dict[str, Tensor]) -> Runner:
    """Return a copy that runs as PEFT made it."""
    return Runner("eager", with_own_adapters(model), batch, compiled=False)
