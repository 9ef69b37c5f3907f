"""What a user asks of a gated model while it trains: its sites, and to set their thresholds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ._torch_compat import unwrapped
from .config import checked_threshold, match_sites
from .errors import UsageError
from .live_site import LiveSite, SiteState
from .policy import Threshold
from .registry import flush, learn_names, owners_in, sites_of, trained_parameters


def sites(model: nn.Module) -> list[SiteState]:
    """Return the state of each gated adapter of ``model``, in the model's order.

    Ratios stay on the device until they are asked for, so this waits for the backwards so far. Empty before
    the first training forward, which is when graphs are compiled.

    Args:
        model: the model that was compiled, or a module of which it is a part.
    """
    return [site.snapshot() for site in live_sites(model)]


def set_threshold(model: nn.Module, threshold: float, sites: str = "*") -> None:
    """Set τ of some adapters, without a recompile.

    It takes effect at the next forward; with ``decision="previous"``, whose decisions hold for a step, at the next
    step whose first forward is still to come.

    Args:
        model: the compiled model.
        threshold: at least 0; 0 never skips, ``inf`` always.
        sites: glob over site names.

    Raises:
        ConfigError: the threshold is not such a number, or no site matches; the message lists the sites.
        UsageError: no site is known yet, or the policy looks at no threshold.
    """
    value = checked_threshold(threshold)
    live = list(live_sites(model))
    if not live:
        raise UsageError(
            "no gated adapter is known yet: they are found at the first training forward of a model compiled "
            'with backend="skiplora". To set thresholds before that, use options={"threshold": ...}.'
        )
    chosen = set(match_sites(sites, [site.name for site in live]))
    for site in live:
        if site.name in chosen:
            _check_policy(site)
            site.threshold, site.overridden = value, True
            if site.controller.config.decision == "current":
                site.controller.forget()


def _check_policy(site: LiveSite) -> None:
    policy = type(site.controller.policy)
    if policy.__module__.startswith(Threshold.__module__.rpartition(".")[0]) and policy is not Threshold:
        raise UsageError(
            f"set_threshold: the policy {policy.__name__} sets the thresholds of {site.name} itself; only the policy "
            "'threshold', or one of your own, looks at those that are set here"
        )


def has_states(model: nn.Module) -> bool:
    """Return whether any parameter of ``model`` belongs to a gated site."""
    return any(True for _ in sites_of(model.parameters(), owners_in(model)))


def live_sites(model: nn.Module) -> Iterator[LiveSite]:
    """Yield the sites of ``model`` that train: what was frozen since is gated no more."""
    model = unwrapped(model)
    learn_names(model)
    flush()
    yield from sites_of(trained_parameters(model), owners_in(model))
