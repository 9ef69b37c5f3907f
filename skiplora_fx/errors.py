"""The errors that this package raises itself."""


class SkipLoraError(Exception):
    """Base of every error that is raised by skiplora_fx on purpose."""


class ConfigError(SkipLoraError, ValueError):
    """An option, a threshold or a glob that cannot be meant: names the culprit and what is allowed."""


class UsageError(SkipLoraError, TypeError):
    """A call on an object that it cannot work on, such as an ``OptimizedModule`` or a model without gates."""


class FileError(UsageError):
    """A file that cannot be read, or written, as what it is meant to be: names it, the line if it is one, and why."""


class InternalError(SkipLoraError, AssertionError):
    """A contract between two passes is broken: a bug here (or a new torch), never the user's fault.

    The compile stops rather than train with wrong gradients.
    """


def compiler_error(error: BaseException) -> BaseException | None:
    """Return the error inside, if it is one that torch.compile wraps what goes wrong in a backend in."""
    inner = getattr(error, "inner_exception", None)
    return inner if isinstance(inner, BaseException) else None


def reason_of(error: BaseException) -> str:
    """Return an error's type and what it says first, without the pages that torch may add."""
    error = compiler_error(error) or error
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    told = next((line for line in lines if ": got " in line), _first_sentence(lines))
    return f"{type(error).__name__}: {told.rpartition(': got ')[2].strip()}".removesuffix(": ")


def _first_sentence(lines: list[str]) -> str:
    """Return the first line, with those that it is wrapped into, up to the end of its sentence."""
    told = "".join(lines[:1])
    for line in lines[1:]:
        if not line[0].islower():
            break
        told = f"{told.rstrip()} {line}".partition(". ")[0]
    return told
