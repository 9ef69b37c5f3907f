"""What a checkpoint keeps of sites and policies, of JSON's types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .live_site import SAVED
from .policy import site_id

FORMAT = 2

SOURCE = "the checkpoint"
"""What a state was read from, where nobody says."""


@dataclass(frozen=True)
class SavedController:
    """What is kept of one controller.

    Attributes:
        policy: the name of its policy's type.
        state: what the policy remembers.
        sites: the state of each site, as :meth:`~.live_site.LiveSite.state_dict` gives it, in the order of the forward.
        source: what it was read from, in words.
    """

    policy: str
    state: Mapping[str, Any]
    sites: Sequence[Mapping[str, Any]]
    source: str = SOURCE

    def holds(self, id: str) -> bool:
        """Return whether it knows a site of this id."""
        return any(site_id(state["name"], state["adapter"]) == id for state in self.sites)

    def to_json(self) -> dict[str, Any]:
        """Return it as :func:`read_state` reads it."""
        return {"policy": self.policy, "state": dict(self.state), "sites": list(map(dict, self.sites))}


def state_of(steps: int, run: str | None, controllers: Sequence[SavedController]) -> dict[str, Any]:
    """Return what a checkpoint has to keep: ``run`` is the log's name of the run, if there is a log."""
    saved = [controller.to_json() for controller in controllers]
    return {"format": FORMAT, "steps": steps, "run": run, "controllers": saved}


def read_state(state: Any, source: str = SOURCE) -> tuple[int, str | None, list[SavedController]]:
    """Return the number of steps, the log's name of the run, and what is kept of each controller.

    Args:
        state: as :func:`state_of` returned it, or JSON did.
        source: what it was read from, for errors.

    Raises:
        ConfigError: the state is none that this version has written; says what is wrong with it.
    """
    try:
        return _read_state(state, source)
    except _NotAState as error:
        what = "this is not what Attachment.state_dict() of this version returns"
        raise ConfigError(f"{source}: {what}: {error}") from None


class _NotAState(ValueError):
    """Says what is wrong with a state."""


def _read_state(state: Any, source: str) -> tuple[int, str | None, list[SavedController]]:
    _check(isinstance(state, Mapping), f"it is a {type(state).__name__}")
    whole = {"format", "steps", "run", "controllers"} <= state.keys()
    _check(whole, f"it holds {', '.join(map(str, state)) or 'nothing'}")
    _check(state["format"] == FORMAT, f"its format is {state['format']!r}, and this version writes {FORMAT}")
    steps, run, controllers = state["steps"], state["run"], state["controllers"]
    _check(_is_count(steps), f"its number of steps is {steps!r}")
    _check(isinstance(controllers, list), f"its controllers are a {type(controllers).__name__}")
    _check(run is None or isinstance(run, str), f"its run is {run!r}")
    return steps, run, [_read_controller(saved, source) for saved in controllers]


def _read_controller(saved: Any, source: str) -> SavedController:
    whole = isinstance(saved, Mapping) and {"policy", "state", "sites"} <= saved.keys()
    _check(whole, f"a controller in it is {str(saved)[:80]}")
    policy, state, sites = saved["policy"], saved["state"], saved["sites"]
    _check(isinstance(policy, str) and isinstance(state, Mapping), f"the policy in it is {policy!r}")
    _check(isinstance(sites, list), f"the sites in it are a {type(sites).__name__}")
    for site in sites:
        _check_site(site)
    return SavedController(policy, state, sites, source)


def _check_site(site: Any) -> None:
    _check(isinstance(site, Mapping), f"a site in it is {str(site)[:80]}")
    missing = sorted(SAVED.keys() - site.keys())
    _check(not missing, f"a site in it ({site.get('name')}) lacks {', '.join(missing)}")
    for name, is_right in SAVED.items():
        _check(is_right(site[name]), f"{name} of {site['name']} in it is {site[name]!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(right: bool, found: str) -> None:
    if not right:
        raise _NotAState(found)
