"""Asks a model's policy once for each step, and tells every gate what it said."""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import nn

from ._torch_compat import runs_in_ddp, runs_in_join
from .awaited import AwaitedSites
from .config import SkipLoraConfig
from .errors import ConfigError, UsageError, reason_of
from .live_site import LiveSite
from .model_graphs import FlopsOf, ModelGraphs
from .policy import OPEN, SHUT, MinActive, Observation, Only, Probe, SiteHistory, Threshold, WarmUp, needs
from .policy.wrappers import Wrapper
from .ranks import is_sharded, several
from .saved_state import SavedController
from .step_clock import StepClock


class Controller:
    """Decides for one model, once for each step.

    Args:
        config: the options of the model's compile.
        flush: brings what is still on a device into the sites' histories.
        model: the outermost module that is known, if any is.

    Attributes:
        clock: counts the model's steps.
    """

    def __init__(self, config: SkipLoraConfig, flush: Callable[[], None], model: nn.Module | None = None) -> None:
        self.config = config
        self.policy = config.make_policy()
        answering = _Answering(self.policy)
        self._said = _Said(Only(answering, config.only) if config.only else answering)
        self._asked = _wrapped(self._said, config)
        self._flush = flush
        self._model: Callable[[], nn.Module | None] = weakref.ref(model) if model is not None else lambda: None
        self._graphs = ModelGraphs()
        self._step = -1
        self._decided: dict[LiveSite, float] = {}
        self._shown: dict[LiveSite, float] = {}
        self._warned = False
        self._awaited: AwaitedSites | None = None
        self.count_by(StepClock())

    @property
    def model(self) -> nn.Module | None:
        """The outermost module that is known, as long as it lives."""
        return self._model()

    def belong_to(self, model: nn.Module) -> None:
        """Decide for a larger model that has been met."""
        self._model = weakref.ref(model)

    def count_by(self, clock: StepClock) -> None:
        """Have ``clock`` count the model's steps from now on."""
        self.clock = clock
        clock.serve(self)
        self.forget()

    def add_graph(self, sites: Sequence[LiveSite], flops: FlopsOf) -> None:
        """Take in a graph's sites, in the order of its forward, and who knows what its backward costs.

        Raises:
            ConfigError: a checkpoint that holds these sites was made under another policy.
        """
        for site in set(sites) - set(self._graphs.sites()):
            self._take_in(site)
        self._graphs.add(sites, flops)

    def sites(self) -> list[LiveSite]:
        """Return the sites that live and train, in the order of the forward."""
        return [site for site in self._own_sites() if site.trains()]

    def _own_sites(self) -> list[LiveSite]:
        return [site for site in self._graphs.sites() if site.controller is self]

    def is_abandoned(self) -> bool:
        """Return whether all its sites have been compiled anew under other options, or are gone."""
        return not self._own_sites()

    def threshold(self, site: LiveSite) -> float:
        """Return τ of a site in its present step."""
        step = self.clock.now()
        if step != self._step or site not in self._decided:
            self._decide(step)
        return self._decided.get(site, OPEN)

    def forget(self) -> None:
        """Ask the policy again in this step."""
        self._step, self._decided = -1, {}

    def shown_threshold(self, site: LiveSite) -> float:
        """Return τ as the policy gives it, without warm-up and probing."""
        if not self.config.may_shut(site.name):
            return OPEN
        return site.threshold if isinstance(self.policy, Threshold) else self._shown.get(site, site.threshold)

    def _decide(self, step: int) -> None:
        if several():
            self._check_what_ranks_share()
        if needs(self.policy, "history") or self.config.decision == "previous":
            self._flush()
        self._warn_if_nobody_counts(step)
        observation, sites = self._observe(step)
        thresholds = self._asked.decide(observation)
        before = self._decided if step == self._step else {}
        self._shown, self._step, self._decided = {}, step, {}
        for site, threshold, by_policy in zip(sites, thresholds, self._said.thresholds, strict=True):
            if site is not None:
                self._shown[site] = by_policy
                # What was said in this step stands: a site may have been met since, in the first forward.
                self._decided[site] = before.get(site, self._held(site, threshold))

    def _check_what_ranks_share(self) -> None:
        """Raise UsageError where ranks would wait for each other for ever, or the copies of the model would part."""
        if self.config.sync == "mean" and runs_in_join():
            raise UsageError(
                "sync='mean': inside DistributedDataParallel.join() a rank that has run out of batches steps no more, "
                "and the others would wait for it at their next step. Set sync='none', with which each rank decides "
                "for itself, or give all ranks as many batches."
            )
        if self.config.sync == self.config.skipped_grad == "none" and (runs_in_ddp() or self._is_sharded()):
            raise UsageError(
                "skipped_grad='none' with sync='none': each rank would keep from its optimizer what it has skipped "
                "itself, also where another has not, and the ranks' parameters would part. Set sync='mean', with which "
                "all skip the same, or skipped_grad='zero'."
            )

    def _is_sharded(self) -> bool:
        return any(is_sharded(parameter) for site in self.sites() for parameter in site.parameters())

    def _warn_if_nobody_counts(self, step: int) -> None:
        if not step or self._warned or self.clock.attached:
            return
        lost = _lost_without_optimizer(self.config)
        if lost:
            self._warned = True
            warnings.warn(
                f"{lost} Call skiplora_fx.attach(model, optimizer) before training{_ON_EVERY_RANK * several()}.",
                stacklevel=2,
            )

    def _observe(self, step: int) -> tuple[Observation, list[LiveSite | None]]:
        """Return what the policy sees, and whose it is: None for a site that no forward has met yet."""
        sites = self.sites()
        if self._awaited is not None:
            rows = self._awaited.among(sites, step, self.config)
            if len(rows) > len(sites):
                return Observation(step, tuple(history for _, history in rows)), [site for site, _ in rows]
        return self._observe_met(step, sites), list(sites)

    def _observe_met(self, step: int, sites: Sequence[LiveSite]) -> Observation:
        costs = self._graphs.costs(sites) if needs(self.policy, "costs") else None
        if costs is None:
            return Observation(step, tuple(site.history() for site in sites))
        saved = zip(sites, costs.alone, costs.added, strict=True)
        return Observation(step, tuple(site.history(alone, added) for site, alone, added in saved), costs)

    def _held(self, site: LiveSite, threshold: float) -> float:
        """Return a threshold that decides before the forward where that is asked for, by the last ratio."""
        if self.config.decision == "current":
            return threshold
        if math.isnan(site.ratio) and site.backwards:
            return OPEN  # as in a graph that decides by its own forward: what diverges is not skipped
        if threshold in (OPEN, SHUT):
            return threshold
        # As a graph compares them, so that M = τ decides alike.
        return SHUT if site.ratio < array("f", [threshold])[0] else OPEN

    def saved(self) -> SavedController:
        """Return what a checkpoint has to keep of the policy and the sites, those that were not met yet as well."""
        state = self.policy.state_dict() if hasattr(self.policy, "state_dict") else {}
        sites = self._own_sites()
        rows = self._awaited.states_among(sites) if self._awaited is not None else [s.state_dict() for s in sites]
        return SavedController(type(self.policy).__name__, state, rows)

    def check_policy(self, saved: SavedController) -> None:
        """Raise ConfigError if ``saved`` was made under another policy, or cannot be loaded by this one."""
        name = type(self.policy).__name__
        if saved.policy != name:
            raise ConfigError(
                f"{saved.source} was made under policy {saved.policy}, and this run has {name}. Resume with the same "
                "policy, or from a checkpoint without its state."
            )
        if hasattr(self.policy, "load_state_dict"):
            try:
                copy.deepcopy(self.policy).load_state_dict(saved.state)
            except Exception as error:
                found = f"({reason_of(error)}): {saved.state!r:.200}"
                raise ConfigError(f"{saved.source}: its state of policy {name} cannot be loaded {found}") from error

    def resume(self, saved: SavedController) -> None:
        """Go on from what :meth:`saved` returned. Sites that are still to be met are restored when they are.

        Raises:
            ConfigError: it was made under another policy.
        """
        self.check_policy(saved)
        if hasattr(self.policy, "load_state_dict"):
            self.policy.load_state_dict(saved.state)
        self._awaited = AwaitedSites(saved, self.clock.steps)
        for site in self._own_sites():
            self._restore(site)
        self.forget()

    def _take_in(self, site: LiveSite) -> None:
        saved = self.clock.saved_with(site.id)
        if saved is not None:
            self.resume(saved)
            self.clock.saved.remove(saved)
        self._restore(site)

    def _restore(self, site: LiveSite) -> None:
        """Have a site go on from a checkpoint, if there is one that holds it and nobody has."""
        state = self._awaited.take(site) if self._awaited is not None else None
        if state is not None:
            site.load_state_dict(state)


@dataclass(eq=False)
class _Answering(Wrapper):
    """Refuses what is no answer of the policy."""

    def decide(self, observation: Observation) -> Sequence[float]:
        return _checked(self.inner, self.inner.decide(observation), observation.sites)


@dataclass(eq=False)
class _Said(Wrapper):
    """Remembers what the policy said, before warm-up and probing have their way."""

    thresholds: Sequence[float] = ()

    def decide(self, observation: Observation) -> Sequence[float]:
        self.thresholds = self.inner.decide(observation)
        return self.thresholds


def _checked(policy: object, said: Any, sites: Sequence[SiteHistory]) -> list[float]:
    start = f"policy {type(policy).__name__}: decide() returned"
    if not isinstance(said, Iterable):
        raise ConfigError(f"{start} {said!r}; it must return a threshold for each of the {len(sites)} sites")
    thresholds = list(said)
    if len(thresholds) != len(sites):
        raise ConfigError(f"{start} {len(thresholds)} thresholds for {len(sites)} sites")
    for site, threshold in zip(sites, thresholds, strict=True):
        if not isinstance(threshold, Real) or math.isnan(threshold) or threshold < 0:
            raise ConfigError(
                f"{start} {threshold!r} for {site.id}; it must be a number >= 0 (0 keeps the gate open, inf shut)"
            )
    return [float(threshold) for threshold in thresholds]


def _lost_without_optimizer(config: SkipLoraConfig) -> str:
    """Return what the options ask for and only happens at an optimizer's step, in words."""
    lost = []
    if config.skipped_grad == "none":
        lost.append(
            "skipped_grad='none' takes effect at an optimizer's step, and skiplora knows of no optimizer: "
            "gradients of what is skipped stay zeros."
        )
    if config.sync == "mean" and several():
        lost.append(
            "sync='mean' has the ranks tell each other at an optimizer's step what they saw, and skiplora knows of no "
            "optimizer: each rank decides for itself, as with sync='none'."
        )
    return " ".join(lost)


_ON_EVERY_RANK = ", on every rank"


def _wrapped(policy: Any, config: SkipLoraConfig) -> Any:
    policy = MinActive(policy, config.min_active) if config.min_active else policy
    policy = Probe(policy, config.probe_every, config.warmup_steps) if config.probe_every else policy
    return WarmUp(policy, config.warmup_steps) if config.warmup_steps else policy
