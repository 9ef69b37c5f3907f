"""What is skipped."""

from __future__ import annotations

import random
from collections.abc import Sequence

PREFIXES = {
    "nothing": 0.0,
    "lower quarter": 0.25,
    "lower half": 0.5,
    "lower three quarters": 0.75,
    "everything": 1.0,
}
"""Masks that skip the lowest adapters, with the share that they skip."""

MASKS = (*PREFIXES, "random 60 %")


def shut_sites(mask: str, names: Sequence[str], seed: int) -> set[str]:
    """Return the sites that ``mask`` skips, of those called ``names``."""
    if mask in PREFIXES:
        return set(names[: int(len(names) * PREFIXES[mask])])
    return set(random.Random(seed).sample(names, round(0.6 * len(names))))
