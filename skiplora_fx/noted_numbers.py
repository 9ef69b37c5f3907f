"""What a user may write into a log: numbers, under names that the log does not use itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .errors import UsageError


def noted_numbers(numbers: Mapping[str, Any], reserved: Sequence[str]) -> dict[str, float]:
    """Return numbers as floats: Python's, NumPy's, tensors of one element, whatever has ``__float__``; waits for them.

    Args:
        numbers: by name.
        reserved: names that are taken.

    Raises:
        UsageError: a name is taken, or a value is no number or more than one; names it and what was found.
    """
    for name in numbers:
        if name in reserved:
            raise UsageError(f"note({name}=...): this name is the log's own: {', '.join(reserved)}; choose another")
    return {name: _float(name, value) for name, value in numbers.items()}


def _float(name: str, value: Any) -> float:
    found = type(value).__name__
    count = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
    if isinstance(count, int) and count != 1:
        raise UsageError(f"note({name}=...): {found} of {count} elements, and one number is meant, such as its mean")
    try:
        scalar = value.item() if callable(getattr(value, "item", None)) else value
        if not isinstance(scalar, (str, bytes)) and hasattr(scalar, "__float__"):
            return float(scalar)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"note({name}=...): {found} cannot be made a number: {reason}") from error
    raise UsageError(
        f"note({name}=...): {type(scalar).__name__} is no number; a float, an int, or a tensor of one element is meant"
    )
