"""What happens between the compiled graphs and the user: thresholds go in, ratios come out, steps are counted.

A site is known by the parameter that it trains, not by its place in a graph: layers may share one graph, and
one model may have several. All state hangs weakly on those parameters and goes when they go.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._torch_compat import unwrap_compiled
from .config import SkipLoraConfig, checked_threshold, match_sites
from .errors import UsageError

_PENDING_LIMIT = 1024
"""Backwards whose ratios may wait on the device before they are read."""


@dataclass(frozen=True)
class Slot:
    """Where a graph's call carries a site.

    Attributes:
        position: of the parameter that identifies the site among the graph's inputs.
        name: the site's path relative to the module that was compiled.
        depth: how many trailing parts the parameter's path has beyond that.
        adapter: name of the adapter on its layer.
        rank: r.
    """

    position: int
    name: str
    depth: int
    adapter: str
    rank: int


@dataclass(frozen=True)
class SiteState:
    """The state of one gated adapter, as :func:`sites` reports it.

    Attributes:
        name: module path of the adapted layer.
        adapter: name of the adapter on that layer.
        rank: r.
        ratio: ``M = ||Δh||₂ / ||h||₂`` in the last forward that had a backward; NaN before the first.
        threshold: τ. What the warm-up and probing do to it is not shown here.
        skipped: whether the gate was shut in the last backward.
        skip_rate: share of the backwards after the warm-up in which it was shut, from 0 to 1.
        backwards: number of backwards so far, the warm-up included.
    """

    name: str
    adapter: str
    rank: int
    ratio: float
    threshold: float
    skipped: bool
    skip_rate: float
    backwards: int


@dataclass
class StepClock:
    """Counts training steps: optimizer steps if attached to an optimizer, else backwards."""

    steps: int = 0
    attached: bool = False


@dataclass
class _LiveSite:
    """The state of a site as the runtime keeps it."""

    config: SkipLoraConfig
    slot: Slot
    name: str
    threshold: float
    clock: StepClock
    ratio: float = math.nan
    skipped: bool = False
    backwards: int = 0
    counted: int = 0
    shut: int = 0
    overridden: bool = False

    def rename(self, name: str) -> None:
        if name != self.name:
            self.name = name
            if not self.overridden:
                self.threshold = self.config.threshold_of(name)

    def gating_threshold(self) -> float:
        """Return τ for this step: 0, which keeps the gate open, in the warm-up and when probing."""
        after = self.clock.steps - self.config.warmup_steps
        probing = self.config.probe_every > 0 and (after + 1) % self.config.probe_every == 0
        return 0.0 if after < 0 or probing else self.threshold

    def warmed_up(self) -> bool:
        return self.clock.steps >= self.config.warmup_steps

    def record(self, ratio: float, open: bool, counted: bool) -> None:
        self.ratio, self.skipped = ratio, not open
        self.backwards += 1
        self.counted += counted
        self.shut += counted and not open

    def snapshot(self) -> SiteState:
        rate = self.shut / self.counted if self.counted else 0.0
        return SiteState(
            self.name,
            self.slot.adapter,
            self.slot.rank,
            self.ratio,
            self.threshold,
            self.skipped,
            rate,
            self.backwards,
        )


@dataclass(frozen=True)
class _Registry:
    """All live state of the process, keyed weakly by parameter, and what has not been read yet."""

    sites: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    names: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    clocks: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    pending: deque[_Backward] = field(default_factory=deque)

    def site(self, key: Tensor, slot: Slot, config: SkipLoraConfig) -> _LiveSite:
        """Return the site of ``key``: as it was, if it was compiled under the same options, else afresh."""
        known: _LiveSite | None = self.sites.get(key)
        if known is None or known.config != config:
            name = name_of(key, slot)
            clock = self.clocks.get(key) or StepClock()
            known = self.sites[key] = _LiveSite(config, slot, name, config.threshold_of(name), clock)
        return known

    def flush(self) -> None:
        """Read the ratios of past backwards; waits for the device."""
        while self.pending:
            self.pending.popleft().record()


@dataclass(frozen=True)
class _Backward:
    """One backward of one graph, its ratios still on the device."""

    sites: tuple[_LiveSite, ...]
    counted: tuple[bool, ...]
    ratios: Tensor
    opens: Tensor

    def record(self) -> None:
        uses: dict[int, list[tuple[_LiveSite, float, bool, bool]]] = {}
        for row in zip(self.sites, self.ratios.tolist(), self.opens.tolist(), self.counted, strict=True):
            uses.setdefault(id(row[0]), []).append(row)
        for rows in uses.values():
            # Tied layers use an adapter more than once in a forward; that is one backward of one site.
            site, _, _, counted = rows[0]
            ratios = [ratio for _, ratio, _, _ in rows]
            ratio = math.nan if any(map(math.isnan, ratios)) else max(ratios)
            site.record(ratio, any(open for _, _, open, _ in rows), counted)


class GatedGraph:
    """A compiled graph as Dynamo calls it: without thresholds going in and ratios coming out.

    Args:
        compiled: takes the graph's inputs and the thresholds, float32 ``[n]``; returns the graph's outputs,
            the ratios, float32 ``[n]``, and the decisions, bool ``[n]``.
        slots: the ``n`` sites.
        config: the options they were compiled with.
        layer: an adapted layer, or what of it is known; while it is in eval mode every gate is open and nothing is
            counted. The adapted layer and not the compiled module, as a training loop may compile a function, or a
            wrapper in training mode around a model in eval mode.
    """

    def __init__(
        self, compiled: Callable[..., Any], slots: Sequence[Slot], config: SkipLoraConfig, layer: nn.Module | None
    ) -> None:
        self._compiled = compiled
        self._slots = tuple(slots)
        self._config = config
        self._layer = weakref.ref(layer) if layer is not None else lambda: None
        self._bindings = WeakTensorKeyDictionary()

    def __call__(self, *args: Any) -> list[Any]:
        layer = self._layer()
        training = layer is None or layer.training
        binding = self._bind(args)
        *outputs, ratios, opens = self._compiled(*args, binding.thresholds(training))
        if training:
            binding.count_backward_of(outputs, ratios, opens)
        return outputs

    def _bind(self, args: Sequence[Any]) -> _Binding:
        """Return the sites that this call's parameters belong to: one graph may serve many layers."""
        first = args[self._slots[0].position]
        binding: _Binding | None = self._bindings.get(first)
        if binding is None or not binding.is_current(args, self._slots):
            keys = [args[slot.position] for slot in self._slots]
            sites = tuple(_registry.site(key, slot, self._config) for key, slot in zip(keys, self._slots, strict=True))
            binding = self._bindings[first] = _Binding(sites, [weakref.ref(key) for key in keys], first.device)
        return binding


class _Binding:
    """The sites of one call, and the vector of thresholds that it takes."""

    def __init__(self, sites: tuple[_LiveSite, ...], keys: list[weakref.ref[Tensor]], device: torch.device) -> None:
        self._sites = sites
        self._keys = keys
        self._device = device
        self._values: tuple[float, ...] = ()
        self._vector = torch.empty(0)

    def is_current(self, args: Sequence[Any], slots: Sequence[Slot]) -> bool:
        return all(key() is args[slot.position] for key, slot in zip(self._keys, slots, strict=True)) and all(
            _registry.sites.get(key()) is site for key, site in zip(self._keys[:1], self._sites[:1], strict=True)
        )

    def thresholds(self, training: bool) -> Tensor:
        """Return float32 ``[n]``; the same tensor until a value changes."""
        values = tuple(site.gating_threshold() if training else 0.0 for site in self._sites)
        if values != self._values:
            self._values = values
            self._vector = torch.tensor(values, dtype=torch.float32).to(self._device)
        return self._vector

    def count_backward_of(self, outputs: Iterable[Any], ratios: Tensor, opens: Tensor) -> None:
        """Have the first backward through ``outputs`` count as a step and leave its ratios to be read."""
        waiting = [_Backward(self._sites, tuple(site.warmed_up() for site in self._sites), ratios, opens)]

        def count(_: Any) -> None:
            if waiting:
                _count(waiting.pop())

        for grad_fn in {out.grad_fn for out in outputs if isinstance(out, Tensor) and out.grad_fn is not None}:
            grad_fn.register_prehook(count)


def _count(backward: _Backward) -> None:
    _registry.pending.append(backward)
    for clock in {id(site.clock): site.clock for site in backward.sites}.values():
        if not clock.attached:
            clock.steps += 1
    if len(_registry.pending) > _PENDING_LIMIT:
        _registry.flush()


_registry = _Registry()


def learn_names(model: nn.Module) -> None:
    """Remember what the parameters of ``model`` are called in it, unless a larger module's names are known."""
    for name, parameter in model.named_parameters():
        known = _registry.names.get(parameter, "")
        if len(name) > len(known):
            _registry.names[parameter] = name
            site: _LiveSite | None = _registry.sites.get(parameter)
            if site is not None:
                site.rename(name_of(parameter, site.slot))


def name_of(key: Tensor, slot: Slot) -> str:
    """Return the path of the adapted layer, as long a one as is known."""
    known = _registry.names.get(key)
    return ".".join(known.split(".")[: -slot.depth]) if known else slot.name


def has_states(model: nn.Module) -> bool:
    """Return whether any parameter of ``model`` belongs to a gated site."""
    return any(parameter in _registry.sites for parameter in model.parameters())


def sites(model: nn.Module) -> list[SiteState]:
    """Return the state of each gated adapter of ``model``, in the model's order.

    Ratios stay on the device until they are asked for, so this waits for the backwards so far. Empty before
    the first training forward, which is when graphs are compiled.

    Args:
        model: the model that was compiled, or a module of which it is a part.
    """
    return [site.snapshot() for site in _live_sites(model)]


def set_threshold(model: nn.Module, threshold: float, sites: str = "*") -> None:
    """Set τ of some adapters; takes effect at the next forward, without a recompile.

    Args:
        model: the compiled model.
        threshold: at least 0; 0 never skips, ``inf`` always.
        sites: glob over site names.

    Raises:
        ConfigError: the threshold is not such a number, or no site matches; the message lists the sites.
        UsageError: no site is known yet.
    """
    value = checked_threshold(threshold)
    live = list(_live_sites(model))
    if not live:
        raise UsageError(
            "no gated adapter is known yet: they are found at the first training forward of a model compiled "
            'with backend="skiplora". To set thresholds before that, use options={"threshold": ...}.'
        )
    chosen = set(match_sites(sites, [site.name for site in live]))
    for site in live:
        if site.name in chosen:
            site.threshold, site.overridden = value, True


def _live_sites(model: nn.Module) -> Iterator[_LiveSite]:
    model = unwrap_compiled(model)
    learn_names(model)
    _registry.flush()
    for parameter in model.parameters():
        site: _LiveSite | None = _registry.sites.get(parameter)
        if site is not None and parameter.requires_grad:  # else it was frozen since, and is gated no more
            yield site


@dataclass(frozen=True)
class Attachment:
    """What :func:`attach` made; ``remove()`` undoes it."""

    clock: StepClock
    _handle: Any

    def remove(self) -> None:
        """Stop counting the optimizer's steps; backwards count again, from the number of steps there were."""
        self._handle.remove()
        for parameter in [parameter for parameter, clock in _registry.clocks.items() if clock is self.clock]:
            # One clock each: graphs that hold a part of the sites would otherwise count one backward several times.
            clock = _registry.clocks[parameter] = StepClock(self.clock.steps)
            site: _LiveSite | None = _registry.sites.get(parameter)
            if site is not None:
                site.clock = clock


def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Attachment:
    """Count the steps of ``optimizer`` as the model's training steps.

    Warm-up and probing are counted in steps. Without this each backward is one, which differs as soon as
    gradients are accumulated.

    Args:
        model: the model, before or after it is compiled.
        optimizer: an optimizer over its parameters; a wrapper with an ``.optimizer`` inside will do.

    Raises:
        UsageError: ``optimizer`` is none, or trains no parameter of ``model``.
    """
    model, optimizer = unwrap_compiled(model), _innermost(optimizer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _check_optimizer(optimizer, trained)
    learn_names(model)
    known: list[_LiveSite] = [_registry.sites[p] for p in trained if p in _registry.sites]
    clock = StepClock(max((site.clock.steps for site in known), default=0), attached=True)
    for parameter in trained:
        _registry.clocks[parameter] = clock
    for site in known:
        site.clock = clock

    def count(*_: Any) -> None:
        clock.steps += 1

    return Attachment(clock, optimizer.register_step_post_hook(count))


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in trained):
        raise UsageError("attach: the optimizer trains no parameter of this model; give the model's own optimizer")
