"""Rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation, equal values at their mean rank; NaN where one side has a single value."""
    ranks = torch.stack([_ranks(one), _ranks(other)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    return float(centred[0] @ centred[1] / norms.prod()) if norms.all() else math.nan


def _ranks(values: Sequence[float]) -> Tensor:
    _, places, counts = torch.unique(torch.tensor(values, dtype=torch.float64), return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[places]
