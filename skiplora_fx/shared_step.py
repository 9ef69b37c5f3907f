"""What the ranks tell each other at a step, after which all know the same of every site, and so decide alike."""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from ._torch_compat import compile_options_in, compile_options_of_process
from .controller import Controller
from .errors import UsageError
from .live_site import LiveSite, Seen
from .ranks import Ranks
from .registry import BACKEND, flush, owners_in, sites_of, trained_parameters

ALIKE = ("the parameters that train", "the options", "what is known from earlier steps")
"""What has to be the same on every rank before the first step that they share."""


class SharedSteps:
    """Has the ranks share what they saw of a model, once at each step.

    Args:
        model: the model.
        ranks: the processes that train it.
        logs: whether this one writes a log.

    Attributes:
        measured: whether any of them does: then all measure gradients.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, logs: bool) -> None:
        self.ranks = ranks
        self.measured = logs
        self._places: list[LiveSite | None] = []
        self._model = weakref.ref(model)
        self._begun = False
        self._warned = False

    def share(self, controllers: Sequence[Controller], step: int) -> None:
        """Add up what all ranks saw since the last call, and tell each site. Every rank has to call it at each step.

        One vector is exchanged, in which each parameter that trains has a place: its length is the same on all ranks,
        whatever each of them has met. A rank whose model has not run in training yet takes part as well, as the others
        may wait for it. With ``sync="none"`` nothing is exchanged, and on such a rank neither.

        Args:
            controllers: who decides for the model, as far as it has run.
            step: its number.

        Raises:
            UsageError: the ranks differ in what has to be the same; raised on all of them.
        """
        model = self._model()
        sharing = [controller for controller in controllers if controller.config.sync == "mean"]
        self._places = []
        if model is None or not self.ranks.several or not _exchanges(model, controllers):
            return
        flush()
        if not self._begun:
            self._begin(model, sharing)
        self._places = places = _places(model, sharing)
        rows = torch.tensor([_row(site) for site in places], dtype=torch.float64)
        for site, (met, *numbers) in zip(places, self.ranks.add_up(rows).tolist(), strict=True):
            if site is not None:
                total = Seen(*numbers)
                self._check(site, int(met), total, step)
                site.learn_from_all(total, self.ranks.size)

    def add_up(self, numbers: Mapping[LiveSite, float]) -> dict[LiveSite, float]:
        """Return a number of each site, added up over the ranks. Every rank has to call it, after :meth:`share`.

        Args:
            numbers: those of this rank; what it says nothing of counts as 0.
        """
        if not self.ranks.several:
            return dict(numbers)
        own = [0.0 if site is None else numbers.get(site, 0.0) for site in self._places]
        total = self.ranks.add_up(torch.tensor(own, dtype=torch.float64)).tolist() if own else []
        known = zip(self._places, total, strict=True)
        return {site: number for site, number in known if site is not None and site in numbers}

    def _begin(self, model: nn.Module, sharing: Sequence[Controller]) -> None:
        for controller in sharing:
            if controller.config.decision == "current":
                raise UsageError(
                    "sync='mean': the model has run in training before torch.distributed had a process group, so its "
                    "graphs decide for this process alone. Call init_process_group before the first forward."
                )
        known = (_parameters(model), _options(sharing), _state(sharing))
        told = self.ranks.gather(torch.tensor([int(self.measured), *map(_digest, known)]))
        measured, *digests = torch.stack(told).T.tolist()
        _check_alike(digests)
        self.measured, self._begun = any(measured), True

    def _check(self, site: LiveSite, met: int, total: Seen, step: int) -> None:
        """Warn, once, if the ranks have not decided alike."""
        alike = met == self.ranks.size and total.opens in (0, total.backwards)
        if alike or self._warned:
            return
        self._warned = True
        found = f"the gate of {site.name} was open in {total.opens:.0f} of {total.backwards:.0f} backwards"
        if met < self.ranks.size:
            found = f"only {met} of {self.ranks.size} ranks have run {site.name} in training"
        warnings.warn(
            f"sync='mean': {found} up to step {step}, so the ranks do not decide alike. Gradients are right all the "
            "same. All ranks should run the same layers, call set_threshold alike, and have a policy that answers "
            "alike: seed one that draws at random with the same number. With sync='none' each decides for itself.",
            stacklevel=2,
        )


def _exchanges(model: nn.Module, controllers: Sequence[Controller]) -> bool:
    """Return whether the ranks exchange anything: all answer alike, whatever each of them has met so far.

    The options that the parts of the model are compiled with say so, also where none has run yet. Where only something
    around the model is compiled, as a function or DistributedDataParallel, they are not to be found in it: then those
    of what has run do, and on a rank where nothing has, those of all that is compiled in the process.
    """
    graphs = {graph.config.sync for graph in owners_in(model) if graph is not BACKEND}
    known = graphs | _syncs(compile_options_in(model, "skiplora"))
    known = known or {controller.config.sync for controller in controllers}
    return "mean" in (known or _syncs(compile_options_of_process("skiplora")))


def _syncs(compiled: Sequence[Mapping[str, Any]]) -> set[str]:
    return {options.get("sync", "mean") for options in compiled}


def _places(model: nn.Module, sharing: Sequence[Controller]) -> list[LiveSite | None]:
    """Return for each parameter that trains the site that it identifies, if it does and the site is shared."""
    owners = owners_in(model)
    found = [next(sites_of([parameter], owners), None) for parameter in trained_parameters(model, owners)]
    return [site if site is not None and site.controller in sharing else None for site in found]


def _row(site: LiveSite | None) -> tuple[float, ...]:
    return (0.0, *Seen()) if site is None else (1.0, *site.unshared())


def _parameters(model: nn.Module) -> list[Any]:
    return [(name, parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _options(sharing: Sequence[Controller]) -> list[Any] | None:
    own = [option.name for option in fields(sharing[0].config) if option.name != "inductor"] if sharing else []
    return [{name: getattr(controller.config, name) for name in own} for controller in sharing] or None


def _state(sharing: Sequence[Controller]) -> list[Any] | None:
    """Return what policies remember, and what is known of the sites that a backward has met."""
    saved = [(controller.clock.steps, controller.saved()) for controller in sharing]
    return [(steps, one.state, [site for site in one.sites if site["backwards"]]) for steps, one in saved] or None


def _check_alike(told: Sequence[Sequence[int]]) -> None:
    """Raise if the ranks differ in any of :data:`ALIKE`, as far as each knows it.

    Args:
        told: for each of these what stands for it on each rank, 0 where it is not known.
    """
    for what, digests in zip(ALIKE, told, strict=True):
        knowing = {rank: digest for rank, digest in enumerate(digests) if digest}
        first = next(iter(knowing), 0)
        others = [str(rank) for rank, digest in knowing.items() if digest != knowing[first]]
        if others:
            raise UsageError(
                f"sync='mean': {what} differ between rank {first} and rank {', '.join(others[:8])}. Every rank has to "
                "build the same model, give the same options, attach the optimizer before training, and load the same "
                "checkpoint. With sync='none' each rank decides for itself."
            )


def _digest(value: Any) -> int:
    """Return a number of 63 bits that stands for ``value``; 0 for None."""
    if value is None:
        return 0
    text = json.dumps(value, sort_keys=True, default=lambda other: type(other).__qualname__)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 | 1
