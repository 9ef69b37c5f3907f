"""The checks of a policy's options."""

from __future__ import annotations

import math

from ..errors import ConfigError


def check_share(policy: object, **values: float) -> None:
    """Raise ConfigError if any of ``values`` is not a number from 0 to 1."""
    for name, value in values.items():
        if not _is_number(value) or not 0.0 <= value <= 1.0:
            raise ConfigError(f"{_name(policy)}: {name} must be a number from 0 to 1, got {value!r}")


def check_positive(policy: object, **values: float) -> None:
    """Raise ConfigError if any of ``values`` is not a finite number above 0."""
    for name, value in values.items():
        if not _is_number(value) or not 0.0 < value < math.inf:
            raise ConfigError(f"{_name(policy)}: {name} must be a number above 0, got {value!r}")


def check_count(policy: object, least: int = 1, **values: int) -> None:
    """Raise ConfigError if any of ``values`` is not a whole number of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{_name(policy)}: {name} must be a whole number >= {least}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(policy: object) -> str:
    return f"policy {type(policy).__name__}"
