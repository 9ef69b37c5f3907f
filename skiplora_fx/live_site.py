"""The state of one gated adapter while its model trains."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, fx

from .divergence import warn_of_nan
from .policy import SiteHistory, site_id
from .site import Site

if TYPE_CHECKING:
    from .config import SkipLoraConfig
    from .controller import Controller
    from .step_clock import StepClock

_DECAY = 0.9
"""Of the moving mean and variance: a ratio's weight is halved after about seven backwards."""


@dataclass(frozen=True)
class Slot:
    """Where a graph's call carries a site.

    Attributes:
        position: of the parameter that identifies the site among what the call carries.
        name: the site's path relative to the module that was compiled.
        depth: how many trailing parts the parameter's path has beyond that.
        adapter: name of the adapter on its layer.
        rank: r.
        trained: positions of all parameters that the site trains.
    """

    position: int
    name: str
    depth: int
    adapter: str
    rank: int
    trained: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, carried: Mapping[fx.Node, int]) -> Slot:
        """Return the slot of a site in a call that carries these parameters of the graph, by their positions."""
        trained = tuple(carried[node] for node in site.trained)
        return cls(carried[site.key], site.name, site.key_depth, site.adapter, site.rank, trained)


@dataclass(frozen=True)
class SiteState:
    """The state of one gated adapter, as :func:`~skiplora_fx.sites` reports it.

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


class Seen(NamedTuple):
    """What was seen of a site since the ranks last told each other, or, added up, by all of them.

    Attributes:
        ratios: sum of M over the backwards.
        backwards: how many there were.
        opens: in how many of them its gate was open.
        counted: how many came after the warm-up.
        backwards_in_step: how many of them are in ``.grad``.
        opens_in_step: in how many of those its gate was open.
    """

    ratios: float = 0.0
    backwards: float = 0
    opens: float = 0
    counted: float = 0
    backwards_in_step: float = 0
    opens_in_step: float = 0


@dataclass(eq=False)
class LiveSite:
    """The state of a site as the runtime keeps it.

    Attributes:
        controller: who decides for it.
        key: the parameter that it is known by.
        trained: all parameters that it trains.
        threshold: τ as the options or the user give it.
        overridden: whether it was the user.
        position: of its key among the model's parameters.
        replaced: whether its parameters belong to another site now, as they were compiled under other options.
        backwards_in_step: number of backwards whose gradients are in ``.grad``.
        opens_in_step: in how many of them its gate was open.
    """

    controller: Controller
    slot: Slot
    name: str
    threshold: float
    key: weakref.ref[Tensor]
    trained: tuple[weakref.ref[Tensor], ...] = ()
    ratio: float = math.nan
    mean: float = math.nan
    variance: float = 0.0
    gradient_norm: float = math.nan
    skipped: bool = False
    since_open: int = 0
    backwards: int = 0
    counted: int = 0
    shut: int = 0
    overridden: bool = False
    position: int = 0
    replaced: bool = False
    backwards_in_step: int = 0
    opens_in_step: int = 0
    _begun_in: int = -1
    _seen: Seen = field(default_factory=Seen)

    @property
    def has_gradient(self) -> bool:
        """Whether its gate let a gradient into ``.grad`` since the last step; the scope ``"input"`` stops none."""
        return bool(self.backwards_in_step if self.controller.config.scope == "input" else self.opens_in_step)

    @property
    def id(self) -> str:
        """What a policy and a checkpoint call it."""
        return site_id(self.name, self.slot.adapter)

    @property
    def clock(self) -> StepClock:
        """What counts its steps."""
        return self.controller.clock

    def rename(self, name: str) -> None:
        """Note a longer path, under which another τ may be its own."""
        if name != self.name:
            self.name = name
            if not self.overridden:
                self.threshold = self.controller.config.threshold_of(name)

    def trains(self) -> bool:
        """Return whether its parameter still lives and requires a gradient."""
        key = self.key()
        return key is not None and key.requires_grad

    def parameters(self) -> list[Tensor]:
        """Return the parameters that it trains, as far as they live."""
        return [parameter for known in self.trained if (parameter := known()) is not None]

    def warmed_up(self) -> bool:
        """Return whether the warm-up is over."""
        return self.clock.now() >= self.controller.config.warmup_steps

    def begins_anew(self, backward: int) -> bool:
        """Return whether no gradient of an earlier backward is in ``.grad``: the optimizer has stepped, or was not to.

        A GradScaler leaves a step out, and a training loop may, without a word to anybody.

        Args:
            backward: which one is running, as several uses of an adapter in one are accumulated at its end.
        """
        key = self.key()
        if key is None or key.grad is not None or backward == self._begun_in:
            return False
        self._begun_in = backward
        return True

    def record(self, ratio: float, open: bool, counted: bool, anew: bool = False) -> None:
        """Note one backward: its ratio, whether the gate was open, whether the warm-up was over.

        Where several ranks decide together it is learnt from when they have told each other.

        Args:
            ratio: M.
            open: whether the gate was.
            counted: whether the warm-up was over.
            anew: what :meth:`begins_anew` returned at its beginning.
        """
        if anew:
            self.begin_step()
        self.backwards_in_step += 1
        self.opens_in_step += open
        if self._is_shared():
            seen = self._seen
            self._seen = Seen(seen.ratios + ratio, seen.backwards + 1, seen.opens + open, seen.counted + counted)
        else:
            self._learn(ratio, open, 1, int(counted))

    def unshared(self) -> Seen:
        """Return what the other ranks are still to be told."""
        return self._seen._replace(backwards_in_step=self.backwards_in_step, opens_in_step=self.opens_in_step)

    def learn_from_all(self, total: Seen, ranks: int) -> None:
        """Note what all ranks have seen, added up; where they had different numbers of backwards, the mean, rounded up.

        Args:
            total: the sum.
            ranks: how many there are.
        """
        self._seen = Seen()
        self.backwards_in_step, self.opens_in_step = int(total.backwards_in_step), int(total.opens_in_step)
        if total.backwards:
            backwards, counted = math.ceil(total.backwards / ranks), math.ceil(total.counted / ranks)
            self._learn(total.ratios / total.backwards, total.opens > 0, backwards, counted)

    def _is_shared(self) -> bool:
        ranks = self.clock.ranks
        return ranks is not None and ranks.several and self.controller.config.sync == "mean"

    def _learn(self, ratio: float, open: bool, backwards: int, counted: int) -> None:
        self.ratio, self.skipped = ratio, not open
        self.since_open = 0 if open else self.since_open + backwards
        self.backwards += backwards
        self.counted += counted
        self.shut += 0 if open else counted
        if math.isfinite(ratio):
            self._average(ratio)
        elif math.isnan(ratio):
            warn_of_nan(self.name, self.clock)

    def begin_step(self) -> None:
        """Forget what went into ``.grad``."""
        self.backwards_in_step = self.opens_in_step = 0

    def _average(self, ratio: float) -> None:
        """Move mean and variance (Finch, "Incremental calculation of weighted mean and variance", 2009, eq. 143)."""
        if math.isnan(self.mean):
            self.mean = ratio
            return
        difference = ratio - self.mean
        self.mean += (1 - _DECAY) * difference
        self.variance = _DECAY * (self.variance + (1 - _DECAY) * difference**2)

    def history(self, saves: int | None = None, adds: int | None = None) -> SiteHistory:
        """Return what a policy sees of it."""
        return SiteHistory(
            name=self.name,
            adapter=self.slot.adapter,
            threshold=self.threshold,
            ratio=self.ratio,
            mean=self.mean,
            variance=self.variance,
            gradient_norm=self.gradient_norm,
            since_open=self.since_open,
            backwards=self.backwards,
            saves=saves,
            adds=adds,
        )

    def snapshot(self) -> SiteState:
        """Return what the user sees of it."""
        rate = self.shut / self.counted if self.counted else 0.0
        threshold = self.controller.shown_threshold(self)
        name, adapter, rank = self.name, self.slot.adapter, self.slot.rank
        return SiteState(name, adapter, rank, self.ratio, threshold, self.skipped, rate, self.backwards)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep of it, of JSON's types; NaN as None, and infinity as a word."""
        kept = {name: _to_json(getattr(self, name)) for name in _SAVED_NUMBERS}
        return {"name": self.name, "adapter": self.slot.adapter, "trains": self.trains(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept; τ is that of the options, unless the user had set another."""
        for name in _SAVED_NUMBERS:
            if name != "threshold" or state["overridden"]:
                setattr(self, name, _from_json(state[name]))


def saved_history(state: Mapping[str, Any], config: SkipLoraConfig) -> SiteHistory:
    """Return what a policy would see of a site that a checkpoint knows and no forward has met yet."""
    threshold = _from_json(state["threshold"]) if state["overridden"] else config.threshold_of(state["name"])
    seen: dict[str, Any] = {name: _from_json(state[name]) for name in _SAVED_NUMBERS if name in _SEEN}
    return SiteHistory(**{**seen, "name": state["name"], "adapter": state["adapter"], "threshold": threshold})


_SAVED_NUMBERS = (
    "ratio",
    "mean",
    "variance",
    "gradient_norm",
    "skipped",
    "since_open",
    "backwards",
    "counted",
    "shut",
    "overridden",
    "threshold",
)
_SEEN = {seen.name for seen in fields(SiteHistory)}
_WORDS, _FLAGS, _COUNTS = (
    ("name", "adapter"),
    ("trains", "skipped", "overridden"),
    ("since_open", "backwards", "counted", "shut"),
)
SAVED: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(_SAVED_NUMBERS, lambda value: value in (None, "inf") or type(value) in (int, float)),
    **dict.fromkeys(_COUNTS, lambda value: type(value) is int),
    **dict.fromkeys(_FLAGS, lambda value: type(value) is bool),
    **dict.fromkeys(_WORDS, lambda value: type(value) is str),
}
"""What :meth:`LiveSite.state_dict` keeps, and what is a value of it."""


def _to_json(value: float) -> float | str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def _from_json(value: float | str | None) -> float:
    return math.nan if value is None else math.inf if isinstance(value, str) else value
