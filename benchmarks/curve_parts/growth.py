"""How fast a measure grows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

FROM_LAYERS = 4
"""Below so many layers what a model costs once hides what each layer costs."""


def exponent(curve: Mapping[int, float]) -> float:
    """Return the power of the size that a curve follows: the slope of its logarithms, by least squares.

    1 is linear. What does not depend on the size makes it smaller. NaN of fewer than two points, and of a measure that
    is 0 somewhere.
    """
    if len(curve) < 2 or min(curve.values()) <= 0:
        return math.nan
    sizes, values = (list(map(math.log, numbers)) for numbers in (curve.keys(), curve.values()))
    return statistics.linear_regression(sizes, values).slope


def settled(axis: str, curve: Mapping[int, float]) -> dict[int, float]:
    """Return the part of a curve to which an exponent is fitted."""
    return {size: value for size, value in curve.items() if axis != "layers" or size >= FROM_LAYERS}
