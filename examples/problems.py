"""The one exception that ends a run with a paragraph instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Something the user gave cannot be used: says what was found and what would be right."""


@contextmanager
def explained(failure: str, remedy: str) -> Iterator[None]:
    """Turn whatever is raised inside into an :class:`InputError`: failure, the first line of the cause, remedy.

    For calls into libraries that read what the user named: what they raise is theirs to choose, and much of it
    (a missing network, an unknown model type, a broken file) has no common base class.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"{failure}: {cause.rstrip('.: ')}. {remedy}") from error
