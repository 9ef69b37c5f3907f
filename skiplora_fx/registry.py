"""All live state of the process: sites, names and step clocks by parameter, controllers by model.

A site is known by the parameter that it trains, not by its place in a graph: layers may share one graph, and
one model may have several. All state hangs weakly on those parameters and goes when they go.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._torch_compat import is_constant_name
from .config import SkipLoraConfig
from .controller import Controller
from .errors import UsageError
from .live_site import LiveSite, Slot, StepClock

_PENDING_LIMIT = 1024
"""Backwards whose ratios may wait on the device before they are read."""


@dataclass(frozen=True)
class _Registry:
    sites: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    names: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    clocks: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    controllers: weakref.WeakKeyDictionary[nn.Module, list[Controller]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    pending: deque[Callable[[], None]] = field(default_factory=deque)


_registry = _Registry()


def site_of(parameters: Sequence[Tensor], slot: Slot, controller: Controller) -> LiveSite:
    """Return the site that a call carries: as it was, if it was compiled under the same options, else afresh.

    Args:
        parameters: what the call carries; ``slot`` says where.
        slot: the site's.
        controller: who decides for it if it is new.
    """
    key = parameters[slot.position]
    known: LiveSite | None = _registry.sites.get(key)
    if known is not None and known.controller.config == controller.config:
        return known
    name = name_of(key, slot)
    threshold = controller.config.threshold_of(name)
    clock = _registry.clocks.get(key) or StepClock()
    trained = tuple(weakref.ref(parameters[position]) for position in slot.trained)
    site = _registry.sites[key] = LiveSite(controller, slot, name, threshold, clock, weakref.ref(key), trained)
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
    return _registry.sites.get(key) is site


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
            site: LiveSite | None = _registry.sites.get(parameter)
            if site is not None:
                site.rename(name_of(parameter, site.slot))


def name_of(key: Tensor, slot: Slot) -> str:
    """Return the path of the adapted layer, as long a one as is known."""
    known = _registry.names.get(key)
    return ".".join(known.split(".")[: -slot.depth]) if known and slot.depth else slot.name


def sites_of(parameters: Iterable[Tensor]) -> Iterator[LiveSite]:
    """Yield the sites that any of ``parameters`` is the key of."""
    for parameter in parameters:
        site: LiveSite | None = _registry.sites.get(parameter)
        if site is not None:
            yield site


def trained_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters of ``model`` that train, and those that a gated graph in it was last called with."""
    lifted = (
        key for module in model.modules() if hasattr(module, "gated_parameters") for key in module.gated_parameters()
    )
    known = {id(parameter): parameter for parameter in (*model.parameters(), *lifted)}
    return [parameter for parameter in known.values() if parameter.requires_grad]


def set_clock(parameter: Tensor, clock: StepClock) -> None:
    """Count the steps of a parameter's site by ``clock``, of a site still to be found as well."""
    _registry.clocks[parameter] = clock
    for site in sites_of([parameter]):
        site.clock = clock


def parameters_counted_by(clock: StepClock) -> list[Tensor]:
    """Return the parameters whose steps ``clock`` counts."""
    return [parameter for parameter, known in _registry.clocks.items() if known is clock]
