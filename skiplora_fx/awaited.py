"""The sites of a checkpoint that no forward has met yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import SkipLoraConfig
from .live_site import LiveSite, saved_history
from .policy import SiteHistory, site_id
from .saved_state import SavedController


class AwaitedSites:
    """Hands out the states of a checkpoint's sites, each once.

    Args:
        saved: what the checkpoint says of their controller.
        step: the one in which it was loaded.
    """

    def __init__(self, saved: SavedController, step: int) -> None:
        self.saved = saved
        self._step = step
        self._order = [_id(state) for state in saved.sites]
        self._left: dict[int, Mapping[str, Any]] = dict(enumerate(saved.sites))

    def holds(self, site: LiveSite) -> bool:
        """Return whether the checkpoint knows a site."""
        return site.id in self._order

    def take(self, site: LiveSite) -> Mapping[str, Any] | None:
        """Return the state of a site; None if there is none, or it has been taken."""
        for position, state in self._left.items():
            if _id(state) == site.id:
                return self._left.pop(position)
        return None

    def among(
        self, sites: Sequence[LiveSite], step: int, config: SkipLoraConfig
    ) -> list[tuple[LiveSite | None, SiteHistory]]:
        """Return the histories of all sites: of those that were met, and of those that are still to be.

        A forward shows a model one graph after the other. In the first step after a checkpoint was loaded a policy is
        shown the whole model all the same, as it would be if the run had not been interrupted.
        """
        if step != self._step or not self._left:
            return [(site, site.history()) for site in sites]
        training = [(position, state) for position, state in self._left.items() if state["trains"]]
        rows: list[tuple[int, LiveSite | None, SiteHistory]] = [
            *((position, None, saved_history(state, config)) for position, state in training),
            *((self._place_of(site), site, site.history()) for site in sites),
        ]
        return [(site, history) for _, site, history in sorted(rows, key=lambda row: row[0])]

    def states_among(self, sites: Sequence[LiveSite]) -> list[Mapping[str, Any]]:
        """Return the states of ``sites``, and of those that are still to be met, in the order of the forward."""
        rows = [*self._left.items(), *((self._place_of(site), site.state_dict()) for site in sites)]
        return [state for _, state in sorted(rows, key=lambda row: row[0])]

    def _place_of(self, site: LiveSite) -> int:
        return self._order.index(site.id) if self.holds(site) else len(self._order)


def _id(state: Mapping[str, Any]) -> str:
    return site_id(state["name"], state["adapter"])
