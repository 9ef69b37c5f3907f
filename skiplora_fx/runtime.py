"""What happens between a compiled graph and the user: thresholds go in, ratios come out, steps are counted."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._torch_compat import current_backward
from .config import SkipLoraConfig
from .controller import Controller
from .enclosing import model_of, owner_of
from .host_copy import HostCopy, begin_copy, forget_copy_of, to_device
from .live_site import LiveSite, Slot
from .passes.flops import Flops
from .registry import BACKEND, at_rest, controller_of, home_of, is_live, learn_home, leave_to_read, site_of
from .stopwatch import Stopwatch
from .surroundings import Surroundings

_ALONE = Surroundings()


class GatedGraph:
    """A compiled graph as Dynamo calls it: without thresholds going in and ratios coming out.

    Args:
        compiled: takes the graph's inputs and the thresholds, float32 ``[n + k]``; returns the graph's outputs,
            the ratios, float32 ``[n]``, and the decisions, bool ``[n + k]``.
        slots: the ``n`` sites.
        config: the options they were compiled with.
        root: the module it was compiled for, as far as that is known.
        flops: what the backward costs, once it is compiled.
        surroundings: what it has to do with other graphs, with ``k`` borders to them.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        slots: Sequence[Slot],
        config: SkipLoraConfig,
        root: nn.Module | None,
        flops: Callable[[], Flops | None],
        surroundings: Surroundings = _ALONE,
    ) -> None:
        self._compiled = compiled
        self._slots = tuple(slots)
        self._config = config
        self._root = weakref.ref(root) if root is not None else lambda: None
        self._flops = flops
        self._surroundings = surroundings
        self._bindings = WeakTensorKeyDictionary()

    def __call__(self, *args: Any) -> list[Any]:
        binding = self._bind(args)
        training = binding.is_training()
        recompute = training and binding.is_recomputed()
        decided = binding.first_values() if recompute else binding.values(training)
        values = (*decided, *self._surroundings.thresholds(args, training))
        thresholds = binding.vector(values)
        *outputs, ratios, opens = self._compiled(*args, thresholds)
        if training:  # what is repeated as well: above it something may be repeated too
            self._surroundings.note(outputs, values)
        if training and not recompute:
            binding.count_backward_of(outputs, ratios, opens)
        else:
            forget_copy_of(opens)  # a CUDA graph decides in the same memory each time
        return outputs

    def _bind(self, args: Sequence[Any]) -> Binding:
        """Return the sites that this call's parameters belong to: one graph may serve many layers, and many models."""
        key = args[self._slots[0].position]
        binding: Binding | None = self._bindings.get(key)
        if binding is None or not binding.is_current(args) or not binding.is_of(home_of(key)):
            running = model_of(key, self._root())
            if running is not None:
                learn_home(running)
            model = home_of(key)
            binding = bind(args, self._slots, controller_of(model, self._config), self._flops)
            binding.layer = owner_of(key, model)
            self._bindings[key] = binding
        return binding


def bind(
    parameters: Sequence[Tensor],
    slots: Sequence[Slot],
    controller: Controller,
    flops: Callable[[], Flops | None],
    owner: object = BACKEND,
) -> Binding:
    """Return the sites of ``owner`` that a call carries, and have ``controller`` decide for them.

    Args:
        parameters: what the call carries.
        slots: where in it the sites are.
        controller: who decides for the model that they belong to.
        flops: what the backward costs, once it is compiled.
        owner: whose sites they are.
    """
    sites = tuple(site_of(parameters, slot, controller, owner) for slot in slots)
    controller.add_graph(sites, flops)
    return Binding(sites, slots, parameters[slots[0].position].device)


class TrainingWithoutAutograd:
    """A graph that runs without autograd in a model that trains, as in a checkpoint with ``use_reentrant=True``.

    When the layer is repeated with autograd its model's forward runs no more; here it does, and is remembered.

    Args:
        compiled: takes the graph's inputs.
        position: of a parameter among them.
        root: the module it was compiled for, as far as that is known.
    """

    def __init__(self, compiled: Callable[..., Any], position: int, root: nn.Module | None) -> None:
        self._compiled = compiled
        self._position = position
        self._root = weakref.ref(root) if root is not None else lambda: None

    def __call__(self, *args: Any) -> Any:
        key = args[self._position]
        if home_of(key) is None:
            running = model_of(key, self._root())
            if running is not None and running.training:
                learn_home(running)
        return self._compiled(*args)


class Binding:
    """The sites of one call, and the vector of thresholds that it takes.

    Attributes:
        layer: a part of an adapted layer; while it is in eval mode every gate is open and nothing is counted. Not the
            compiled module, as a training loop may compile a function, or a wrapper in training mode around a model
            in eval mode. None if it is not known.
    """

    def __init__(self, sites: tuple[LiveSite, ...], slots: Sequence[Slot], device: torch.device) -> None:
        self._sites = sites
        self._slots = slots
        # What is decided before the forward is decided on the host, and no device has to tell it.
        held = sites[0].controller.config.decision == "previous"
        self._device = torch.device("cpu") if held else device
        self._values: tuple[float, ...] = ()
        self._vector = torch.empty(0)
        self._waiting: deque[weakref.ref[_Waiting]] = deque()
        self._begun_outside = False
        self._counted_in = -1
        self._counted_with: tuple[float, ...] = (0.0,) * len(sites)
        self.layer: weakref.ref[nn.Module] | None = None

    def is_training(self) -> bool:
        """Return whether the layer is in training mode, as far as that is known."""
        layer = self.layer() if self.layer is not None else None
        return layer is None or layer.training

    def is_recomputed(self) -> bool:
        """Return whether a forward that begins now is one again for the backward that is running.

        Activation checkpointing repeats a forward when its backward comes. The other kind runs the first one without
        autograd: no forward of it was seen outside of a backward.
        """
        backward = current_backward()
        return backward >= 0 and (self._begun_outside or self._counted_in == backward)

    def first_values(self) -> tuple[float, ...]:
        """Return what :meth:`values` returned for the forward that is repeated: the oldest that waits.

        Of borders nothing is kept: one layer may be used more than once, and only what lies below it tells its uses
        apart. An input that is handed back to it for the repeated forward still knows what made it.
        """
        if self._counted_in == current_backward():
            return self._counted_with
        waiting = self._still_waiting()
        return waiting[0].values if waiting else self._counted_with

    def _still_waiting(self) -> list[_Waiting]:
        """Return the forwards that may still have a backward, the oldest first."""
        alive = [forward for known in self._waiting if (forward := known()) is not None]
        self._waiting = deque(map(weakref.ref, alive))
        return alive

    def is_current(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether these are the sites of a call that carries ``parameters``, under the options they have now."""
        same = (
            site.key() is at_rest(parameters[slot.position])
            for site, slot in zip(self._sites, self._slots, strict=True)
        )
        return all(same) and is_live(parameters[self._slots[0].position], self._sites[0])

    def is_of(self, model: nn.Module | None) -> bool:
        """Return whether who decides for the sites decides for all of ``model``."""
        return self._sites[0].controller.model is model

    def keys(self) -> list[Tensor]:
        """Return the parameters that the sites are known by, as far as they live."""
        return [key for site in self._sites if (key := site.key()) is not None]

    def values(self, training: bool) -> tuple[float, ...]:
        """Return the threshold of each site for a forward that begins now."""
        return tuple(site.controller.threshold(site) if training else 0.0 for site in self._sites)

    def vector(self, values: tuple[float, ...]) -> Tensor:
        """Return float32 ``[n + k]``: thresholds, of borders too; the same tensor until a value changes."""
        if values != self._values:
            self._values = values
            self._vector = to_device(values, self._device)
        return self._vector

    def forward(self) -> Forward:
        """Return a forward that begins now."""
        step = self._sites[0].clock.now()
        return Forward(self._sites, step, tuple(site.warmed_up() for site in self._sites))

    def count_backward_of(self, outputs: Iterable[Any], ratios: Tensor, opens: Tensor) -> None:
        """Have the first backward through ``outputs`` count as a step and leave its ratios to be read."""
        # The hooks alone hold on to it: it goes with the graph that autograd keeps of this forward.
        waiting = [_Waiting(self.forward().finish(ratios, opens), self._values[: len(self._sites)])]
        self._still_waiting()
        self._waiting.append(weakref.ref(waiting[0]))
        self._begun_outside = self._begun_outside or current_backward() < 0
        clock = self._sites[0].clock
        running: list[Stopwatch] = []

        def begin(_: Any) -> None:
            if waiting:
                begun = waiting.pop()
                self._counted_in, self._counted_with = current_backward(), begun.values
                count(begun.backward)
                if clock.timed:
                    running.append(Stopwatch(ratios.device))

        def end(*_: Any) -> None:
            if running:
                running[0].stop()
                leave_to_read(partial(clock.add_time, running.pop()))

        for grad_fn in {out.grad_fn for out in outputs if isinstance(out, Tensor) and out.grad_fn is not None}:
            grad_fn.register_prehook(begin)
            if clock.timed:
                grad_fn.register_hook(end)


@dataclass(frozen=True)
class _Waiting:
    """A forward whose backward is still to come, and the thresholds of its sites."""

    backward: Backward
    values: tuple[float, ...]


class Forward:
    """A forward in eager mode, whose gates ask for their decisions when the backward arrives."""

    def __init__(self, sites: tuple[LiveSite, ...], step: int, counted: tuple[bool, ...]) -> None:
        self._sites = sites
        self._step = step
        self._counted = counted
        self._finished: Backward | None = None
        self._opens: list[Any] = []

    def finish(self, ratios: Tensor, opens: Tensor) -> Backward:
        """Keep what the forward found: ratios, float32 ``[n]``, and decisions, bool ``[n]``."""
        self._finished = Backward(self._sites, self._step, self._counted, HostCopy(ratios.detach()), begin_copy(opens))
        return self._finished

    def is_open(self, sites: Iterable[int]) -> bool:
        """Return whether any of ``sites`` is open. The first to ask has the step counted, and waits for the device."""
        if not self._opens:
            assert self._finished is not None
            self._opens = self._finished.opens.tolist()
            count(self._finished)
        return any(self._opens[site] for site in sites)


@dataclass(frozen=True)
class Backward:
    """One backward of one graph, what is known of it on its way to the host.

    Attributes:
        sites: of the graph.
        step: the one that its forward belongs to.
        counted: for each site whether the warm-up was over.
        ratios: float32 ``[n]``.
        opens: the decisions, bool ``[n]``; those of borders may be behind them.
    """

    sites: tuple[LiveSite, ...]
    step: int
    counted: tuple[bool, ...]
    ratios: HostCopy
    opens: HostCopy

    def record(self, anew: Collection[LiveSite] = ()) -> None:
        """Tell each site; ``anew`` are those that accumulate gradients from here on."""
        uses: dict[LiveSite, list[tuple[float, bool, bool]]] = {}
        opens = self.opens.tolist()[: len(self.sites)]
        for site, *row in zip(self.sites, self.ratios.tolist(), opens, self.counted, strict=True):
            uses.setdefault(site, []).append(tuple(row))
        for site, rows in uses.items():
            # Tied layers use an adapter more than once in a forward; that is one backward of one site.
            ratios = [ratio for ratio, _, _ in rows]
            ratio = math.nan if any(map(math.isnan, ratios)) else max(ratios)
            _, _, counted = rows[0]
            site.record(ratio, any(open for _, open, _ in rows), counted, site in anew)


def count(backward: Backward) -> None:
    """Count a backward as a step, unless steps are an optimizer's, and keep its ratios to be read later."""
    running = current_backward()
    clock = backward.sites[0].clock
    began = running >= 0 and clock.attached
    anew = {site for site in backward.sites if site.begins_anew(running)} if began else set()
    leave_to_read(partial(backward.record, anew))
    clock.count_backward(backward.step)
