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
