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

from ._torch_compat import is_constant_name, unwrap_compiled
from .config import SkipLoraConfig, checked_threshold, match_sites
from .errors import UsageError
from .site import Site

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

    @classmethod
    def of(cls, site: Site, position: int) -> Slot:
        """Return the slot of a site whose key is the input at ``position``."""
        return cls(position, site.name, site.key_depth, site.adapter, site.rank)


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

    def _bind(self, args: Sequence[Any]) -> Binding:
        """Return the sites that this call's parameters belong to: one graph may serve many layers."""
        keys = [args[slot.position] for slot in self._slots]
        binding: Binding | None = self._bindings.get(keys[0])
        if binding is None or not binding.is_current(keys):
            binding = self._bindings[keys[0]] = bind(keys, self._slots, self._config)
        return binding


def bind(keys: Sequence[Tensor], slots: Sequence[Slot], config: SkipLoraConfig) -> Binding:
    """Return the sites that are known by ``keys``; those that are new begin under ``config``."""
    sites = tuple(_registry.site(key, slot, config) for key, slot in zip(keys, slots, strict=True))
    return Binding(sites, [weakref.ref(key) for key in keys], keys[0].device)


class Binding:
    """The sites of one call, and the vector of thresholds that it takes."""

    def __init__(self, sites: tuple[_LiveSite, ...], keys: list[weakref.ref[Tensor]], device: torch.device) -> None:
        self._sites = sites
        self._keys = keys
        self._device = device
        self._values: tuple[float, ...] = ()
        self._vector = torch.empty(0)

    def is_current(self, keys: Sequence[Tensor]) -> bool:
        """Return whether these are the sites of ``keys``, under the options they have now."""
        same = all(known() is key for known, key in zip(self._keys, keys, strict=True))
        return same and _registry.sites.get(keys[0]) is self._sites[0]

    def keys(self) -> list[Tensor]:
        """Return the parameters that the sites are known by, as far as they live."""
        return [key for known in self._keys if (key := known()) is not None]

    def thresholds(self, training: bool) -> Tensor:
        """Return float32 ``[n]``; the same tensor until a value changes."""
        values = tuple(site.gating_threshold() if training else 0.0 for site in self._sites)
        if values != self._values:
            self._values = values
            self._vector = torch.tensor(values, dtype=torch.float32).to(self._device)
        return self._vector

    def forward(self) -> Forward:
        """Return a forward that begins now."""
        return Forward(self._sites, tuple(site.warmed_up() for site in self._sites))

    def count_backward_of(self, outputs: Iterable[Any], ratios: Tensor, opens: Tensor) -> None:
        """Have the first backward through ``outputs`` count as a step and leave its ratios to be read."""
        waiting = [self.forward().finish(ratios, opens)]

        def on_backward(_: Any) -> None:
            if waiting:
                count(waiting.pop())

        for grad_fn in {out.grad_fn for out in outputs if isinstance(out, Tensor) and out.grad_fn is not None}:
            grad_fn.register_prehook(on_backward)


class Forward:
    """A forward in eager mode, whose gates ask for their decisions when the backward arrives."""

    def __init__(self, sites: tuple[_LiveSite, ...], counted: tuple[bool, ...]) -> None:
        self._sites = sites
        self._counted = counted
        self._finished: _Backward | None = None
        self._opens: list[bool] = []

    def finish(self, ratios: Tensor, opens: Tensor) -> _Backward:
        """Keep what the forward found: ratios, float32 ``[n]``, and decisions, bool ``[n]``."""
        self._finished = _Backward(self._sites, self._counted, ratios.detach(), opens)
        return self._finished

    def is_open(self, sites: Iterable[int]) -> bool:
        """Return whether any of ``sites`` is open. The first to ask has the step counted, and waits for the device."""
        if not self._opens:
            assert self._finished is not None
            self._opens = self._finished.opens.tolist()
            count(self._finished)
        return any(self._opens[site] for site in sites)


def count(backward: _Backward) -> None:
    """Count a backward as a step, unless steps are an optimizer's, and keep its ratios to be read later."""
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
        if is_constant_name(name):
            continue
        known = _registry.names.get(parameter, "")
        if len(name) > len(known):
            _registry.names[parameter] = name
            site: _LiveSite | None = _registry.sites.get(parameter)
            if site is not None:
                site.rename(name_of(parameter, site.slot))


def name_of(key: Tensor, slot: Slot) -> str:
    """Return the path of the adapted layer, as long a one as is known."""
    known = _registry.names.get(key)
    return ".".join(known.split(".")[: -slot.depth]) if known and slot.depth else slot.name


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
    for parameter in trained_parameters(model):  # what was frozen since is gated no more
        site: _LiveSite | None = _registry.sites.get(parameter)
        if site is not None:
            yield site


def trained_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters of ``model`` that train, and those that a gated graph in it was last called with."""
    lifted = (
        key for module in model.modules() if hasattr(module, "gated_parameters") for key in module.gated_parameters()
    )
    known = {id(parameter): parameter for parameter in (*model.parameters(), *lifted)}
    return [parameter for parameter in known.values() if parameter.requires_grad]


def steps_of(parameter: Tensor) -> int:
    """Return the number of steps that the site of ``parameter`` has made; 0 if it has none."""
    site: _LiveSite | None = _registry.sites.get(parameter)
    return site.clock.steps if site is not None else 0


def set_clock(parameter: Tensor, clock: StepClock) -> None:
    """Count the steps of a parameter's site by ``clock``, of a site still to be found as well."""
    _registry.clocks[parameter] = clock
    site: _LiveSite | None = _registry.sites.get(parameter)
    if site is not None:
        site.clock = clock


def parameters_counted_by(clock: StepClock) -> list[Tensor]:
    """Return the parameters whose steps ``clock`` counts."""
    return [parameter for parameter, known in _registry.clocks.items() if known is clock]
