"""All live state of the process: sites and names by parameter, controllers and attachments by model.

A site is known by the parameter that it trains, not by its place in a graph: layers may share one graph, and
one model may have several. All state hangs weakly on those parameters and goes when they go.

Whatever the backend compiles of a parameter is one site. Each graph that runs by itself, as ``apply`` returns it, has
one of its own; so sites are kept by *owner* as well: the graph's runtime, or :data:`BACKEND`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._torch_compat import gathered_parameters, is_constant_name
from .config import SkipLoraConfig
from .controller import Controller
from .errors import UsageError
from .live_site import LiveSite, Slot
from .step_clock import StepClock


class _Backend:
    """Owns the sites of everything that the backend compiles."""


BACKEND = _Backend()

_PENDING_LIMIT = 1024
"""Backwards whose ratios may wait on the device before they are read."""


class _SitesByParameter:
    """The sites that a parameter is the key of, by owner; holds on to neither."""

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def of(self, parameter: Tensor) -> weakref.WeakKeyDictionary[object, LiveSite]:
        """Return what there is of a parameter, by owner."""
        kept: weakref.WeakKeyDictionary[object, LiveSite] | None = self._kept.get(parameter)
        return weakref.WeakKeyDictionary() if kept is None else kept

    def set(self, parameter: Tensor, owner: object, site: LiveSite) -> None:
        self._kept.setdefault(parameter, weakref.WeakKeyDictionary())[owner] = site

    def parameters(self) -> Iterator[Tensor]:
        """Yield the parameters that live."""
        yield from list(self._kept)


class Attached(Protocol):
    """What counts the steps of a model's optimizer."""

    clock: StepClock

    def remove(self) -> None:
        """Stop counting."""


@dataclass(frozen=True)
class _Registry:
    sites: _SitesByParameter = field(default_factory=_SitesByParameter)
    names: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    homes: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    shards: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    controllers: weakref.WeakKeyDictionary[nn.Module, list[Controller]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    attached: weakref.WeakKeyDictionary[nn.Module, Attached] = field(default_factory=weakref.WeakKeyDictionary)
    pending: deque[Callable[[], None]] = field(default_factory=deque)
    reading: threading.RLock = field(default_factory=threading.RLock)


_registry = _Registry()


def site_of(parameters: Sequence[Tensor], slot: Slot, controller: Controller, owner: object = BACKEND) -> LiveSite:
    """Return the site that a call carries: as it was, if it was compiled under the same options, else afresh.

    Args:
        parameters: what the call carries; ``slot`` says where.
        slot: the site's.
        controller: who decides for it if it is new.
        owner: whose site it is.
    """
    key = at_rest(parameters[slot.position])
    known = _registry.sites.of(key).get(owner)
    if known is not None and known.controller.config == controller.config:
        known.controller = controller  # another one if a larger model has been met since
        _count_by_attached(controller, key, owner)
        return known
    if known is not None:
        known.replaced = True
    name = name_of(key, slot)
    threshold = controller.config.threshold_of(name)
    trained = tuple(weakref.ref(at_rest(parameters[position])) for position in slot.trained)
    site = LiveSite(controller, slot, name, threshold, weakref.ref(key), trained, position=_position_of(key))
    _registry.sites.set(key, owner, site)
    _count_by_attached(controller, key, owner)
    return site


def _count_by_attached(controller: Controller, key: Tensor, owner: object) -> None:
    attached = None if controller.clock.attached else _attached_to(key, owner)
    if attached is not None:
        controller.count_by(attached.clock)


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
    # Who was left for other options does not come back: the sites are new, and so is what is known of them.
    kept = [controller for controller in _registry.controllers.get(model, []) if not controller.is_abandoned()]
    same = next((controller for controller in kept if controller.config == config), None)
    if same is None:
        same = Controller(config, flush, model)
        kept.append(same)
    _registry.controllers[model] = kept
    return same


def _check_free(policy: object, model: nn.Module) -> None:
    if isinstance(policy, str):
        return
    for other, controllers in _registry.controllers.items():
        if other is not model and any(controller.policy is policy for controller in controllers):
            raise UsageError(
                f"the policy {type(policy).__name__} decides for another model already ({type(other).__name__}). It "
                "keeps what it knows of one model's adapters, so give each model an object of its own. torch.compile "
                "takes equal options for the same, so such objects must not be equal: @dataclass(eq=False)."
            )


def is_live(key: Tensor, site: LiveSite) -> bool:
    """Return whether ``site`` is what ``key`` is known as."""
    return any(known is site for known in _registry.sites.of(at_rest(key)).values())


def at_rest(parameter: Tensor) -> Tensor:
    """Return what the optimizer knows a parameter as: under ``fully_shard`` its shard, which takes the place of the
    whole one between forward and backward, and has the gradient. Sites are known by it.
    """
    shard: weakref.ref[Tensor] | None = _registry.shards.get(parameter) if _registry.shards else None
    found = shard() if shard is not None else None
    return parameter if found is None else found


def _learn_shards(model: nn.Module) -> None:
    for whole, shard in gathered_parameters(model):
        _registry.shards[whole] = weakref.ref(shard)


def leave_to_read(read: Callable[[], None]) -> None:
    """Have ``read`` called when somebody asks for what is still on a device."""
    _registry.pending.append(read)
    if len(_registry.pending) > _PENDING_LIMIT:
        flush()


def flush() -> None:
    """Read the ratios of past backwards; waits for the device, and for another thread that is reading them."""
    with _registry.reading:
        while _registry.pending:
            _registry.pending.popleft()()


def learn_names(model: nn.Module) -> None:
    """Remember what the parameters of ``model`` are called in it, unless a larger module's names are known."""
    for name, parameter in model.named_parameters():
        if is_constant_name(name):
            continue
        parameter = at_rest(parameter)
        known = _registry.names.get(parameter, "")
        if len(name) > len(known):
            _registry.names[parameter] = name
            for site in _registry.sites.of(parameter).values():
                site.rename(name_of(parameter, site.slot))


@dataclass(frozen=True)
class _Home:
    """Where a parameter belongs: the outermost module that has run with it, and its place among the module's own."""

    model: weakref.ref[nn.Module]
    position: int


def learn_home(model: nn.Module) -> None:
    """Remember that ``model`` runs with its parameters, unless one runs that it is a part of."""
    _learn_shards(model)
    learn_names(model)
    for position, parameter in enumerate(map(at_rest, model.parameters())):
        home = home_of(parameter)
        if home is None or home is model or any(part is home for part in model.modules()):
            _registry.homes[parameter] = _Home(weakref.ref(model), position)
            for site in _registry.sites.of(parameter).values():
                site.position = position
    _adopt(model)


def _adopt(model: nn.Module) -> None:
    """Have those who decide for parts of ``model`` that ran by themselves go on deciding, now for the whole of it."""
    known = [part for part in model.modules() if part is not model and part in _registry.controllers]
    for controller in [controller for part in known for controller in _registry.controllers.pop(part)]:
        controller.belong_to(model)
        _registry.controllers.setdefault(model, []).append(controller)


def home_of(parameter: Tensor) -> nn.Module | None:
    """Return the outermost module that has run with ``parameter``, as far as one is known and lives."""
    home: _Home | None = _registry.homes.get(at_rest(parameter))
    return home.model() if home is not None else None


def _position_of(parameter: Tensor) -> int:
    home: _Home | None = _registry.homes.get(parameter)
    return home.position if home is not None else 0


def name_of(key: Tensor, slot: Slot) -> str:
    """Return the path of the adapted layer, as long a one as is known."""
    known = _registry.names.get(at_rest(key))
    return ".".join(known.split(".")[: -slot.depth]) if known and slot.depth else slot.name


def owners_in(model: nn.Module) -> tuple[Any, ...]:
    """Return who owns a model's sites: the runtimes of the graphs in it that run by themselves, and the backend."""
    # Asked at each step of several processes: a module is slow to say that it has no such attribute, its class is not.
    return (*(module for module in model.modules() if hasattr(type(module), "gated_parameters")), BACKEND)


def sites_of(parameters: Iterable[Tensor], owners: Sequence[object] = (BACKEND,)) -> Iterator[LiveSite]:
    """Yield the sites that any of ``parameters`` is the key of.

    Those of graphs that run by themselves come instead of the backend's.

    Args:
        parameters: as they come.
        owners: as :func:`owners_in` gives them.
    """
    for parameter in map(at_rest, parameters):
        known = _registry.sites.of(parameter)
        own = [known[owner] for owner in owners if owner is not BACKEND and owner in known]
        yield from own or [known[owner] for owner in owners if owner is BACKEND and owner in known]


def trained_parameters(model: nn.Module, owners: Sequence[Any] | None = None) -> list[Tensor]:
    """Return the parameters of ``model`` that train, and those that a gated graph in it was last called with.

    Args:
        model: the model.
        owners: as :func:`owners_in` gives them for it, where they are known.
    """
    graphs = (owner for owner in owners or owners_in(model) if owner is not BACKEND)
    lifted = (key for graph in graphs for key in graph.gated_parameters())
    known = {id(parameter): parameter for parameter in map(at_rest, (*model.parameters(), *lifted))}
    return [parameter for parameter in known.values() if parameter.requires_grad]


def note_attached(model: nn.Module, attached: Attached) -> None:
    """Have ``attached`` count the steps of all sites of ``model``, those still to be found as well.

    Whatever counted the steps of any of them is removed.
    """
    for other in _attached_like(model):
        other.remove()
    _registry.attached[model] = attached
    for controller in _controllers_of(model):
        controller.count_by(attached.clock)


def forget_attached(attached: Attached) -> None:
    """Have no more sites counted by ``attached``."""
    for model in [model for model, known in _registry.attached.items() if known is attached]:
        del _registry.attached[model]


def _controllers_of(model: nn.Module) -> list[Controller]:
    """Return who decides for the sites of a model."""
    sites = sites_of(trained_parameters(model), owners_in(model))
    return list(dict.fromkeys(site.controller for site in sites))


def clocks_of(model: nn.Module) -> list[StepClock]:
    """Return what counts the steps of a model's sites, or will when there are any."""
    met = (controller.clock for controller in _controllers_of(model))
    return list(dict.fromkeys([*met, *(attached.clock for attached in _attached_like(model))]))


def _attached_to(key: Tensor, owner: object) -> Attached | None:
    """Return what counts the steps of a model whose site this is."""
    for model, attached in _registry.attached.items():
        if owner in owners_in(model) and any(parameter is key for parameter in trained_parameters(model)):
            return attached
    return None


def _attached_like(model: nn.Module) -> list[Attached]:
    """Return what counts the steps of any of a model's sites; graphs that run by themselves have their own."""
    own, trained = set(owners_in(model)) - {BACKEND}, set(map(id, trained_parameters(model)))
    found = []
    for other, attached in _registry.attached.items():
        theirs = set(owners_in(other)) - {BACKEND}
        if (own & theirs or not own | theirs) and any(id(shared) in trained for shared in trained_parameters(other)):
            found.append(attached)
    return found
