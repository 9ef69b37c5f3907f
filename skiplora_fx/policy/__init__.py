"""Who decides which gates may shut: the policies, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .base import OPEN, SHUT, Costs, Observation, Policy, SiteHistory, needs, site_id
from .budget import Budget
from .by_block import CyclicBlocks, RandomBlocks
from .by_prefix import Freeze, Multirate, Prefix, Progressive, Schedule
from .by_threshold import Quantile, Threshold
from .wrappers import MinActive, Only, Probe, WarmUp

__all__ = [
    "OPEN",
    "POLICIES",
    "SHUT",
    "Budget",
    "Costs",
    "CyclicBlocks",
    "Freeze",
    "MinActive",
    "Multirate",
    "Observation",
    "Only",
    "Policy",
    "Prefix",
    "Probe",
    "Progressive",
    "Quantile",
    "RandomBlocks",
    "Schedule",
    "SiteHistory",
    "Threshold",
    "WarmUp",
    "make_policy",
    "needs",
    "site_id",
    "with_run",
]

POLICIES: Mapping[str, type[Policy]] = {
    "threshold": Threshold,
    "quantile": Quantile,
    "prefix": Prefix,
    "budget": Budget,
    "progressive": Progressive,
    "multirate": Multirate,
    "schedule": Schedule,
    "random": RandomBlocks,
    "cyclic": CyclicBlocks,
    "freeze": Freeze,
}
"""Every policy that has a name."""


def make_policy(policy: object, options: Mapping[str, Any]) -> Any:
    """Return the policy that ``options={"policy": policy, "policy_kwargs": options}`` means.

    Args:
        policy: a name of :data:`POLICIES`, or an object with a method ``decide``, which is returned as it is.
        options: keyword options of a policy that is given by name.

    Raises:
        ConfigError: there is no such policy or option, an option is out of range, or an object is none.
    """
    if isinstance(policy, str):
        return _by_name(policy, options)
    if not callable(getattr(policy, "decide", None)) or isinstance(policy, type):
        raise ConfigError(
            f"policy must be one of {', '.join(map(repr, POLICIES))}, or an object with a method "
            f"decide(observation), got {policy!r}"
        )
    if options:
        raise ConfigError(
            f"policy_kwargs is for policies given by name; {type(policy).__name__} is an object already, so give it "
            "its options where it is made"
        )
    return policy


def with_run(policy: object, options: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Return a policy's options, completed by what is known of the run, where it goes by that and was not told.

    Args:
        policy: as for :func:`make_policy`; only one that is given by name is completed.
        options: the policy's own.
        known: what is known, by the names of :attr:`Policy.of_the_run`.
    """
    wanted = POLICIES[policy].of_the_run if isinstance(policy, str) and policy in POLICIES else ()
    return {**{name: value for name, value in known.items() if name in wanted}, **options}


def _by_name(name: str, options: Mapping[str, Any]) -> Policy:
    if name not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(map(repr, POLICIES))}, or an object, got {name!r}")
    made = POLICIES[name]
    known = list(inspect.signature(made).parameters)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"policy_kwargs: policy {name!r} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return made(**options)
