"""All live state of the process: sites, names and step clocks by parameter, controllers by model.

A site is known by the parameter that it trains, not by its place in a graph: layers may share one graph, and
one model may have several. All state hangs weakly on those parameters and goes when they go.

Whatever the backend compiles of a parameter is one site. Each graph that runs by itself, as ``apply`` returns it, has
one of its own; so sites and clocks are kept by *owner* as well: the graph's runtime, or :data:`BACKEND`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._torch_compat import is_constant_name
from .config import SkipLoraConfig
from .controller import Controller
from .errors import UsageError
from .live_site import LiveSite, Slot, StepClock


class _Backend:
    """Owns the sites of everything that the backend compiles."""


BACKEND = _Backend()

_PENDING_LIMIT = 1024
"""Backwards whose ratios may wait on the device before they are read."""


_Kept = TypeVar("_Kept")


class _ByParameter(Generic[_Kept]):
    """Something of a parameter for each owner; holds on to neither."""

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def of(self, parameter: Tensor) -> weakref.WeakKeyDictionary[object, _Kept]:
        """Return what there is of a parameter, by owner."""
        kept: weakref.WeakKeyDictionary[object, _Kept] | None = self._kept.get(parameter)
        return weakref.WeakKeyDictionary() if kept is None else kept

    def set(self, parameter: Tensor, owner: object, value: _Kept) -> None:
        self._kept.setdefault(parameter, weakref.WeakKeyDictionary())[owner] = value

    def parameters(self) -> Iterator[Tensor]:
        """Yield the parameters that live."""
        yield from list(self._kept)


@dataclass(frozen=True)
class _Registry:
    sites: _ByParameter[LiveSite] = field(default_factory=lambda: _ByParameter())
    names: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    clocks: _ByParameter[StepClock] = field(default_factory=lambda: _ByParameter())
    controllers: weakref.WeakKeyDictionary[nn.Module, list[Controller]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    pending: deque[Callable[[], None]] = field(default_factory=deque)


_registry = _Registry()


def site_of(parameters: Sequence[Tensor], slot: Slot, controller: Controller, owner: object = BACKEND) -> LiveSite:
    """Return the site that a call carries: as it was, if it was compiled under the same options, else afresh.

    Args:
        parameters: what the call carries; ``slot`` says where.
        slot: the site's.
        controller: who decides for it if it is new.
        owner: whose site it is.
    """
    key = parameters[slot.position]
    known = _registry.sites.of(key).get(owner)
    if known is not None and known.controller.config == controller.config:
        return known
    name = name_of(key, slot)
    threshold = controller.config.threshold_of(name)
    clock = _registry.clocks.of(key).get(owner) or StepClock()
    trained = tuple(weakref.ref(parameters[position]) for position in slot.trained)
    site = LiveSite(controller, slot, name, threshold, clock, weakref.ref(key), trained)
    _registry.sites.set(key, owner, site)
    controller.add(site)
    return site


def controller_of(model: nn.Module | None, config: SkipLoraConfig) -> Controller:
    """Return who decides for ``model`` under ``config``: the same for all of its graphs.

    Args:
        model: the outermost module that is known; if None, nobody shares the controller.
        config: the options of the compile.

    Raises:
        UsageError: the policy is an object that decides for another model.
    """
    if model is None:
        return Controller(config, flush)
    _check_free(config.policy, model)
    controllers = _registry.controllers.setdefault(model, [])
    for controller in controllers:
        if controller.config == config:
            return controller
    controllers.append(Controller(config, flush))
    return controllers[-1]


def _check_free(policy: object, model: nn.Module) -> None:
    if isinstance(policy, str):
        return
    for other, controllers in _registry.controllers.items():
        if other is not model and any(controller.policy is policy for controller in controllers):
            raise UsageError(
                f"the policy {type(policy).__name__} decides for another model already ({type(other).__name__}). It "
                "keeps what it knows of one model's adapters, so give each model an object of its own."
            )


def is_live(key: Tensor, site: LiveSite) -> bool:
    """Return whether ``site`` is what ``key`` is known as."""
    return any(known is site for known in _registry.sites.of(key).values())


def leave_to_read(read: Callable[[], None]) -> None:
    """Have ``read`` called when somebody asks for what is still on a device."""
    _registry.pending.append(read)
    if len(_registry.pending) > _PENDING_LIMIT:
        flush()


def flush() -> None:
    """Read the ratios of past backwards; waits for the device."""
    while _registry.pending:
        _registry.pending.popleft()()


def learn_names(model: nn.Module) -> None:
    """Remember what the parameters of ``model`` are called in it, unless a larger module's names are known."""
    for name, parameter in model.named_parameters():
        if is_constant_name(name):
            continue
        known = _registry.names.get(parameter, "")
        if len(name) > len(known):
            _registry.names[parameter] = name
            for site in _registry.sites.of(parameter).values():
                site.rename(name_of(parameter, site.slot))


def name_of(key: Tensor, slot: Slot) -> str:
    """Return the path of the adapted layer, as long a one as is known."""
    known = _registry.names.get(key)
    return ".".join(known.split(".")[: -slot.depth]) if known and slot.depth else slot.name


def owners_in(model: nn.Module) -> tuple[object, ...]:
    """Return who owns a model's sites: the runtimes of the graphs in it that run by themselves, and the backend."""
    return (*(module for module in model.modules() if hasattr(module, "gated_parameters")), BACKEND)


def sites_of(parameters: Iterable[Tensor], owners: Sequence[object] = (BACKEND,)) -> Iterator[LiveSite]:
    """Yield the sites that any of ``parameters`` is the key of.

    Those of graphs that run by themselves come instead of the backend's.

    Args:
        parameters: as they come.
        owners: as :func:`owners_in` gives them.
    """
    for parameter in parameters:
        known = _registry.sites.of(parameter)
        own = [known[owner] for owner in owners if owner is not BACKEND and owner in known]
        yield from own or [known[owner] for owner in owners if owner is BACKEND and owner in known]


def trained_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters of ``model`` that train, and those that a gated graph in it was last called with."""
    lifted = (
        key for module in model.modules() if hasattr(module, "gated_parameters") for key in module.gated_parameters()
    )
    known = {id(parameter): parameter for parameter in (*model.parameters(), *lifted)}
    return [parameter for parameter in known.values() if parameter.requires_grad]


def set_clock(parameter: Tensor, clock: StepClock, owners: Iterable[object] = (BACKEND,)) -> None:
    """Count the steps of a parameter's sites by ``clock``, of a site still to be found as well."""
    for owner in owners:
        _registry.clocks.set(parameter, owner, clock)
        site = _registry.sites.of(parameter).get(owner)
        if site is not None:
            site.clock = clock


def counted_by(clock: StepClock) -> list[tuple[Tensor, list[object]]]:
    """Return the parameters whose steps ``clock`` counts, and for which owners."""
    found = [
        (parameter, [owner for owner, known in _registry.clocks.of(parameter).items() if known is clock])
        for parameter in _registry.clocks.parameters()
    ]
    return [(parameter, owners) for parameter, owners in found if owners]
