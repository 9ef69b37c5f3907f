"""The errors that this package raises itself."""


class SkipLoraError(Exception):
    """Base of every error that is raised by skiplora_fx on purpose."""


class ConfigError(SkipLoraError, ValueError):
    """An option, a threshold or a glob that cannot be meant: names the culprit and what is allowed."""


class UsageError(SkipLoraError, TypeError):
    """A call on an object that it cannot work on, such as an ``OptimizedModule`` or a model without gates."""


class InternalError(SkipLoraError, AssertionError):
    """A contract between two passes is broken: a bug here (or a new torch), never the user's fault.

    The compile stops rather than train with wrong gradients.
    """


def reason_of(error: BaseException) -> str:
    """Return an error's type and what it says first, without the pages that torch may add."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    told = next((line for line in lines if ": got " in line), lines[0])
    return f"{type(error).__name__}: {told.rpartition(': got ')[2].strip()}"
