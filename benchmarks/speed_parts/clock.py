"""What something takes: by the clock, and of the CPU."""

from __future__ import annotations

import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class Seconds:
    """By the clock, and of the CPU: the latter leaves out what other processes did meanwhile."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """Return the CPU's seconds of this process and of those that it waited for, such as the C++ compiler."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
