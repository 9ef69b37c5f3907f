"""Asks a model's policy once for each step, and tells every gate what it said."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import SkipLoraConfig
from .costs import ModelCosts
from .errors import ConfigError
from .live_site import LiveSite
from .passes.flops import Flops
from .policy import OPEN, SHUT, MinActive, Observation, Probe, Threshold, WarmUp, make_policy, needs
from .policy.wrappers import Wrapper

_FlopsOf = Callable[[], "Flops | None"]


class Controller:
    """Decides for one model, once for each step.

    Args:
        config: the options of the model's compile.
        flush: brings what is still on a device into the sites' histories.
    """

    def __init__(self, config: SkipLoraConfig, flush: Callable[[], None]) -> None:
        self.config = config
        self.policy = make_policy(config.policy, config.policy_kwargs)
        self._said = _Said(self.policy)
        self._asked = _wrapped(self._said, config)
        self._flush = flush
        self._sites: list[weakref.ref[LiveSite]] = []
        self._flops: dict[tuple[weakref.ref[LiveSite], ...], _FlopsOf] = {}
        self._decided: dict[int, dict[LiveSite, float]] = {}
        self._shown: dict[LiveSite, float] = {}
        self._costs: ModelCosts | None = None
        self._warned = False
        self._restored: Mapping[str, Any] | None = None

    def add(self, site: LiveSite) -> None:
        """Take a site in; sites come in the order of the forward."""
        self._sites.append(weakref.ref(site))
        self.restore(site)

    def restore(self, site: LiveSite) -> None:
        """Have a site, and with the first one the policy, go on from what the site's clock has of a checkpoint.

        Raises:
            ConfigError: the checkpoint is another policy's.
        """
        saved = site.clock.saved
        if saved and self._restored is not saved:
            self._restored = saved
            self._load_policy(saved["policy"])
        if site.id in saved.get("sites", {}):
            site.load_state_dict(saved["sites"][site.id])
        self.forget()

    def add_graph(self, sites: Sequence[LiveSite], flops: _FlopsOf) -> None:
        """Note who knows what the backward of these sites' graph costs; None as long as it is not compiled."""
        self._flops[tuple(map(weakref.ref, sites))] = flops

    def sites(self) -> list[LiveSite]:
        """Return the sites that live and train."""
        return [site for known in self._sites if (site := known()) is not None and site.trains()]

    def threshold(self, site: LiveSite) -> float:
        """Return τ of a site in its present step."""
        step = site.clock.steps
        if site not in self._decided.get(step, {}):
            self._decide(step)
        return self._decided[step].get(site, OPEN)

    def forget(self) -> None:
        """Ask the policy again in this step."""
        self._decided.clear()

    def shown_threshold(self, site: LiveSite) -> float:
        """Return τ as the policy gives it, without warm-up and probing."""
        return site.threshold if isinstance(self.policy, Threshold) else self._shown.get(site, site.threshold)

    def _decide(self, step: int) -> None:
        if needs(self.policy, "history") or self.config.decision == "previous":
            self._flush()
        sites = self.sites()
        self._warn_if_nobody_counts(step, sites)
        thresholds = self._checked(self._asked.decide(self._observe(step, sites)), sites)
        self._shown = dict(zip(sites, self._said.thresholds, strict=True))
        before = self._decided.get(step, {})
        # What was said in this step stands: a site may have been met since, in the first forward.
        decided = {site: before.get(site, self._held(site, tau)) for site, tau in zip(sites, thresholds, strict=True)}
        self._decided = {known: taken for known, taken in self._decided.items() if known == step - 1} | {step: decided}

    def _warn_if_nobody_counts(self, step: int, sites: Sequence[LiveSite]) -> None:
        if step and not self._warned and self.config.skipped_grad == "none" and not sites[0].clock.attached:
            self._warned = True
            warnings.warn(
                "skipped_grad='none' takes effect at an optimizer's step, and skiplora knows of no optimizer: "
                "gradients of what is skipped stay zeros. Call skiplora_fx.attach(model, optimizer) before training.",
                stacklevel=2,
            )

    def _observe(self, step: int, sites: Sequence[LiveSite]) -> Observation:
        costs = self._model_costs(sites) if needs(self.policy, "costs") else None
        if costs is None:
            return Observation(step, tuple(site.history() for site in sites))
        saved = zip(sites, costs.alone, costs.added, strict=True)
        return Observation(step, tuple(site.history(alone, added) for site, alone, added in saved), costs)

    def _model_costs(self, sites: Sequence[LiveSite]) -> ModelCosts | None:
        """Return the costs of all graphs; None while one of them is not known."""
        positions = {site: position for position, site in enumerate(sites)}
        parts: list[tuple[Flops, tuple[int | None, ...]]] = []
        covered: set[int | None] = set()
        for known, flops_of in self._flops.items():
            members = [site() for site in known]
            if any(member in positions for member in members if member is not None):
                flops = flops_of()
                if flops is None:
                    return None
                at = tuple(positions.get(member) if member is not None else None for member in members)
                parts.append((flops, at))
                covered.update(at)
        if not covered >= set(positions.values()):
            return None
        found = ModelCosts(tuple(parts), len(sites))
        if found != self._costs:
            self._costs = found  # keeps what it has counted
        return self._costs

    def _held(self, site: LiveSite, threshold: float) -> float:
        """Return a threshold that decides before the forward where that is asked for, by the last ratio."""
        if self.config.decision == "current" or threshold in (OPEN, SHUT):
            return threshold
        return SHUT if site.ratio < threshold else OPEN

    def _checked(self, thresholds: Sequence[float], sites: Sequence[LiveSite]) -> list[float]:
        name = type(self.policy).__name__
        found = list(thresholds)
        if len(found) != len(sites):
            raise ConfigError(f"policy {name}: decide() returned {len(found)} thresholds for {len(sites)} sites")
        for site, threshold in zip(sites, found, strict=True):
            if not isinstance(threshold, (int, float)) or math.isnan(threshold) or threshold < 0:
                raise ConfigError(
                    f"policy {name}: decide() returned {threshold!r} for {site.id}; it must be a number >= 0 "
                    "(0 keeps the gate open, inf shut)"
                )
        return [float(threshold) for threshold in found]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the policy, and its name."""
        state = self.policy.state_dict() if hasattr(self.policy, "state_dict") else {}
        return {"name": type(self.policy).__name__, "state": state}

    def _load_policy(self, saved: Mapping[str, Any]) -> None:
        name = type(self.policy).__name__
        if saved["name"] != name:
            raise ConfigError(
                f"the checkpoint was made under policy {saved['name']}, and this run has {name}. Resume with the same "
                "policy, or from a checkpoint without its state."
            )
        if hasattr(self.policy, "load_state_dict"):
            self.policy.load_state_dict(saved["state"])


@dataclass(eq=False)
class _Said(Wrapper):
    """Remembers what the policy said, before anything around it has its way."""

    thresholds: Sequence[float] = ()

    def decide(self, observation: Observation) -> Sequence[float]:
        self.thresholds = self.inner.decide(observation)
        return self.thresholds


def _wrapped(policy: Any, config: SkipLoraConfig) -> Any:
    policy = MinActive(policy, config.min_active) if config.min_active else policy
    policy = Probe(policy, config.probe_every, config.warmup_steps) if config.probe_every else policy
    return WarmUp(policy, config.warmup_steps) if config.warmup_steps else policy
